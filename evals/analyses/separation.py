"""How far two kinds of knowledge lie apart in a dictionary: in its codes and in what it reconstructs.

Latents belong to a kind by how much more often they fire on it: s_i = log((r_i^A + ε) / (r_i^B + ε)), first group
s > log 2, second s < −log 2, ε half a firing. Groups are chosen on some rows and judged on others. Affinity, principal
angles and cosines of the two groups' decoder rows are in `evals.geometry.group_separation`.
Source: "orthogonal feature learning for knowledge separation", steps 4 and 5, and reference §5.9 of this project.
Shapes: n rows of the first kind (forget), m of the second (retain), F latents, D d_model, g latents of a group.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from sklearn.metrics import roc_auc_score
from torch import Tensor

ENTER: Final = 2.0
"""Ratio of firing rates from which a latent belongs to a kind; as `ortho_groups` has it."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which latents belong to which kind."""

    score_F: Float64[Tensor, " F"]
    """s_i; 0 for latents that never fire."""
    first_g: Int64[Tensor, " g"]
    second_h: Int64[Tensor, " h"]


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How the groups behave on rows that did not choose them."""

    leakage: float
    """Share of the first group in all activation on rows of the second kind: Σ_{i∈G₁} z_i / Σ_i z_i; 0 is none."""
    own: float
    """The same share on rows of its own kind: leakage says little where this is low too."""
    auc: float
    """Probability that a row of the first kind has a larger Σ_i s_i [z_i > 0] than one of the second; 0.5 is chance."""
    residual_signal: float
    """Of the difference of the two kinds' means, how much the reconstruction keeps once the first group is set to 0.

    <u, (x̂_A − x̂_B without G₁)> / |u|², u = mean x_A − mean x_B: 1 is all of it, 0 none.
    """
    kept_signal: float
    """The same with the group in place: how much of the difference the SAE reconstructs at all."""
    retain_fvu_change: float
    """FVU of the second kind's rows without the first group, less that with it: the damage."""


def groups(codes_nF: Float[Tensor, "n F"], codes_mF: Float[Tensor, "m F"], *, enter: float = ENTER) -> Groups:
    """Choose the groups from codes of both kinds.

    Raises:
        ValueError: a kind without rows.
    """
    if not (len(codes_nF) and len(codes_mF)):
        raise ValueError(f"groups need rows of both kinds, got {len(codes_nF)} and {len(codes_mF)}")
    on_nF, on_mF = (codes > 0 for codes in (codes_nF, codes_mF))
    # Half a firing, on the larger scale: a latent seen once on one side is not infinitely specific.
    half = 0.5 / min(len(on_nF), len(on_mF))
    rate_A_F, rate_B_F = on_nF.double().mean(0), on_mF.double().mean(0)
    score_F = ((rate_A_F + half) / (rate_B_F + half)).log()
    bound = math.log(enter)
    return Groups(
        score_F=score_F, first_g=(score_F > bound).nonzero()[:, 0], second_h=(score_F < -bound).nonzero()[:, 0]
    )


def separation(
    chosen: Groups,
    x_nD: Float[Tensor, "n D"],
    codes_nF: Float[Tensor, "n F"],
    x_mD: Float[Tensor, "m D"],
    codes_mF: Float[Tensor, "m F"],
    decode: Callable[[Tensor], Tensor],
) -> Separation:
    """Judge groups on rows that did not choose them.

    Args:
        chosen: of other rows.
        x_nD: rows of the first kind, in the SAE's units.
        codes_nF: their codes.
        x_mD: rows of the second kind.
        codes_mF: their codes.
        decode: reconstructions from codes; it may give more than W_dec's rows, such as biases of groups.

    Raises:
        ValueError: a kind without rows, or an SAE that is silent on all of them.
    """
    total_n, total_m = float(codes_nF.sum(dtype=torch.float64)), float(codes_mF.sum(dtype=torch.float64))
    if not (total_n and total_m):
        raise ValueError("no latent fires on one of the kinds: this SAE says nothing about them")
    score_F = chosen.score_F.float()
    labels = np.r_[np.ones(len(codes_nF)), np.zeros(len(codes_mF))]
    scored = torch.cat([(codes > 0).float() @ score_F for codes in (codes_nF, codes_mF)])
    x_hat_nD, x_hat_mD = decode(codes_nF), decode(codes_mF)
    left_nD, left_mD = (decode(codes.index_fill(1, chosen.first_g, 0)) for codes in (codes_nF, codes_mF))
    u_D = (x_nD.mean(0) - x_mD.mean(0)).double()

    def signal(first_nD: Tensor, second_mD: Tensor) -> float:
        return float((first_nD.mean(0) - second_mD.mean(0)).double() @ u_D / u_D.square().sum())

    return Separation(
        leakage=float(codes_mF[:, chosen.first_g].sum(dtype=torch.float64)) / total_m,
        own=float(codes_nF[:, chosen.first_g].sum(dtype=torch.float64)) / total_n,
        auc=float(roc_auc_score(labels, scored.cpu().numpy())),
        residual_signal=signal(left_nD, left_mD),
        kept_signal=signal(x_hat_nD, x_hat_mD),
        retain_fvu_change=_fvu(x_mD, left_mD) - _fvu(x_mD, x_hat_mD),
    )


def _fvu(x_nD: Tensor, x_hat_nD: Tensor) -> float:
    return float((x_nD - x_hat_nD).square().sum() / (x_nD - x_nD.mean(0)).square().sum())
