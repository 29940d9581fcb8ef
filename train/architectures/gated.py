"""Gated: whether a latent is on and how strongly are two decisions (Rajamanoharan et al. 2024, "Improving dictionary
learning with gated sparse autoencoders", arXiv 2404.16014, eq. 6–8)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from train.codes import Code
from train.errors import TrainError
from train.inference import InferenceSAE
from train.sae import SAE, Context, Forward, SAEConfig, Term, fvu
from train.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class GatedConfig(SAEConfig):
    """Settings of a Gated SAE."""

    l1: float = 0.04
    """Sparsity coefficient where E‖x‖² = 1, as in dictionary_learning; applied as l1/√D: our rows have E‖x‖² = D."""
    aux: float = 1.0
    """Weight of the gate's own reconstruction (1 in the source)."""

    def __post_init__(self) -> None:
        """Check the coefficient.

        Raises:
            TrainError: naming the setting.
        """
        super().__post_init__()
        if self.l1 < 0:
            raise TrainError(f"l1 must not be negative, got {self.l1}")


class Gated(SAE):
    """f = 1[π > 0]·ReLU(m), π = (x − b_dec) W_enc + b_gate, m = (x − b_dec) W_enc·exp(r_mag) + b_mag."""

    architecture: ClassVar[str] = "gated"
    config: GatedConfig

    def __init__(self, config: GatedConfig, world: World = ALONE) -> None:
        """r_mag, b_gate and b_mag start at 0; `b_enc` is b_gate."""
        super().__init__(config, world)
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Code:
        """Gate times magnitude."""
        return self._code(self.pre_activations(x_BD))

    def _code(self, gate_BF: Tensor) -> Code:
        magnitude_BF = (gate_BF - self.b_enc) * self.r_mag.exp() + self.b_mag
        return Code(self.d_sae, dense_BF=(gate_BF > 0) * torch.relu(magnitude_BF))

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        """Both biases and the scale."""
        super().revive(latents)
        self.r_mag[latents] = self.b_mag[latents] = 0

    def losses(self, x_BD: Float[Tensor, "B D"], context: Context) -> Forward:
        """Reconstruction, L1 of the gate's pre-activations, and the gate's reconstruction through a frozen decoder."""
        gate_BF = self.pre_activations(x_BD)
        code = self._code(gate_BF)
        x_hat_BD = self.decode(code)
        open_BF = torch.relu(gate_BF)
        by_gate_BD = self.world.total(open_BF @ self.W_dec.detach()) + self.b_dec.detach()
        by_gate_BD = self.with_group_biases(by_gate_BD, Code(self.d_sae, dense_BF=open_BF), frozen=True)
        weight = self.config.l1 / self.config.d_model**0.5 * context.sparsity
        terms = {
            "reconstruction": Term(fvu(x_BD, x_hat_BD)),
            "sparsity": Term(self.world.total(open_BF.sum(1).mean()), weight),
            "aux": Term(fvu(x_BD, by_gate_BD), self.config.aux),
        }
        return Forward(x_BD, code, x_hat_BD, terms)

    def inference(self) -> InferenceSAE:
        """Gate and magnitude."""
        weights = self.weights()
        r_mag, b_mag = self.r_mag.detach().clone(), self.b_mag.detach().clone()
        return InferenceSAE(architecture="gated", b_gate=weights.pop("b_enc"), r_mag=r_mag, b_mag=b_mag, **weights)
