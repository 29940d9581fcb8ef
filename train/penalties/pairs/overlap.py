"""What pairs of decoder rows cost: sums of squared positive cosines, each with its own backward.

Autograd would keep every gathered row; here the forward keeps one number a pair, and the backward writes one [F, D]
gradient: that of a list of pairs is a sparse F × F matrix times W_dec, so the kernels of sparse codes do both.
Gradients reach the decoder alone. Cosines are those of the rows as they are, normalised or not.
Shapes: F d_sae, D d_model, P pairs sorted by the first, s sampled rows, m entries a sampled row.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from train import kernels
from train.penalties.pairs.selection import Pairs

_BYTES: Final = {"cpu": 2**20}  # gathered rows at a time: on a CPU what stays in its cache
_BYTES_ELSEWHERE: Final = 2**27
_TINY: Final = 1e-12
_RANDOM_PAIRS: Final = 2**16


def hinge(
    w_dec_FD: Float[Tensor, "F D"],
    pairs: Pairs,
    weight_P: Float[Tensor, " P"] | None = None,
    *,
    floor: float | Float[Tensor, ""] = 0.0,
) -> Float[Tensor, ""]:
    """Σ_p weight_p [cos_p − floor]₊² over pairs sorted by the first; the weights default to the pairs' own."""
    weight_P = pairs.weight_P if weight_P is None else weight_P
    first_P, second_P, _ = pairs
    value: Tensor = _Hinge.apply(w_dec_FD, first_P, second_P, weight_P, floor)  # type: ignore[no-untyped-call]
    return value


def cosine_sum(
    w_dec_FD: Float[Tensor, "F D"], first_P: Int64[Tensor, " P"], second_P: Int64[Tensor, " P"]
) -> Float[Tensor, ""]:
    """Σ_p cos_p over pairs sorted by the first."""
    value: Tensor = _CosineSum.apply(w_dec_FD, first_P, second_P)  # type: ignore[no-untyped-call]
    return value


def gram(
    w_dec_FD: Float[Tensor, "F D"], features_sm: Int64[Tensor, "s m"], values_sm: Float[Tensor, "s m"]
) -> Float[Tensor, ""]:
    """Σ_s Σ_{i≠j} z_si z_sj [cos_ij]₊²: the Gram matrix of each row's active latents, weighed by their product."""
    value: Tensor = _Gram.apply(w_dec_FD, features_sm, values_sm)  # type: ignore[no-untyped-call]
    return value


@torch.no_grad()
def cosines(
    w_dec_FD: Float[Tensor, "F D"], first_P: Int64[Tensor, " P"], second_P: Int64[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """The cosine of each pair, in any order."""
    first_P, order_P = first_P.sort()
    cosine_P = _cosines(w_dec_FD, _norms(w_dec_FD), first_P, second_P[order_P])
    return torch.empty_like(cosine_P).index_copy_(0, order_P, cosine_P)


@torch.no_grad()
def quantile(w_dec_FD: Float[Tensor, "F D"], level: float, generator: torch.Generator) -> Float[Tensor, ""]:
    """A quantile of the cosines of all pairs, from 2¹⁶ random ones."""
    n_rows, device = len(w_dec_FD), w_dec_FD.device
    first_P = torch.randint(n_rows, (_RANDOM_PAIRS,), generator=generator)
    apart_P = torch.randint(1, n_rows, (_RANDOM_PAIRS,), generator=generator)
    second_P = (first_P + apart_P) % n_rows
    return cosines(w_dec_FD, first_P.to(device), second_P.to(device)).quantile(level)


class _Hinge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w_FD: Tensor, first_P: Tensor, second_P: Tensor, weight_P: Tensor, floor: float | Tensor
    ) -> Tensor:
        norm_F = _norms(w_FD)
        cosine_P = _cosines(w_FD, norm_F, first_P, second_P)
        above_P = (cosine_P - floor).clamp_min(0)
        ctx.save_for_backward(w_FD, norm_F, first_P, second_P, cosine_P, 2 * weight_P * above_P)
        return (weight_P * above_P.square()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_FD, norm_F, first_P, second_P, cosine_P, slope_P = ctx.saved_tensors
        return _pulled(w_FD, norm_F, first_P, second_P, cosine_P, grad * slope_P), None, None, None, None


class _CosineSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_FD: Tensor, first_P: Tensor, second_P: Tensor) -> Tensor:
        norm_F = _norms(w_FD)
        cosine_P = _cosines(w_FD, norm_F, first_P, second_P)
        ctx.save_for_backward(w_FD, norm_F, first_P, second_P, cosine_P)
        return cosine_P.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_FD, norm_F, first_P, second_P, cosine_P = ctx.saved_tensors
        return _pulled(w_FD, norm_F, first_P, second_P, cosine_P, grad.expand_as(cosine_P)), None, None


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_FD: Tensor, features_sm: Tensor, values_sm: Tensor) -> Tensor:
        cosine_smm, inverse_sm = _row_cosines(w_FD, features_sm)
        slope_smm = values_sm[:, :, None] * values_sm[:, None] * cosine_smm.clamp_min(0)
        ctx.save_for_backward(w_FD, features_sm, cosine_smm, slope_smm, inverse_sm)
        return (slope_smm * cosine_smm).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        w_FD, features_sm, cosine_smm, slope_smm, inverse_sm = ctx.saved_tensors
        across_smm = slope_smm * inverse_sm[:, :, None] * inverse_sm[:, None]
        along_sm = (slope_smm * cosine_smm).sum(2) * inverse_sm.square()
        across_smm.diagonal(dim1=1, dim2=2).copy_(-along_sm)
        across_smm.mul_(4 * grad)  # every pair stands twice in the matrix, and the square gives another 2
        grad_FD = torch.zeros_like(w_FD)
        for part in _parts(len(features_sm), 2 * features_sm.shape[1] * w_FD.shape[1], w_FD):
            features_n = features_sm[part].flatten()
            grad_smD = torch.bmm(across_smm[part], w_FD[features_sm[part]])
            grad_FD.index_add_(0, features_n, grad_smD.flatten(0, 1))
        return grad_FD, None, None


@torch.no_grad()
def row_cosines(w_dec_FD: Float[Tensor, "F D"], features_sm: Int64[Tensor, "s m"]) -> Float[Tensor, "s m m"]:
    """Cosines of the latents of each row with one another, 0 on the diagonal."""
    return _row_cosines(w_dec_FD, features_sm)[0]


def _row_cosines(w_FD: Tensor, features_sm: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines, and one over the norm of each row's latents."""
    n_rows, most = features_sm.shape
    cosine_smm = w_FD.new_empty(n_rows, most, most)
    for part in _parts(n_rows, most * w_FD.shape[1], w_FD):
        w_smD = w_FD[features_sm[part]]
        torch.bmm(w_smD, w_smD.mT, out=cosine_smm[part])
    inverse_sm = cosine_smm.diagonal(dim1=1, dim2=2).sqrt().clamp_min(_TINY).reciprocal()
    cosine_smm.mul_(inverse_sm[:, :, None]).mul_(inverse_sm[:, None])
    cosine_smm.diagonal(dim1=1, dim2=2).zero_()
    return cosine_smm, inverse_sm


def _cosines(w_FD: Tensor, norm_F: Tensor, first_P: Tensor, second_P: Tensor) -> Tensor:
    """Of pairs sorted by the first."""
    dot_P = kernels.gather_dot(second_P, _offsets(first_P, len(w_FD)), w_FD, w_FD)
    return dot_P / (norm_F[first_P] * norm_F[second_P])


def _offsets(sorted_P: Tensor, n_rows: int) -> Tensor:
    """Where the entries of each row begin, and where the last one's end."""
    return torch.searchsorted(sorted_P, torch.arange(n_rows + 1, device=sorted_P.device))


def _pulled(
    w_FD: Tensor, norm_F: Tensor, first_P: Tensor, second_P: Tensor, cosine_P: Tensor, slope_P: Tensor
) -> Tensor:
    """The decoder's gradient, where the loss has the slope `slope` along each pair's cosine.

    ∂cos/∂w_i = w_j / (|w_i| |w_j|) − cos w_i / |w_i|², and the other way round: a sparse F × F matrix times W.
    """
    across_P = slope_P / (norm_F[first_P] * norm_F[second_P])
    along_P = slope_P * cosine_P
    along_F = torch.zeros_like(norm_F).index_add_(0, first_P, along_P).index_add_(0, second_P, along_P)
    own_F = torch.arange(len(w_FD), device=w_FD.device)
    row_n, order_n = torch.cat([first_P, second_P, own_F]).sort(stable=True)
    other_n = torch.cat([second_P, first_P, own_F])[order_n]
    value_n = torch.cat([across_P, across_P, -along_F / norm_F.square()])[order_n]
    return kernels.gather_sum(value_n, other_n, _offsets(row_n, len(w_FD)), w_FD)


def _norms(w_FD: Tensor) -> Tensor:
    norm_F: Tensor = w_FD.norm(dim=1)
    return norm_F.clamp_min(_TINY)


def _parts(n: int, floats: int, like: Tensor) -> Iterator[slice]:
    """[0, n) in slices of which each gathers a bounded number of bytes, at so many floats an item."""
    step = max(1, _BYTES.get(like.device.type, _BYTES_ELSEWHERE) // (4 * floats))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
