"""What tells two groups of latents apart: a log ratio for each latent, and the groups that follow from it.

Shapes: B rows, F d_sae, n entries, R random directions, D d_model.
"""

import math
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from train import kernels
from train.codes import Code

RATE_FLOOR: Final = 1e-4
"""Added to firing rates, so that a latent which never fires belongs nowhere."""
COMPANY: Final = 0.1
"""Share of the mean co-activation below which a latent's company is noise."""
EXTREME: Final = 0.1
ROUNDS: Final = 10
"""Of the power iteration."""


def domain_counts(code: Code, first_B: Bool[Tensor, " B"]) -> tuple[Float[Tensor, "2 F"], Float[Tensor, " 2"]]:
    """How often each latent fired in the rows of the first domain, and of the others; how many rows each has."""
    values_n, features_n, _ = code.entries
    other_n = (~first_B)[code.rows].long()
    counts = values_n.new_zeros(2 * code.d_sae)
    counts.index_add_(0, other_n * code.d_sae + features_n.long(), (values_n.detach() > 0).float())
    rows_2 = torch.stack([first_B.sum(), (~first_B).sum()]).float()
    return counts.view(2, -1), rows_2


def rate_ratio(rates_2F: Float[Tensor, "2 F"]) -> Float[Tensor, " F"]:
    """Log of the firing rate in the first domain over that in the second."""
    first_F, second_F = (rates_2F + RATE_FLOOR).log()
    ratio_F: Tensor = first_F - second_F
    return ratio_F


def co_activation(code: Code, directions_FR: Float[Tensor, "F R"]) -> Float[Tensor, "F R"]:
    """Rows of the F × F co-activation matrix ZᵀZ / B, its diagonal 0, on random directions without being formed.

    The diagonal would drown the company that a latent keeps in its own activity.
    """
    values_n, features_n, offsets = code.entries
    none_R = directions_FR.new_zeros(directions_FR.shape[1])
    projected_BR = kernels.decode(values_n, features_n, offsets, directions_FR, none_R)
    rows_FR = torch.zeros_like(directions_FR)
    others_nR = projected_BR[code.rows] - values_n[:, None] * directions_FR[features_n.long()]
    rows_FR.index_add_(0, features_n.long(), values_n[:, None] * others_nR)
    return rows_FR / code.n_rows


def cluster_ratio(rows_FR: Float[Tensor, "F R"], axis_R: Float[Tensor, " R"]) -> tuple[Tensor, Tensor]:
    """Where each latent's company lies between two extremes, as a log ratio; and the axis that it is measured along.

    The axis is the first principal one of the rows' directions, sought from where it lay before, so that its ends keep
    their names; `EXTREME` of the latents lie beyond ratios of 4 and 1/4. Latents with next to no company have ratio 1.
    """
    length_F1 = rows_FR.norm(dim=1, keepdim=True)
    counts_F1 = length_F1 > COMPANY * length_F1.mean()
    unit_FR = normalize(rows_FR, dim=1)
    apart_FR = (unit_FR - (unit_FR * counts_F1).sum(0) / counts_F1.sum().clamp_min(1)) * counts_F1
    if not axis_R.any():
        axis_R = apart_FR[apart_FR.square().sum(1).argmax()]
    for _ in range(ROUNDS):
        axis_R = normalize(apart_FR.T @ (apart_FR @ axis_R), dim=0)
    along_F = apart_FR @ axis_R
    extreme = along_F.abs().topk(max(1, round(EXTREME * len(along_F)))).values[-1]
    return math.log(4) * along_F / extreme.clamp_min(1e-12), axis_R


def names_kept(now_F: Int[Tensor, " F"], was_F: Int[Tensor, " F"]) -> Float[Tensor, ""]:
    """−1 where two clusters found anew share more latents with each other's predecessors than with their own, else 1.

    Of two groups this is the matching of largest overlap, so that what belongs to a group stays with its latents.
    """
    both_F = (now_F > 0) & (was_F > 0)
    return torch.where((both_F & (now_F != was_F)).sum() > (both_F & (now_F == was_F)).sum(), -1.0, 1.0)


def regroup(ratio_F: Float[Tensor, " F"], group_F: Int[Tensor, " F"], enter: float, leave: float) -> Int[Tensor, " F"]:
    """The new group of each latent, 1, 2 or 0 for neither, with hysteresis."""
    side_F = torch.where(ratio_F > 0, 1, 2)
    stays_F = (side_F == group_F) & (ratio_F.abs() >= math.log(leave))
    return torch.where(stays_F | (ratio_F.abs() > math.log(enter)), side_F, 0)
