"""`ortho_groups`: knowledge of two kinds in subspaces that do not overlap.

    loss = reconstruction + coeff · min(1, t / ramp) · ‖U₁U₂ᵀ − αE‖²_F / √(F₁ F₂)

U_g are the decoder rows, at norm 1, of the latents that fire more in one domain than in the other; E pairs them one to
one by cosine, so α is the cosine that partners may keep. No F₁ × F₂ object is made:

    ‖U₁U₂ᵀ − αE‖² = ⟨U₁ᵀU₁, U₂ᵀU₂⟩ − 2α Σ_i u₁ᵢ·u₂ᵢ + α² n

Groups are chosen anew every `refresh` steps from firing rates by domain, or by clusters of co-activation where the
cache has no domains (`groups.py`). While a group's condition number is above `condition_max` the term is left out.
Gradients reach the decoder rows of both groups and nothing else. With `biases` each group has a bias of its own too,
x̂ += Σ_g m_g b_g, m_g the group's share of the activation (`train/group_biases.py`), whatever the weight of the term.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties.contrast import on
from train.penalties.grams import cross_squares
from train.penalties.groups import Grouping, GroupsConfig
from train.penalties.pairs import cosine_sum
from train.penalties.penalty import Penalty
from train.rows import Rows
from train.sae import SAE, Forward


@dataclass(frozen=True, kw_only=True)
class OrthoGroupsConfig(GroupsConfig):
    """Settings of `ortho_groups`."""

    coeff: float = 0.03
    every: int = 10
    ramp: int = 1000
    alpha: float = 0.0
    """Cosine that matched latents keep."""
    biases: bool = False
    """Whether each group has a bias of its own."""

    def __post_init__(self) -> None:
        """Check α; a TrainError says what it must be."""
        super().__post_init__()
        if not -1 <= self.alpha <= 1:
            raise TrainError(f"alpha must be between -1 and 1, got {self.alpha}")

    @property
    def group_biases(self) -> int:
        """One for each of the two."""
        return 2 if self.biases else 0


class OrthoGroups(Penalty):
    """Overlap of two groups' decoder rows."""

    config: OrthoGroupsConfig

    def __init__(self, config: OrthoGroupsConfig, sae: SAE, generator: torch.Generator) -> None:
        """No latent is in a group before the first refresh."""
        super().__init__(config, sae, generator)
        clusters = config.by == "clusters"
        self.groups = Grouping(sae, generator, clusters=clusters, enter=config.enter, leave=config.leave)
        self.matched_2n = torch.zeros(2, 0, dtype=torch.int64, device=sae.W_dec.device)
        self.condition, self.rests = sae.W_dec.new_zeros(()), False

    def weight(self, step: int) -> float | Tensor:
        """As usual; 0 while a group's condition number is too high."""
        return 0.0 if self.rests else super().weight(step)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """‖U₁U₂ᵀ − αE‖² / √(F₁F₂); 0 as long as a group is empty."""
        first, second = self.groups.first, self.groups.second
        if not len(first) or not len(second):
            return sae.W_dec.new_zeros(())
        overlap = cross_squares(sae.W_dec, first, second)
        if alpha := self.config.alpha:
            kept = cosine_sum(sae.W_dec, *self.matched_2n)
            overlap = overlap - 2 * alpha * kept + alpha**2 * self.matched_2n.shape[1]
        return overlap.div((len(first) * len(second)) ** 0.5)

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Follow firing rates, or co-activation; choose the groups and look at the condition number where due."""
        first_B = (on(rows.x_BD.device, rows.batch.domain) == self.config.domain).repeat_interleave(rows.window)
        self.groups.observe(sae, forward.code, first_B, step)
        if (step + 1) % self.config.refresh == 0:
            self.groups.refresh()
            if self.config.biases:
                sae.get_buffer("group_of").copy_(self.groups.tensors["group"])
            if self.config.alpha:
                self.matched_2n = self.groups.matched(sae.W_dec)
        due = self.config.condition_max and (step + 1) % self.config.condition_every == 0
        if due and (found := self.groups.conditions(sae.W_dec)):
            self.condition = torch.stack(found).max()
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
