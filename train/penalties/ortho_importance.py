"""Importance-prioritised orthogonality: the pressure goes to pairs of important latents that are nearly parallel.

    L = (1/K) Σ_{(i,j) ∈ Q} √(I_i I_j) [cos(w_i, w_j)]₊²
    I = EMA(mean_b z_bi) over its mean among living latents, at most 10

Every `refresh` steps the queue Q becomes the K pairs with the largest √(I_i I_j) [cos_ij]₊ among those in it and fresh
candidates: the nearest neighbours of every latent, exact in blocks or by hashing, in mixed precision.

Source: "importance-prioritised orthogonality with a reservoir and LSH" as it was meant: an importance of features, a
cheap search for near-parallel pairs, a queue of the worst. As first written only the average and a reservoir of *input*
rows existed, neither entered a loss, and both changed in evaluation. Here I has a scale (which also takes out what an
average that starts at 0 lacks) and a limit, so that a few loud latents do not take all the pressure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties import pairs
from train.penalties.pairs import Neighbours, Pairs, cosines, hinge, jaccard
from train.penalties.penalty import Penalty, PenaltyConfig
from train.rows import Rows
from train.sae import SAE, Forward

_MOST = 10.0  # times the mean importance


@dataclass(frozen=True, kw_only=True)
class OrthoImportanceConfig(PenaltyConfig):
    """Settings of `ortho_importance`."""

    coeff: float = 0.2
    every: int = 4
    decay: float = 0.99
    """Of the importance, a step."""
    queue: int = 0
    """K, pairs in the queue; 0 is F."""
    refresh: int = 100
    """Steps between two searches."""
    search: str = "exact"
    """`exact`: all cosines in blocks; `lsh`: hashing, for dictionaries beyond about 2¹⁷ latents."""
    neighbours: int = 8
    """Candidates of each latent."""

    def __post_init__(self) -> None:
        """Check each setting; a TrainError names it, what it must be and what came."""
        super().__post_init__()
        for name, low in (("queue", 0), ("refresh", 1), ("neighbours", 1)):
            if getattr(self, name) < low:
                raise TrainError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.decay < 1:
            raise TrainError(f"decay must be in [0, 1), got {self.decay}")
        if self.search not in ("exact", "lsh"):
            raise TrainError(f"search must be one of exact, lsh, got {self.search!r}")


class OrthoImportance(Penalty):
    """State: the moving average of activations, and the queue."""

    config: OrthoImportanceConfig

    def __init__(self, config: OrthoImportanceConfig, sae: SAE, generator: torch.Generator) -> None:
        """An empty queue and no importance yet."""
        super().__init__(config, sae, generator)
        d_sae, device = len(sae.W_dec), sae.W_dec.device
        self.queue = pairs.no_pairs(min(config.queue or d_sae, d_sae * (d_sae - 1) // 2), device)
        self.mean_F = torch.zeros(d_sae, device=device)
        self.jaccard = torch.zeros((), device=device)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """L with the importance of now and the queue of the last search."""
        weight_P = self.queue.weight_P * self._both(self.queue.first_P, self.queue.second_P)
        return hinge(sae.W_dec, self.queue, weight_P) / len(weight_P)

    def importance(self) -> Float[Tensor, " F"]:
        """I."""
        alive = (self.mean_F > 0).sum()
        return (self.mean_F * alive / self.mean_F.sum().clamp_min(1e-12)).clamp_max(_MOST)

    def _both(self, first_n: Tensor, second_n: Tensor) -> Tensor:
        importance_F = self.importance()
        return (importance_F[first_n] * importance_F[second_n]).sqrt()

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Move the importance; search and choose anew where it is due."""
        config = self.config
        if not config.coeff:
            return
        self.mean_F = self.mean_F.lerp(sae.world.mean(pairs.mean_activation(forward.code)), 1 - config.decay)
        if pairs.due(step, config.start, config.refresh):
            first_n, second_n = (
                torch.cat(both) for both in zip(pairs.pairs_of(self._search(sae)), self.queue[:2], strict=True)
            )
            score_n = self._both(first_n, second_n) * cosines(sae.W_dec, first_n, second_n)
            queue = pairs.best(first_n, second_n, score_n, len(self.queue.weight_P), len(self.mean_F))
            self.jaccard, self.queue = jaccard(queue, self.queue, len(self.mean_F)), queue

    def _search(self, sae: SAE) -> Neighbours:
        if self.config.search == "exact":
            return pairs.nearest(sae.W_dec, self.config.neighbours)
        return pairs.nearest_by_hash(sae.W_dec, self.config.neighbours, self.generator)

    def metrics(self) -> dict[str, Tensor]:
        """Jaccard index of the last two queues, and the largest importance (at most 10 times the mean)."""
        return {"jaccard": self.jaccard, "importance_most": self.importance().max()}

    def state(self) -> dict[str, Tensor]:
        """Importance and queue."""
        return self.queue._asdict() | {"mean_F": self.mean_F, "jaccard": self.jaccard}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.queue = Pairs(*(state[name] for name in Pairs._fields))
        self.mean_F, self.jaccard = state["mean_F"], state["jaccard"]
