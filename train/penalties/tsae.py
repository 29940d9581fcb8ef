"""`tsae`: the temporal contrast of T-SAE (arXiv 2511.05541) on the first of two nested dictionaries.

    loss = matryoshka reconstruction + coeff · ½ [CE(s(q_t, q_s)) + CE(s(q_s, q_t))],   q = z_{1…h}, h = 0.2 F

`paper`: s is the cosine, without a temperature, and each position's partner is the one before. `code`: the released
code's s is the raw dot product, the partner one at random among the earlier ones (one draw a position for the whole
batch), and the two dictionaries weigh 0.2 and 0.8.

Deviations, in both: all positions of a window are reconstructed, where the source encodes pairs and reconstructs one of
each; BatchTopK selects over all of them together; windows of one document are no negatives of one another, whereas the
source's batches hold several tokens of a document. Codes are of normalised rows (E‖x‖² = D): a dot product of raw codes
is scale² times ours, `scale` being the run's (see its summary), so temperature = 1 / scale² reproduces the source's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties.contrast import info_nce, kinship, pairs_at, similarities
from train.penalties.penalty import Penalty, PenaltyConfig
from train.penalties.slow import SlowSet
from train.rows import Rows
from train.sae import SAE, Forward

SOURCES: Final = ("paper", "code")


@dataclass(frozen=True, kw_only=True)
class TSAEConfig(PenaltyConfig):
    """Settings of `tsae`."""

    coeff: float = 0.05
    """The paper's α = 1 stands beside a *sum* of two raw squared errors, ours beside a mean of fractions: α over twice
    the rows' variance, 10 where this was measured."""
    source: str = "paper"
    """`paper` or `code`."""
    temperature: float = 1.0
    share: float = 0.2
    """Of the latents, the first ones; as the first of the base's `prefixes`."""

    def __post_init__(self) -> None:
        """Check each value.

        Raises:
            TrainError: naming the setting, what it must be and what came.
        """
        super().__post_init__()
        if self.source not in SOURCES:
            raise TrainError(f"source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        if not self.temperature > 0:
            raise TrainError(f"temperature must be positive, got {self.temperature}")
        if not 0 < self.share <= 1:
            raise TrainError(f"share must be above 0 and at most 1, got {self.share}")

    @property
    def least_window(self) -> int:
        """A pair."""
        return 2


class TSAE(Penalty):
    """Contrast on the first latents."""

    config: TSAEConfig

    def __init__(self, config: TSAEConfig, sae: SAE, generator: torch.Generator) -> None:
        """The latents are fixed."""
        super().__init__(config, sae, generator)
        self.slow = SlowSet(sae, auto=False, share=config.share, refresh=1, start=0)
        self.uniform = torch.rand((), generator=generator)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """The mean symmetric cross-entropy, in nats."""
        paper = self.config.source == "paper"
        pairs = pairs_at(int(paper), rows.window, float(self.uniform))
        similarity_pnn = similarities(self.slow, forward.code, pairs, window=rows.window, cosine=paper)
        return info_nce(similarity_pnn, self.config.temperature, kinship(rows.batch, rows.x_BD.device))

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Count the group's activations; draw the next lags."""
        self.slow.update(sae, forward.code, rows.window, step)
        if self.config.source == "code":
            self.uniform = torch.rand((), generator=self.generator)

    def metrics(self) -> dict[str, Tensor]:
        """Mean number of the group's latents on in a row, and share of them that fire in a batch."""
        return {name: self.slow.seen[name] for name in ("slow_l0", "slow_alive")}

    def state(self) -> dict[str, Tensor]:
        """The group's counts, and the next lags."""
        return self.slow.state() | {"uniform": self.uniform}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.slow.load_state(state)
        self.uniform = state["uniform"].cpu()
