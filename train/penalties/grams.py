"""Sums of squared cosines over all pairs of rows, through D × D Grams: no F × F object, no loop over pairs.

Shapes: F d_sae, n and m latents, D d_model.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def frame_potential(w_dec_FD: Float[Tensor, "F D"]) -> Float[Tensor, ""]:
    """Excess of the frame potential over its least value: 0 is a tight frame, D/F what random rows have on average."""
    d_sae, d_model = w_dec_FD.shape
    squares: Tensor = _GramSquares.apply(normalize(w_dec_FD, dim=1))  # type: ignore[no-untyped-call]
    excess: Tensor = squares * (d_model / d_sae**2) - 1
    return excess


class _GramSquares(torch.autograd.Function):
    """‖UᵀU‖²_F with its gradient 4 U (UᵀU): one product of 2FD² each way, where autograd would take two back."""

    @staticmethod
    def forward(ctx: Any, u_FD: Tensor) -> Tensor:
        gram_DD = _product(u_FD.T, u_FD)
        ctx.save_for_backward(u_FD, gram_DD)
        return gram_DD.square().sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        u_FD, gram_DD = ctx.saved_tensors
        along_FD: Tensor = _product(u_FD, gram_DD) * (4 * grad)
        return along_FD


def cross_squares(first_nD: Float[Tensor, "n D"], second_mD: Float[Tensor, "m D"]) -> Float[Tensor, ""]:
    """‖first secondᵀ‖²_F through the two D × D Grams."""
    squares: Tensor = _CrossSquares.apply(first_nD, second_mD)  # type: ignore[no-untyped-call]
    return squares


class _CrossSquares(torch.autograd.Function):
    """⟨AᵀA, BᵀB⟩ with its gradients 2 A BᵀB and 2 B AᵀA: a product a group each way, where autograd takes two back."""

    @staticmethod
    def forward(ctx: Any, first_nD: Tensor, second_mD: Tensor) -> Tensor:
        first_DD, second_DD = _product(first_nD.T, first_nD), _product(second_mD.T, second_mD)
        ctx.save_for_backward(first_nD, second_mD, first_DD, second_DD)
        return (first_DD * second_DD).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        first_nD, second_mD, first_DD, second_DD = ctx.saved_tensors
        return _product(first_nD, second_DD) * (2 * grad), _product(second_mD, first_DD) * (2 * grad)


def _product(a: Tensor, b: Tensor) -> Tensor:
    # On a GPU in bfloat16, an order of magnitude faster: rounding is random, and each sum runs over thousands of rows.
    product: Tensor = (a.bfloat16() @ b.bfloat16()).to(a.dtype) if a.is_cuda else a @ b
    return product
