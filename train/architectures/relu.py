"""ReLU with an L1 penalty, in its two forms.

`unit`: rows of W_dec at norm 1 (Bricken et al. 2023, "Towards monosemanticity", appendix). `april`: a free decoder,
each activation weighted by its decoder row's norm (Anthropic, "Update on how we train SAEs", April 2024).
"""

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.codes import Code
from train.errors import TrainError
from train.folding import fold_decoder_norms
from train.inference import InferenceSAE
from train.sae import SAE, Context, Forward, SAEConfig, Term, fvu
from train.world import ALONE, World

FORMS: Final = ("unit", "april")
_APRIL_NORM: Final = 0.1  # of the initial decoder rows: "0.05 to 1; 0.1 in most cases"


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(SAEConfig):
    """Settings of a standard SAE."""

    form: str = "unit"
    """`unit` or `april`."""
    l1: float = 0.04
    """Sparsity coefficient where E‖x‖² = 1, as in dictionary_learning; applied as l1/√D: our rows have E‖x‖² = D.
    The April update's λ = 5 (errors summed over D, E‖x‖² = D) is l1 = 5/√D: 0.10 at d_model 2304."""

    def __post_init__(self) -> None:
        """Check form and coefficient.

        Raises:
            TrainError: naming the setting.
        """
        super().__post_init__()
        if self.form not in FORMS:
            raise TrainError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.l1 < 0:
            raise TrainError(f"l1 must not be negative, got {self.l1}")
        if self.group_biases and self.form != "unit":
            raise TrainError("group biases need activations of unit decoder rows: set form=unit")


class ReLU(SAE):
    """f = ReLU((x − b_dec) W_enc + b_enc); `april` does not subtract b_dec."""

    architecture: ClassVar[str] = "relu"
    config: ReLUConfig

    def __init__(self, config: ReLUConfig, world: World = ALONE) -> None:
        """`april` starts with short decoder rows and the encoder tied to them."""
        super().__init__(config, world)
        self.unit_norm = config.form == "unit"
        if not self.unit_norm:
            self.W_dec.data.mul_(_APRIL_NORM)
            self.W_enc.data.mul_(_APRIL_NORM)

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Code:
        """ReLU of the pre-activations."""
        pre_BF = self.pre_activations(x_BD) if self.unit_norm else torch.addmm(self.b_enc, x_BD, self.W_enc)
        return Code(self.d_sae, dense_BF=torch.relu(pre_BF))

    def losses(self, x_BD: Float[Tensor, "B D"], context: Context) -> Forward:
        """Reconstruction and L1."""
        code = self.encode(x_BD)
        x_hat_BD = self.decode(code)
        # What a unit of activation adds to x̂: weighing by it keeps the penalty from being dodged by long rows.
        length_F = code.dense.new_ones(()) if self.unit_norm else self.W_dec.norm(dim=1)
        weight = self.config.l1 / self.config.d_model**0.5 * context.sparsity
        sparsity = Term(self.world.total((code.dense * length_F).sum(1).mean()), weight)
        return Forward(x_BD, code, x_hat_BD, {"reconstruction": Term(fvu(x_BD, x_hat_BD)), "sparsity": sparsity})

    def inference(self) -> InferenceSAE:
        """ReLU, with the decoder's norms folded into the encoder where they are free."""
        if self.unit_norm:
            return InferenceSAE(architecture="relu", **self.weights())
        free = InferenceSAE(architecture="relu", apply_b_dec_to_input=False, **self.weights())
        return fold_decoder_norms(free, norm_weighted=False)
