"""`ortho_groups`: knowledge of two kinds in subspaces that do not overlap.

    loss = reconstruction + coeff · min(1, t / ramp) · ‖U₁U₂ᵀ − αE‖²_F / √(F₁ F₂)

U_g are the decoder rows, at norm 1, of the latents that fire more in one domain than in the other; E pairs them one to
one by cosine, so α is the cosine that partners may keep. No F₁ × F₂ object is made:

    ‖U₁U₂ᵀ − αE‖² = ⟨U₁ᵀU₁, U₂ᵀU₂⟩ − 2α Σ_i u₁ᵢ·u₂ᵢ + α² n

Groups are chosen anew every `refresh` steps from firing rates by domain, or by clusters of co-activation where the
cache has no domains (`groups.py`). Zero loss needs rank(U₁) + rank(U₂) ≤ D: the term allots subspaces, and where there
is no room it costs reconstruction. While a group's condition number is above `condition_max` the term is left out.
Gradients reach the decoder rows of both groups and nothing else. Group biases x̂ += Σ_g m_g b_g, m_g the group's share
of the activation, are left out: no saved SAE could hold them, for they are not linear in the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from train.errors import TrainError
from train.penalties.contrast import on
from train.penalties.grams import cross_squares
from train.penalties.groups import Grouping, condition, match
from train.penalties.penalty import Penalty, PenaltyConfig
from train.rows import Rows
from train.sae import SAE, Forward

BY: Final = ("domains", "clusters")
RIDGE: Final = 1e-6
"""Added to the eigenvalues."""


@dataclass(frozen=True, kw_only=True)
class OrthoGroupsConfig(PenaltyConfig):
    """Settings of `ortho_groups`."""

    coeff: float = 0.03
    every: int = 10
    ramp: int = 1000
    by: str = "domains"
    """`domains`: of the cache's sequences; `clusters`: two clusters of latents that fire together."""
    domain: int = 0
    """Index, among the cache's domains, of the first group's; all others are the second's."""
    alpha: float = 0.0
    """Cosine that matched latents keep."""
    refresh: int = 100
    enter: float = 2.0
    """Ratio of firing rates beyond which a latent joins a group."""
    leave: float = 1.5
    """Ratio below which it leaves."""
    condition_max: float = 1e3
    """Effective condition number of a group's decoder rows above which the term rests; 0 is no limit."""
    condition_every: int = 1000
    """Steps between two looks at it: it takes the eigenvalues of two D × D matrices."""

    def __post_init__(self) -> None:
        """Check each value.

        Raises:
            TrainError: naming the setting, what it must be and what came.
        """
        super().__post_init__()
        if self.by not in BY:
            raise TrainError(f"by must be one of {', '.join(BY)}, got {self.by!r}")
        if min(self.refresh, self.condition_every) < 1 or min(self.domain, self.condition_max) < 0:
            raise TrainError(
                "need refresh and condition_every >= 1, domain and condition_max >= 0, got"
                f" {self.refresh}, {self.condition_every}, {self.domain}, {self.condition_max}"
            )
        if not 1 <= self.leave <= self.enter or not -1 <= self.alpha <= 1:
            raise TrainError(
                f"need 1 <= leave <= enter and -1 <= alpha <= 1, got {self.leave}, {self.enter}, {self.alpha}"
            )

    @property
    def needs_domains(self) -> bool:
        """Unless clusters take their place."""
        return self.by == "domains"


class OrthoGroups(Penalty):
    """Overlap of two groups' decoder rows."""

    config: OrthoGroupsConfig

    def __init__(self, config: OrthoGroupsConfig, sae: SAE, generator: torch.Generator) -> None:
        """No latent is in a group before the first refresh."""
        super().__init__(config, sae, generator)
        clusters = config.by == "clusters"
        self.groups = Grouping(sae, generator, clusters=clusters, enter=config.enter, leave=config.leave)
        self.matched_2n = torch.zeros(2, 0, dtype=torch.int64, device=sae.W_dec.device)
        self.condition = sae.W_dec.new_zeros(())
        self.rests = False

    def weight(self, step: int) -> float | Tensor:
        """As usual; 0 while a group's condition number is too high."""
        return 0.0 if self.rests else super().weight(step)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """‖U₁U₂ᵀ − αE‖² / √(F₁F₂); 0 as long as a group is empty."""
        first, second = self.groups.first, self.groups.second
        if not len(first) or not len(second):
            return sae.W_dec.new_zeros(())
        overlap: Tensor = cross_squares(normalize(sae.W_dec[first], dim=1), normalize(sae.W_dec[second], dim=1))
        if alpha := self.config.alpha:
            one_nD, other_nD = (normalize(sae.W_dec[which], dim=1) for which in self.matched_2n)
            overlap = overlap - 2 * alpha * (one_nD * other_nD).sum() + alpha**2 * len(one_nD)
        per_pair: Tensor = overlap / (len(first) * len(second)) ** 0.5
        return per_pair

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Follow firing rates, or co-activation; choose the groups and look at the condition number where due."""
        domain_n = on(rows.x_BD.device, rows.batch.domain)
        first_B = (domain_n == self.config.domain).repeat_interleave(rows.window)
        self.groups.observe(sae, forward.code, first_B, step)
        if (step + 1) % self.config.refresh == 0:
            self.groups.refresh()
            first, second = self.groups.first, self.groups.second
            if self.config.alpha and len(first) and len(second):
                i_n, j_n = match(sae.W_dec[first], sae.W_dec[second])
                self.matched_2n = torch.stack([first[i_n], second[j_n]])
        if self.config.condition_max and (step + 1) % self.config.condition_every == 0:
            parts = [sae.W_dec[which] for which in (self.groups.first, self.groups.second) if len(which)]
            if parts:
                self.condition = torch.stack([condition(normalize(part, dim=1), RIDGE) for part in parts]).max()
                self.rests = bool(self.condition > self.config.condition_max)

    def metrics(self) -> dict[str, Tensor]:
        """Sizes, churn, the larger effective condition number, and 1 while the term rests."""
        return self.groups.metrics() | {"condition": self.condition, "rests": torch.tensor(float(self.rests))}

    def state(self) -> dict[str, Tensor]:
        """The groups and all that they are chosen by."""
        own = {"matched": self.matched_2n, "condition": self.condition, "rests": torch.tensor(self.rests)}
        return self.groups.tensors | own

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.groups.load_state(state)
        self.matched_2n, self.condition, self.rests = state["matched"], state["condition"], bool(state["rests"])
