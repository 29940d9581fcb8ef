"""What every planted source shares: known directions, and vectors that are sparse sums of them.

x = Σ_p latent_p · direction_p + noise, so what a dictionary ought to find is known to the last bit.
Shapes: n samples, T positions, P true features, D d_model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evals.planted.directions import near_orthogonal

SMALLEST_MAGNITUDE: Final = 0.1
"""Magnitudes are Gaussian, cut here: a feature that is on is never invisible and never negative."""


class Sample(NamedTuple):
    """Vectors with their truth; rows [n, ...], or windows and sequences [n, T, ...]."""

    x: Tensor
    """[n, D] or [n, T, D] float32."""
    latents: Tensor
    """[n, P] or [n, T, P] float32: the magnitude of each true feature, 0 where it is off."""
    domain: Tensor | None = None
    """[n] int64, index into the source's `domains`; None of a source without domains."""


class Drawn(NamedTuple):
    """Which features are on, before magnitudes and noise."""

    on_nTP: Tensor
    domain_n: Tensor | None = None


class Family(NamedTuple):
    """Which truths are children of which: a child is on only where its parent is."""

    parents: Int[Tensor, " p"]
    """Indices of the parents among the P truths."""
    children: Int[Tensor, "p C"]
    """Indices of each parent's children."""


@dataclass(frozen=True, kw_only=True)
class Planted(ABC):
    """A source of vectors whose features are known; equal fields give equal directions, whatever else happens."""

    domains: ClassVar[tuple[str, ...]] = ()
    """Names of the domains that samples are tagged with."""

    d_model: int = 64
    spread: float = 0.15
    """Standard deviation of a magnitude, relative to its mean."""
    noise: float = 0.02
    """Standard deviation of the Gaussian noise on every coordinate of x."""
    seed: int = 0
    """Of the directions alone; samples take a generator of their own."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: a probability outside [0, 1], or a size, spread or noise that no sample can have.
        """
        for name, value in vars(self).items():
            # Every field named p_… is a probability, in the subclasses too.
            if name.startswith("p_") and not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {value}")
        if self.d_model < 1 or self.spread < 0 or self.noise < 0:
            raise ValueError(
                "need d_model >= 1, spread >= 0 and noise >= 0,"
                f" got d_model={self.d_model}, spread={self.spread}, noise={self.noise}"
            )

    @property
    @abstractmethod
    def firing_rates(self) -> Float[Tensor, " P"]:
        """Probability that each feature is on at a position."""

    @abstractmethod
    def draw(self, n: int, context: int, generator: torch.Generator) -> Drawn:
        """Which features are on, as 0 or 1 in float32 [n, T, P], on the generator's device."""

    @cached_property
    def directions(self) -> Float[Tensor, "P D"]:
        """The truth: unit rows, as near orthogonal as P rows in D dimensions can be."""
        return near_orthogonal(self.n_features, self.d_model, torch.Generator().manual_seed(self.seed))

    @property
    def magnitudes(self) -> Float[Tensor, " P"]:
        """Mean magnitude of each feature where it is on, before the cut at `SMALLEST_MAGNITUDE`."""
        return torch.ones(self.n_features)

    @property
    def n_features(self) -> int:
        """P."""
        return len(self.firing_rates)

    @property
    def l0(self) -> float:
        """Mean number of features that are on at a position: the L0 that a perfect dictionary has."""
        return float(self.firing_rates.sum())

    def sequences(self, n: int, context: int, generator: torch.Generator) -> Sample:
        """n documents of `context` positions: x [n, T, D], latents [n, T, P].

        Args:
            n: documents; independent of one another.
            context: T, positions of each.
            generator: where the randomness comes from, and the device that the sample is made on.
        """
        drawn, device = self.draw(n, context, generator), generator.device
        deviation_nTP = torch.randn(drawn.on_nTP.shape, generator=generator, device=device)
        magnitude_nTP = (1 + self.spread * deviation_nTP).clamp_min(SMALLEST_MAGNITUDE) * self.magnitudes.to(device)
        latents_nTP = drawn.on_nTP * magnitude_nTP
        noise_nTD = torch.randn(n, context, self.d_model, generator=generator, device=device)
        x_nTD = latents_nTP @ self.directions.to(device) + self.noise * noise_nTD
        return Sample(x_nTD, latents_nTP, drawn.domain_n)

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """n independent rows: x [n, D], latents [n, P]; a temporal source gives windows [n, W, ...] instead."""
        sample = self.sequences(n, 1, generator)
        return Sample(sample.x[:, 0], sample.latents[:, 0], sample.domain)


def bernoulli(
    probability: float | Float[Tensor, "..."], *shape: int, generator: torch.Generator
) -> Bool[Tensor, "..."]:
    """Independent coins that show True with the given probability."""
    if isinstance(probability, Tensor):
        probability = probability.to(generator.device)
    return torch.rand(shape, generator=generator, device=generator.device) < probability


def exclusive_children(
    parents_nTp: Bool[Tensor, "n T p"], p_child: float, children: int, generator: torch.Generator
) -> Bool[Tensor, "n T pC"]:
    """At most one child a parent that is on: some child with probability `p_child`, each equally likely."""
    shape = parents_nTp.shape
    has_nTp = bernoulli(p_child, *shape, generator=generator) & parents_nTp
    which_nTp = torch.randint(0, children, shape, generator=generator, device=generator.device)
    children_nTpC = torch.zeros(*shape, children, dtype=torch.bool, device=generator.device)
    return children_nTpC.scatter_(3, which_nTp[..., None], has_nTp[..., None]).flatten(2)


def family(parents: int, children: int) -> Family:
    """Parents first, then the children of the first parent, of the second, and so on."""
    first = torch.arange(parents)
    return Family(first, parents + first[:, None] * children + torch.arange(children))
