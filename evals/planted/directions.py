"""Planted directions: near-orthogonal unit rows, and rows tilted to a given cosine.

Shapes: P true features, D d_model.
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

STEPS: Final = 200
LR: Final = 1e-2


def near_orthogonal(n_features: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "P D"]:
    """Random unit rows, pushed apart until their cosines are small; exactly orthonormal where P <= D.

    With P > D rows some cosines must be at least sqrt((P - D) / (D (P - 1))) in size (Welch, 1974). Minimising the sum
    of fourth powers of all cosines spreads that evenly: of 112 rows in 64 dimensions, the largest cosine of a row is
    0.10 on average.

    Args:
        n_features: P.
        d_model: D.
        generator: on the CPU, so that every machine plants the same truth.
    """
    start_PD = torch.randn(n_features, d_model, generator=generator)
    if n_features <= d_model:
        columns_DP: Tensor = torch.linalg.qr(start_PD.T).Q
        return columns_DP.T.contiguous()
    with torch.enable_grad():
        free_PD = normalize(start_PD, dim=1).requires_grad_()
        optimizer = torch.optim.Adam([free_PD], lr=LR)
        identity_PP = torch.eye(n_features)
        for _ in range(STEPS):
            unit_PD = normalize(free_PD, dim=1)
            loss = (unit_PD @ unit_PD.T - identity_PP).pow(4).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return normalize(free_PD.detach(), dim=1)


def tilted(
    directions_PD: Float[Tensor, "P D"], rows: Int[Tensor, " n"], towards: Int[Tensor, " n"], cosine: float
) -> Float[Tensor, "P D"]:
    """The same directions, but each of `rows` has exactly this cosine with its partner in `towards`.

    A tilted row keeps what it has orthogonal to its partner, rescaled: u' = c w + sqrt(1 - c²) (u - <u,w> w) / |...|.

    Args:
        directions_PD: unit rows.
        rows: which rows move.
        towards: the partner of each, which stays; not itself one of `rows`.
        cosine: c, from -1 to 1.
    """
    partner_nD = directions_PD[towards]
    moved_nD = directions_PD[rows]
    aside_nD = moved_nD - (moved_nD * partner_nD).sum(1, keepdim=True) * partner_nD
    result_PD = directions_PD.clone()
    result_PD[rows] = cosine * partner_nD + (1 - cosine**2) ** 0.5 * normalize(aside_nD, dim=1)
    return result_PD
