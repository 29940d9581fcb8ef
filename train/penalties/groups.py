"""Two groups of latents, chosen anew every so often: those of one domain and those of the others, or two clusters.

Shapes: B rows, F d_sae, R random directions, D d_model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from train.codes import Code
from train.errors import TrainError
from train.penalties import ratios
from train.penalties.penalty import PenaltyConfig
from train.sae import SAE

BY: Final = ("domains", "clusters")
MEMORY: Final = 0.99
"""Decay of the averages of firing rates, and (for each look) of co-activation."""
DIRECTIONS: Final = 256
OBSERVE: Final = 10
"""Steps between two looks at co-activation."""
RIDGE: Final = 1e-6
"""Added to the eigenvalues of decoder rows."""


@dataclass(frozen=True, kw_only=True)
class GroupsConfig(PenaltyConfig):
    """Settings of a penalty between two groups of latents: how they are chosen, and when one is no basis."""

    in_time: ClassVar[tuple[str, ...]] = ("start", "ramp", "condition_every")
    by: str = "domains"
    """`domains`: of the cache's sequences; `clusters`: two clusters of latents that fire together."""
    domain: int = 0
    """Index, among the cache's domains, of the first group's; all others are the second's."""
    refresh: int = 100
    """Steps between two choices."""
    enter: float = 2.0
    """Ratio of firing rates beyond which a latent joins a group."""
    leave: float = 1.5
    """Ratio below which it leaves."""
    condition_max: float = 100.0
    """Effective condition number of a group's decoder rows above which the term rests; 0 is no limit. It can be at most
    √(20 D), 215 at D 2304: eigenvalues that hold 95 % of the energy cannot differ by more."""
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
        if not 1 <= self.leave <= self.enter:
            raise TrainError(f"need 1 <= leave <= enter, got leave={self.leave}, enter={self.enter}")

    @property
    def needs_domains(self) -> bool:
        """Unless clusters take their place."""
        return self.by == "domains"


class Grouping:
    """Which latents are in the first group, which in the second; the rest are shared."""

    def __init__(self, sae: SAE, generator: torch.Generator, *, clusters: bool, enter: float, leave: float) -> None:
        """Begin with nobody in a group."""
        self.clusters, self.enter, self.leave = clusters, enter, leave
        like_FD = sae.W_dec.detach()
        d_sae, wide = len(like_FD), DIRECTIONS if clusters else 0
        directions_FR = torch.randn(d_sae, wide, generator=generator) / max(wide, 1) ** 0.5
        self.tensors = {
            "group": torch.zeros(d_sae, dtype=torch.int64, device=like_FD.device),
            "rates": like_FD.new_zeros(2, 0 if clusters else d_sae),
            "weight": like_FD.new_zeros(2, 1),
            "directions": directions_FR.to(like_FD),
            "co_activation": like_FD.new_zeros(d_sae, wide),
            "axis": like_FD.new_zeros(wide),
            "churn": like_FD.new_zeros(()),
        }
        self._split()

    def _split(self) -> None:
        # Here the device is waited for, once a refresh; until the next one sizes are known.
        self.first, self.second = ((self.tensors["group"] == which).nonzero()[:, 0] for which in (1, 2))

    @torch.no_grad()
    def observe(self, sae: SAE, code: Code, first_B: Bool[Tensor, " B"], step: int) -> None:
        """Take a batch into account; `first_B` says which rows are of the first domain (clusters do not ask)."""
        if not self.clusters:
            fired_2F, rows_2 = map(sae.world.mean, ratios.domain_counts(code, first_B))
            # A domain that no row of the batch comes from keeps its average.
            gain_21 = torch.where(rows_2[:, None] > 0, 1 - MEMORY, 0.0)
            rates_2F = fired_2F / rows_2[:, None].clamp_min(1e-12)
            self.tensors["rates"].mul_(1 - gain_21).add_(gain_21 * rates_2F)
            self.tensors["weight"].mul_(1 - gain_21).add_(gain_21)
        elif step % OBSERVE == 0:
            seen_FR = sae.world.mean(ratios.co_activation(code.detach(), self.tensors["directions"]))
            self.tensors["co_activation"].mul_(MEMORY).add_(seen_FR, alpha=1 - MEMORY)

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose the groups."""
        was_F = self.tensors["group"]
        if self.clusters:
            ratio_F, axis_R = ratios.cluster_ratio(self.tensors["co_activation"], self.tensors["axis"])
            sign = ratios.names_kept(ratios.regroup(ratio_F, was_F, self.enter, self.leave), was_F)
            ratio_F, self.tensors["axis"] = sign * ratio_F, sign * axis_R
        else:
            ratio_F = ratios.rate_ratio(self.tensors["rates"] / self.tensors["weight"].clamp_min(1e-12))
        now_F = self.tensors["group"] = ratios.regroup(ratio_F, was_F, self.enter, self.leave)
        both, either = ((was_F == 1) & (now_F == 1)).sum(), ((was_F == 1) | (now_F == 1)).sum()
        self.tensors["churn"] = 1 - both / either.clamp_min(1)
        self._split()

    def matched(self, w_dec_FD: Float[Tensor, "F D"]) -> Int[Tensor, "2 p"]:
        """Latents of the first group, ascending, and their partners in the second, one to one by cosine.

        The one step that takes n · m numbers of memory for groups of n and m latents, and only with an α.
        """
        i_p, j_p = match(w_dec_FD[self.first], w_dec_FD[self.second])
        i_p, order_p = i_p.sort()
        return torch.stack([self.first[i_p], self.second[j_p[order_p]]])

    def conditions(self, w_dec_FD: Float[Tensor, "F D"]) -> list[Tensor]:
        """Effective condition number of the unit decoder rows of each group that is not empty."""
        return [condition(normalize(w_dec_FD[which], dim=1)) for which in (self.first, self.second) if len(which)]

    def metrics(self) -> dict[str, Tensor]:
        """Sizes, and how much of the first group the last refresh changed (1 − Jaccard index)."""
        sizes = {"first": torch.tensor(len(self.first)), "second": torch.tensor(len(self.second))}
        return sizes | {"churn": self.tensors["churn"]}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved `tensors`."""
        self.tensors = {name: state[name] for name in self.tensors}
        self._split()


def match(
    first_nD: Float[Tensor, "n D"], second_mD: Float[Tensor, "m D"]
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Greedy one-to-one matching by cosine, the largest first: pairs (i, j), min(n, m) of them.

    Pairs that are each other's best among what is left are taken all at once, which is what greed would do in the end.
    """
    left_nm = normalize(first_nD, dim=1) @ normalize(second_mD, dim=1).T
    i_p, j_p = [torch.zeros(0, dtype=torch.int64, device=left_nm.device)], list[Tensor]()
    for _ in range(min(left_nm.shape)):
        best_n, best_m = left_nm.argmax(1), left_nm.argmax(0)
        i = torch.arange(len(best_n), device=left_nm.device)
        mutual_n = (best_m[best_n] == i) & left_nm.amax(1).isfinite()
        i, j = i[mutual_n], best_n[mutual_n]
        if not len(i):
            break
        i_p.append(i)
        j_p.append(j)
        left_nm[i] = -torch.inf
        left_nm[:, j] = -torch.inf
    return torch.cat(i_p), torch.cat([i_p[0], *j_p])


def condition(w_nD: Float[Tensor, "n D"], ridge: float = RIDGE) -> Float[Tensor, ""]:
    """Effective condition number: √(λ₁ / λ_r) of WᵀW + ridge, r the eigenvalues that hold 95 % of the energy."""
    spectrum = torch.linalg.eigvalsh(w_nD.T @ w_nD).flip(0).clamp_min(0) + ridge
    r = (spectrum.cumsum(0) < 0.95 * spectrum.sum()).sum()
    number: Tensor = (spectrum[0] / spectrum[r]).sqrt()
    return number
