"""`temporal_variance`: variance of codes within a window; the ablation that `temporal` is held against.

    loss = reconstruction + coeff · Σ ‖z − z̄‖² / stopgrad Σ ‖z‖²,   z̄ the window's mean, sums over the chosen latents

Through a top-k this can only push down what comes and goes: there is no force that raises a latent where it was off.
On a group of its own (a Matryoshka prefix) the cheapest answer is a group that never fires, and then every smoothness
measure looks better; `alarm` says when that happens. Σ ‖z − z̄‖² is Σ_ts ‖z_t − z_s‖² / 2W a window, so the term is a
contrast without negatives. Gradients reach the encoder through entries that are on, and nothing else.

`literal` is the same idea as it was first written down: the variance of the last 8 *batch means* of each latent, kept
in a buffer without a graph. It has no gradient, and the SAE is the baseline's to the last bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.codes import Code
from train.errors import TrainError
from train.penalties.penalty import Penalty, PenaltyConfig
from train.penalties.slow import SlowSet
from train.rows import Rows
from train.sae import SAE, Forward

OF: Final = ("window", "literal")
HISTORY: Final = 8
ALARM: Final = 0.1
"""The group counts as dead once its L0 falls below this share of the largest that it had."""


@dataclass(frozen=True, kw_only=True)
class TemporalVarianceConfig(PenaltyConfig):
    """Settings of `temporal_variance`."""

    coeff: float = 0.1
    variance: str = "window"
    """`window`, or `literal`."""
    share: float = 0.2
    """Of the latents, the first ones; 1 takes all."""

    def __post_init__(self) -> None:
        """Check each value.

        Raises:
            TrainError: naming the setting, what it must be and what came.
        """
        super().__post_init__()
        if self.variance not in OF:
            raise TrainError(f"variance must be one of {', '.join(OF)}, got {self.variance!r}")
        if not 0 < self.share <= 1:
            raise TrainError(f"share must be above 0 and at most 1, got {self.share}")

    @property
    def least_window(self) -> int:
        """Two positions, to vary between."""
        return 2


class TemporalVariance(Penalty):
    """Within-window variance over energy."""

    config: TemporalVarianceConfig

    def __init__(self, config: TemporalVarianceConfig, sae: SAE, generator: torch.Generator) -> None:
        """Nothing is known yet."""
        super().__init__(config, sae, generator)
        self.slow = SlowSet(sae, auto=False, share=config.share, refresh=1, start=0)
        means = HISTORY if config.variance == "literal" else 0
        self.means_HF = sae.W_dec.new_zeros(means, len(sae.W_dec)).detach()
        self.largest = torch.zeros((), device=sae.W_dec.device)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """Variance within windows as a share of energy, 0 to 1; of batch means in `literal`."""
        if self.config.variance == "literal":
            return torch.cat([self.means_HF[1:], _mean(forward.code)[None]]).var(0).mean()
        z_nWh = self.slow.codes(forward.code).unflatten(0, (-1, rows.window))
        energy = z_nWh.square().sum()
        within = energy - z_nWh.sum(1).square().sum() / rows.window
        share: Tensor = within / energy.detach().clamp_min(1e-6)
        return share

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Count the group's activations, remember the batch's mean."""
        self.slow.update(sae, forward.code, rows.window, step)
        self.largest = torch.maximum(self.largest, self.slow.seen["slow_l0"])
        if self.config.variance == "literal":
            self.means_HF = torch.cat([self.means_HF[1:], sae.world.mean(_mean(forward.code))[None]])

    def metrics(self) -> dict[str, Tensor]:
        """Mean number of the group's latents on in a row, share that fires, and 1 where the group has died."""
        seen = {name: self.slow.seen[name] for name in ("slow_l0", "slow_alive")}
        return seen | {"alarm": (seen["slow_l0"] < ALARM * self.largest).float()}

    def state(self) -> dict[str, Tensor]:
        """The group's counts, the largest L0 that it had, the means."""
        return self.slow.state() | {"largest": self.largest, "means": self.means_HF}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.slow.load_state(state)
        self.largest, self.means_HF = state["largest"], state["means"]


def _mean(code: Code) -> Float[Tensor, " F"]:
    values_n, features_n, _ = code.detach().entries
    return values_n.new_zeros(code.d_sae).index_add_(0, features_n.long(), values_n) / code.n_rows
