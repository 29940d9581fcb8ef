"""Group biases: a part of the reconstruction for each group of latents, by the group's share of a row's activation.

    x̂ += Σ_g m_g b_g,   m_g = Σ_{i∈g} z_i / Σ_i z_i without a gradient, 0 where nothing is on

What a group has in common lies in b_g, so that its latents need not repeat it. Latents of no group (0) count in the
denominator alone: b_dec stands for what all rows share.
Source: "Orthogonal knowledge separation" as specified for this project ("group-specific biases with shared weights").
Shapes: B rows, F d_sae, D d_model, G groups, H = G + 1 groups and, first, the latents of none.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train import kernels
from train.codes import Code


def membership(group_of_F: Int[Tensor, " F"], groups: int) -> Float[Tensor, "F H"]:
    """1 where a latent is in a group."""
    return (group_of_F[:, None] == torch.arange(groups + 1, device=group_of_F.device)).float()


@torch.no_grad()
def amounts(code: Code, group_of_F: Int[Tensor, " F"], groups: int) -> Float[Tensor, "B H"]:
    """How much of each row's activation is of each group; [B, F] is never made of a sparse code."""
    if not code.is_sparse:
        return code.dense @ membership(group_of_F, groups).to(code.dense)
    values_n, features_n, offsets = code.entries
    return kernels.gather_sum(values_n, features_n, offsets, membership(group_of_F, groups).to(values_n))


def shares(amounts_BH: Float[Tensor, "B H"]) -> Float[Tensor, "B G"]:
    """m: of all activation."""
    total_B1 = amounts_BH.sum(1, keepdim=True)
    return amounts_BH[:, 1:] / total_B1.clamp_min(torch.finfo(total_B1.dtype).tiny)


def added(
    x_hat_BD: Float[Tensor, "B D"], amounts_BH: Float[Tensor, "B H"], bias_GD: Float[Tensor, "G D"]
) -> Float[Tensor, "B D"]:
    """x̂ + Σ_g m_g b_g."""
    return torch.addmm(x_hat_BD, shares(amounts_BH), bias_GD)
