"""Random sparse sums: the plainest truth, for tests of recovery.

Shapes: n samples, T positions, P true features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evals.planted.source import Drawn, Planted


@dataclass(frozen=True, kw_only=True)
class Dictionary(Planted):
    """Exactly `active` of `features` directions are on at every position, all sets equally likely."""

    features: int = 48
    active: int = 3

    def __post_init__(self) -> None:
        """Refuse more active features than there are.

        Raises:
            ValueError: naming both numbers.
        """
        super().__post_init__()
        if not 0 < self.active <= self.features:
            raise ValueError(f"need 0 < active <= features, got active={self.active}, features={self.features}")

    @property
    def firing_rates(self) -> Float[Tensor, " P"]:
        """active / features, each."""
        return torch.full((self.features,), self.active / self.features)

    def draw(self, n: int, context: int, generator: torch.Generator) -> Drawn:
        """The positions of the largest of P uniform numbers."""
        lot_nTP = torch.rand(n, context, self.features, generator=generator, device=generator.device)
        chosen_nTk = lot_nTP.topk(self.active, dim=-1).indices
        return Drawn(torch.zeros_like(lot_nTP).scatter_(-1, chosen_nTk, 1.0))
