"""Two domains whose features lie pairwise close: what a separation of knowledge should pull apart.

Shapes: n samples, T positions, P true features, D d_model.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evals.planted.directions import tilted
from evals.planted.source import Drawn, Planted, bernoulli


@dataclass(frozen=True, kw_only=True)
class Domains(Planted):
    """Truths in the order forget, retain, shared; each forget feature has a retain partner at `paired_cosine`."""

    domains: ClassVar[tuple[str, ...]] = ("forget", "retain")

    forget: int = 32
    retain: int = 32
    shared: int = 32
    p_home: float = 0.06
    """That a feature is on in its own domain; shared features are at home in both."""
    p_away: float = 0.003
    """That a forget or retain feature is on in the other domain."""
    p_forget: float = 0.5
    """That a row (in `sequences`: a whole document) belongs to the forget domain."""
    paired_cosine: float = 0.35

    def __post_init__(self) -> None:
        """Refuse impossible sizes and cosines.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        if min(self.forget, self.retain) < 1 or self.shared < 0:
            raise ValueError(
                f"need forget >= 1, retain >= 1 and shared >= 0, got {self.forget=}, {self.retain=}, {self.shared=}"
            )
        if not -1 < self.paired_cosine < 1:
            raise ValueError(f"paired_cosine must lie between -1 and 1, got {self.paired_cosine}")

    @property
    def forget_features(self) -> Int[Tensor, " f"]:
        """Indices of the forget features among the truths."""
        return torch.arange(self.forget)

    @property
    def retain_features(self) -> Int[Tensor, " r"]:
        """Indices of the retain features among the truths; the first ones are partners of the forget features."""
        return self.forget + torch.arange(self.retain)

    @property
    def domain_rates(self) -> Float[Tensor, "2 P"]:
        """Probability that each feature is on, in the forget and in the retain domain."""
        sizes = (self.forget, self.retain, self.shared)
        rates = ((self.p_home, self.p_away, self.p_home), (self.p_away, self.p_home, self.p_home))
        return torch.stack([torch.tensor(one).repeat_interleave(torch.tensor(sizes)) for one in rates])

    @property
    def firing_rates(self) -> Float[Tensor, " P"]:
        """Over both domains."""
        forget_P, retain_P = self.domain_rates
        rates_P: Tensor = self.p_forget * forget_P + (1 - self.p_forget) * retain_P
        return rates_P

    @cached_property
    def directions(self) -> Float[Tensor, "P D"]:
        """Near-orthogonal unit rows; each retain partner tilted towards its forget feature."""
        pairs = min(self.forget, self.retain)
        return tilted(
            super().directions, self.retain_features[:pairs], self.forget_features[:pairs], self.paired_cosine
        )

    def draw(self, n: int, context: int, generator: torch.Generator) -> Drawn:
        """One domain a sample; every position on its own."""
        retain_n = ~bernoulli(self.p_forget, n, generator=generator)
        rates_n1P = self.domain_rates.to(generator.device)[retain_n.long(), None]
        on_nTP = bernoulli(rates_n1P, n, context, self.n_features, generator=generator)
        return Drawn(on_nTP.float(), retain_n.long())
