"""The base of every architecture: parameters, decode, and what a loss gives back.

Everything here lives in normalised units: rows have mean 0 and E‖x‖² = D over the rows that training sees
(`train/normalise.py`), and losses are divided by D, so that a reconstruction loss *is* the fraction of variance
unexplained and every coefficient lives on that scale.
Shapes: B rows, D d_model, F d_sae.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from train import group_biases, kernels
from train.codes import Code
from train.errors import TrainError
from train.inference import InferenceSAE
from train.initialise import directions
from train.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What every architecture is asked for."""

    d_model: int
    d_sae: int
    seed: int = 0
    """Of the initial weights."""
    encoder_norm: float = 1.0
    """Norm of each latent's part of W_enc at first; that of its row of W_dec is 1."""
    group_biases: int = 0
    """Groups of latents with a bias of their own (`train/group_biases.py`), as many as the penalties ask for."""

    def __post_init__(self) -> None:
        """Refuse shapes that no SAE has.

        Raises:
            TrainError: naming the setting.
        """
        for name in ("d_model", "d_sae"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.encoder_norm) and self.encoder_norm > 0):
            raise TrainError(f"encoder_norm must be positive and finite, got {self.encoder_norm}")
        if self.group_biases < 0:
            raise TrainError(f"group_biases must not be negative, got {self.group_biases}")


class Term(NamedTuple):
    """One summand of the loss: weight × value."""

    value: Float[Tensor, ""]
    """Dimensionless, on the scale of the fraction of variance unexplained unless the term says otherwise."""
    weight: float | Tensor = 1.0


class Forward(NamedTuple):
    """One pass over a batch."""

    x_BD: Tensor
    code: Code
    x_hat_BD: Tensor
    terms: dict[str, Term]

    def total(self) -> Tensor:
        """The loss: the sum of the weighted terms; a term of weight 0 is left out, so it cannot change a bit."""
        used = [term for term in self.terms.values() if isinstance(term.weight, Tensor) or term.weight]
        parts = [term.weight * term.value for term in used]
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Context:
    """What a loss may know besides the rows."""

    step: int
    """Steps taken before this one."""
    sparsity: float
    """Warm-up factor of the sparsity coefficients, 0 to 1."""
    dead: Int[Tensor, " n"]
    """Latents that have been silent for `dead_after` tokens."""


class SAE(nn.Module, ABC):
    """A sparse autoencoder x̂ = f W_dec + b_dec, f = activation((x − b_dec) W_enc + b_enc).

    With group biases x̂ has a part for each group of latents too; who is in which, `group_of`, a penalty decides.
    `W_enc` is [D, F] but lies in memory latent by latent, as `W_dec` [F, D] does: sparse kernels read whole rows.
    """

    architecture: ClassVar[str]
    unit_norm: bool = True
    """Whether the rows of W_dec are kept at norm 1 (and the gradient along them removed)."""

    def __init__(self, config: Any, world: World = ALONE) -> None:
        """Random unit decoder rows, the encoder parallel to them at first, biases 0 (Gao et al. 2024, §A.1)."""
        super().__init__()
        self.config, self.world = config, world
        latents = world.latents(config.d_sae)
        self.d_sae = len(latents)
        """Latents of this process; all of `config.d_sae` unless processes share the dictionary."""
        self.first = latents.start
        w_dec_FD = directions(config.d_sae, config.d_model, config.seed, latents)
        self.W_dec = nn.Parameter(w_dec_FD)
        self.W_enc = nn.Parameter((w_dec_FD * config.encoder_norm).T)  # tied at first only
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_model))
        if config.group_biases:
            if world.shards > 1:
                raise TrainError("group biases need whole dictionaries: leave --shard-dictionary out")
            self.group_bias = nn.Parameter(torch.zeros(config.group_biases, config.d_model))
            self.register_buffer("group_of", torch.zeros(self.d_sae, dtype=torch.int64))

    @abstractmethod
    def encode(self, x_BD: Float[Tensor, "B D"]) -> Code:
        """Codes of rows: in training mode as the training selects them, in eval mode as the saved SAE does."""

    @abstractmethod
    def losses(self, x_BD: Float[Tensor, "B D"], context: Context) -> Forward:
        """One pass with every term of the loss; changes no state."""

    @abstractmethod
    def inference(self) -> InferenceSAE:
        """What this SAE is once trained, in normalised units."""

    @torch.no_grad()
    def observe(self, forward: Forward, context: Context) -> None:
        """After the optimiser's step: the only place where an architecture's own state (thresholds) changes."""

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        """Give latents their first biases again (and thresholds), whatever made them silent."""
        self.b_enc[latents] = 0

    def decode(self, code: Code) -> Float[Tensor, "B D"]:
        """Reconstructions of codes."""
        bias_D = self.world.bias(self.b_dec)
        if code.is_sparse:
            x_hat_BD = self.world.total(kernels.decode(*code.entries, self.W_dec, bias_D))
        else:
            x_hat_BD = self.world.total(code.dense @ self.W_dec + bias_D)
        return self.with_group_biases(x_hat_BD, code)

    def with_group_biases(
        self, x_hat_BD: Float[Tensor, "B D"], code: Code, *, frozen: bool = False
    ) -> Float[Tensor, "B D"]:
        """A reconstruction from a code, and the biases of the code's groups (`frozen`: without their gradient).

        The reconstruction itself where there are none.
        """
        groups = self.config.group_biases
        if not groups:
            return x_hat_BD
        amounts_BH = group_biases.amounts(code, self.get_buffer("group_of"), groups)
        bias_GD = self.group_bias.detach() if frozen else self.group_bias
        return group_biases.added(x_hat_BD, amounts_BH, bias_GD)

    def forward(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Reconstructions of rows."""
        return self.decode(self.encode(x_BD))

    def centred(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """x − b_dec without a gradient for b_dec; `encoder_bias` carries it."""
        return x_BD - self.b_dec.detach()

    def encoder_bias(self) -> Float[Tensor, " F"]:
        """`b_enc` with b_dec's gradient through the encoder attached, as a product with a vector.

        Left to autograd that gradient would cost a [B, D] product as large as the encoder's own.
        """
        bias: Tensor = _Centring.apply(self.b_enc, self.b_dec, self.W_enc)  # type: ignore[no-untyped-call]
        return bias

    def pre_activations(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """(x − b_dec) W_enc + b_enc, dense."""
        return torch.addmm(self.encoder_bias(), self.centred(x_BD), self.W_enc)

    def weights(self) -> dict[str, Any]:
        """Detached, contiguous copies of the tensors that every architecture has, as `InferenceSAE` takes them."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", *(("group_bias",) if self.config.group_biases else ()))
        found = {name: self.get_parameter(name).detach().clone().contiguous() for name in names}
        return found | ({"group_of": self.get_buffer("group_of").clone()} if self.config.group_biases else {})


class _Centring(torch.autograd.Function):
    """(b_enc, b_dec, W_enc) → b_enc, with ∂/∂b_dec = −W_enc g: what centring x by b_dec would have given."""

    @staticmethod
    def forward(ctx: Any, b_enc_F: Tensor, b_dec_D: Tensor, w_enc_DF: Tensor) -> Tensor:
        ctx.save_for_backward(w_enc_DF)
        return b_enc_F.view_as(b_enc_F)

    @staticmethod
    def backward(ctx: Any, grad_F: Tensor) -> tuple[Tensor, Tensor, None]:
        (w_enc_DF,) = ctx.saved_tensors
        return grad_F, -(w_enc_DF @ grad_F), None


def fvu(x_BD: Float[Tensor, "B D"], x_hat_BD: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean squared error an entry: on normalised rows (E‖x‖² = D) the fraction of variance unexplained.

    0 is perfect, 1 is predicting the mean; the denominator is the data's variance, not the batch's.
    """
    return (x_hat_BD - x_BD).square().mean()


def check_k(k: int, d_sae: int) -> None:
    """Refuse a k that cannot be met.

    Raises:
        TrainError: unless 0 < k ≤ d_sae.
    """
    if not 0 < k <= d_sae:
        raise TrainError(f"k must be between 1 and d_sae={d_sae}, got {k}")
