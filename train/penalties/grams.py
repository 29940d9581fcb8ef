"""Sums of squared cosines over all pairs of decoder rows, through D × D Grams: no F × F object, no loop over pairs.

Rows are normalised and multiplied in blocks, forward and backward, so that beside the decoder's gradient nothing of its
size is ever in memory. Shapes: F d_sae, n and m latents, b of a block, D d_model.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

_BYTES: Final = 2**26
"""Of a block of rows in float32: products this large keep any device busy."""
_TINY: Final = 1e-12


def frame_potential(w_dec_FD: Float[Tensor, "F D"]) -> Float[Tensor, ""]:
    """Excess of the frame potential over its least value: 0 is a tight frame, D/F what random rows have on average."""
    d_sae, d_model = w_dec_FD.shape
    squares: Tensor = _GramProduct.apply(w_dec_FD, None, None)  # type: ignore[no-untyped-call]
    excess: Tensor = squares * (d_model / d_sae**2) - 1
    return excess


def cross_squares(
    w_dec_FD: Float[Tensor, "F D"], first_n: Int64[Tensor, " n"], second_m: Int64[Tensor, " m"]
) -> Float[Tensor, ""]:
    """Σ cos² over the pairs of a latent of the first group with one of the second, through the two D × D Grams.

    The groups share no latent.
    """
    squares: Tensor = _GramProduct.apply(w_dec_FD, first_n, second_m)  # type: ignore[no-untyped-call]
    return squares


class _GramProduct(torch.autograd.Function):
    """⟨AᵀA, BᵀB⟩ with its gradients 2 A BᵀB and 2 B AᵀA, of rows at norm 1; without groups A and B are all rows."""

    @staticmethod
    def forward(ctx: Any, w_FD: Tensor, first_n: Tensor | None, second_m: Tensor | None) -> Tensor:
        first_DD = _gram(w_FD, first_n)
        second_DD = first_DD if second_m is None else _gram(w_FD, second_m)
        ctx.save_for_backward(w_FD, first_n, second_m, first_DD, second_DD)
        return (first_DD * second_DD).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        w_FD, first_n, second_m, first_DD, second_DD = ctx.saved_tensors
        if second_m is None:
            return _written(torch.empty_like(w_FD), w_FD, None, first_DD * (4 * grad)), None, None
        grad_FD = _written(torch.zeros_like(w_FD), w_FD, first_n, second_DD * (2 * grad))
        return _written(grad_FD, w_FD, second_m, first_DD * (2 * grad)), None, None


def _gram(w_FD: Tensor, which_n: Tensor | None) -> Tensor:
    """UᵀU of some rows at norm 1."""
    gram_DD = w_FD.new_zeros(w_FD.shape[1], w_FD.shape[1])
    for _, unit_bD, _ in _blocks(w_FD, which_n):
        gram_DD += _product(unit_bD.T, unit_bD)
    return gram_DD


def _written(grad_FD: Tensor, w_FD: Tensor, which_n: Tensor | None, gram_DD: Tensor) -> Tensor:
    """`grad_FD` with the rows of U · gram in their places, taken back through the normalisation."""
    for place, unit_bD, norm_b1 in _blocks(w_FD, which_n):
        pull_bD = _product(unit_bD, gram_DD)
        along_b1 = (pull_bD * unit_bD).sum(1, keepdim=True)
        grad_FD[place] = pull_bD.addcmul_(along_b1, unit_bD, value=-1).div_(norm_b1)
    return grad_FD


def _blocks(w_FD: Tensor, which_n: Tensor | None) -> Iterator[tuple[slice | Tensor, Tensor, Tensor]]:
    """Some rows (default: all) block by block: their place, the rows at norm 1, and their norms."""
    n, step = len(w_FD) if which_n is None else len(which_n), max(1, _BYTES // (4 * w_FD.shape[1]))
    for start in range(0, n, step):
        part = slice(start, start + step)
        place = part if which_n is None else which_n[part]
        rows_bD = w_FD[place]
        norm_b1 = rows_bD.norm(dim=1, keepdim=True).clamp_min(_TINY)
        yield place, rows_bD / norm_b1, norm_b1


def _product(a: Tensor, b: Tensor) -> Tensor:
    # On a GPU in bfloat16, an order of magnitude faster: rounding is random, and each sum runs over thousands of rows.
    product: Tensor = (a.bfloat16() @ b.bfloat16()).to(a.dtype) if a.is_cuda else a @ b
    return product
