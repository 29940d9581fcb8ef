"""Parents with mutually exclusive children: the structure in which sparse dictionaries absorb.

A dictionary saves one active latent by writing "parent and child" into the child's latent and silencing the parent's
there (Chanin et al. 2024, arXiv 2409.14507). Here the parent is known, so that this can be counted.
Shapes: n samples, T positions, P true features, D d_model, p parents, C children a parent.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from evals.planted.directions import tilted
from evals.planted.source import Drawn, Family, Planted, bernoulli, exclusive_children, family


@dataclass(frozen=True, kw_only=True)
class Hierarchy(Planted):
    """Truths in the order parents, children (parent by parent), independent features."""

    parents: int = 16
    children: int = 4
    """Of each parent; at most one is on."""
    independents: int = 32
    p_parent: float = 0.15
    p_child: float = 0.6
    """That a parent which is on has one of its children on."""
    p_independent: float = 0.05
    child_magnitude: float = 1.0
    child_cosine: float = 0.0
    """Cosine of every child's direction with its parent's; 0 leaves the near-orthogonal directions as they are.

    0.3 is the counter-example to all orthogonality penalties: there the truth itself is not orthogonal.
    """

    def __post_init__(self) -> None:
        """Refuse impossible sizes and cosines.

        Raises:
            ValueError: naming the field.
        """
        super().__post_init__()
        if min(self.parents, self.children) < 1 or self.independents < 0:
            raise ValueError(
                "need parents >= 1, children >= 1 and independents >= 0,"
                f" got {self.parents=}, {self.children=}, {self.independents=}"
            )
        if not -1 < self.child_cosine < 1:
            raise ValueError(f"child_cosine must lie between -1 and 1, got {self.child_cosine}")

    @property
    def family(self) -> Family:
        """Which truths are children of which."""
        return family(self.parents, self.children)

    @property
    def firing_rates(self) -> Float[Tensor, " P"]:
        """Parents, then children, then independent features."""
        child = self.p_parent * self.p_child / self.children
        return torch.tensor(
            [self.p_parent] * self.parents
            + [child] * (self.parents * self.children)
            + [self.p_independent] * self.independents
        )

    @property
    def magnitudes(self) -> Float[Tensor, " P"]:
        """1, and `child_magnitude` for the children."""
        magnitudes_P = torch.ones(self.n_features)
        magnitudes_P[self.family.children.flatten()] = self.child_magnitude
        return magnitudes_P

    @cached_property
    def directions(self) -> Float[Tensor, "P D"]:
        """Near-orthogonal unit rows; the children tilted to their parents if `child_cosine` says so."""
        directions_PD = super().directions
        if not self.child_cosine:
            return directions_PD
        parents_p, children_pC = self.family
        towards = parents_p.repeat_interleave(self.children)
        return tilted(directions_PD, children_pC.flatten(), towards, self.child_cosine)

    def draw(self, n: int, context: int, generator: torch.Generator) -> Drawn:
        """Every position on its own."""
        parents_nTp = bernoulli(self.p_parent, n, context, self.parents, generator=generator)
        children_nTc = exclusive_children(parents_nTp, self.p_child, self.children, generator)
        independents_nTi = bernoulli(self.p_independent, n, context, self.independents, generator=generator)
        return Drawn(torch.cat([parents_nTp, children_nTc, independents_nTi], dim=-1).float())
