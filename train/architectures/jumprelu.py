"""JumpReLU: a learned threshold a latent, trained through straight-through estimators (Rajamanoharan et al. 2024,
"Jumping ahead", arXiv 2407.14435, §3 and appendix J; the tanh loss is Anthropic's, "Dictionary learning optimization
techniques", January 2025)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from train.codes import Code
from train.errors import TrainError
from train.inference import InferenceSAE
from train.sae import SAE, Context, Forward, SAEConfig, Term, fvu
from train.world import ALONE, World

SPARSITIES: Final = ("target", "l0", "tanh")


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(SAEConfig):
    """Settings of a JumpReLU SAE.

    The papers of `target` and `l0` scale rows to E‖x‖² = 1 where ours have E‖x‖² = D, so thresholds and bandwidths are
    theirs times √D; Anthropic's rows are scaled as ours are.
    """

    sparsity: str = "target"
    """`target`: weight·(L0 / k − 1)² (Gemma Scope and dictionary_learning); `l0`: weight·L0; `tanh`: Anthropic's."""
    k: int = 32
    """Target L0 of `target`."""
    weight: float = 0.0
    """Of the sparsity term; 0 is the source's: target 1, l0 6e-4, tanh 20/D (20 where errors are summed over D)."""
    bandwidth: float = 0.0
    """ε of the rectangular kernel, in normalised units; 0 is the source's: 0.001·√D, or 2 of `tanh`."""
    threshold: float = 0.0
    """Initial threshold θ; 0 is the source's: 0.001·√D, or 0.1 of `tanh`."""
    tanh_scale: float = 4.0
    """c of tanh(c·f·‖W_dec‖)."""
    pre_activation: float = 3e-6
    """Weight of Σ ReLU(θ − pre)·‖W_dec‖ beside `tanh`, over D: it revives dead latents."""

    def __post_init__(self) -> None:
        """Check the kind of sparsity.

        Raises:
            TrainError: naming the setting.
        """
        super().__post_init__()
        if self.sparsity not in SPARSITIES:
            raise TrainError(f"sparsity must be one of {', '.join(SPARSITIES)}, got {self.sparsity!r}")
        if not 0 < self.k <= self.d_sae:
            raise TrainError(f"k must be between 1 and d_sae={self.d_sae}, got {self.k}")
        for name in ("weight", "bandwidth", "threshold"):
            if getattr(self, name) < 0:
                raise TrainError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def sparsity_weight(self) -> float:
        """`weight`, or the source's."""
        return self.weight or {"target": 1.0, "l0": 6e-4, "tanh": 20 / self.d_model}[self.sparsity]

    @property
    def kernel_width(self) -> float:
        """`bandwidth`, or the source's."""
        return self.bandwidth or (2.0 if self.sparsity == "tanh" else 0.001 * self.d_model**0.5)

    @property
    def first_threshold(self) -> float:
        """`threshold`, or the source's."""
        return self.threshold or (0.1 if self.sparsity == "tanh" else 0.001 * self.d_model**0.5)


class JumpReLU(SAE):
    """f = pre where pre > θ, else 0; θ is kept positive through its logarithm."""

    architecture: ClassVar[str] = "jumprelu"
    config: JumpReLUConfig

    def __init__(self, config: JumpReLUConfig, world: World = ALONE) -> None:
        """All thresholds start equal."""
        super().__init__(config, world)
        self.bandwidth = config.kernel_width
        self.log_threshold = nn.Parameter(torch.full((self.d_sae,), config.first_threshold).log())

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Code:
        """The jump."""
        return self._code(self.pre_activations(x_BD))

    def _code(self, pre_BF: Tensor) -> Code:
        f_BF: Tensor = _Jump.apply(pre_BF, self.log_threshold.exp(), self.bandwidth)  # type: ignore[no-untyped-call]
        return Code(self.d_sae, dense_BF=f_BF)

    @torch.no_grad()
    def revive(self, latents: Int[Tensor, " n"]) -> None:
        """Bias and threshold."""
        super().revive(latents)
        self.log_threshold[latents] = math.log(self.config.first_threshold)

    def losses(self, x_BD: Float[Tensor, "B D"], context: Context) -> Forward:
        """Reconstruction and sparsity."""
        pre_BF = self.pre_activations(x_BD)
        code = self._code(pre_BF)
        x_hat_BD = self.decode(code)
        terms = {"reconstruction": Term(fvu(x_BD, x_hat_BD))}
        weight = self.config.sparsity_weight * context.sparsity
        if self.config.sparsity == "tanh":
            norm_F = self.W_dec.norm(dim=1)
            on = self.world.total(torch.tanh(self.config.tanh_scale * code.dense * norm_F).sum(1).mean())
            terms["sparsity"] = Term(on, weight)
            short_BF = torch.relu(self.log_threshold.exp() - pre_BF)
            terms["pre_activation"] = Term(
                self.world.total((short_BF * norm_F).sum(1).mean()), self.config.pre_activation / self.config.d_model
            )
        else:
            # Of the pre-activations, not of the code: behind the jump only half of the kernel would be seen.
            on_BF: Tensor = _Step.apply(pre_BF, self.log_threshold.exp(), self.bandwidth)  # type: ignore[no-untyped-call]
            l0 = self.world.mean(self.world.total(on_BF.sum(1).mean()))
            terms["sparsity"] = Term(
                (l0 / self.config.k - 1).square() if self.config.sparsity == "target" else l0, weight
            )
        return Forward(x_BD, code, x_hat_BD, terms)

    def inference(self) -> InferenceSAE:
        """The thresholds themselves."""
        return InferenceSAE(
            architecture="jumprelu", threshold=self.log_threshold.detach().exp().clone(), **self.weights()
        )


class _Jump(torch.autograd.Function):
    """pre·1[pre > θ], with ∂/∂θ = −(θ/ε)·K((pre − θ)/ε), K the rectangle of width 1 (eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return pre_BF * (pre_BF > threshold_F)

    @staticmethod
    def backward(ctx: Any, grad_BF: Tensor) -> tuple[Tensor, Tensor, None]:
        pre_BF, threshold_F = ctx.saved_tensors
        near_F = (grad_BF * _near(pre_BF, threshold_F, ctx.bandwidth)).sum(0)
        return grad_BF * (pre_BF > threshold_F), -(threshold_F / ctx.bandwidth) * near_F, None


class _Step(torch.autograd.Function):
    """1[pre > θ], with ∂/∂θ = −(1/ε)·K((pre − θ)/ε) and no gradient for pre (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_BF, threshold_F)
        ctx.bandwidth = bandwidth
        return (pre_BF > threshold_F).to(pre_BF.dtype)

    @staticmethod
    def backward(ctx: Any, grad_BF: Tensor) -> tuple[None, Tensor, None]:
        pre_BF, threshold_F = ctx.saved_tensors
        return None, -(grad_BF * _near(pre_BF, threshold_F, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


def _near(pre_BF: Tensor, threshold_F: Tensor, bandwidth: float) -> Tensor:
    return (pre_BF - threshold_F).abs() < bandwidth / 2
