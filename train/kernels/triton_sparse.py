"""The sparse operations on CUDA by Triton kernels: those of `plain`, with sums of float32 in a fixed order, no atomics.

A bag is a weighted sum of rows of a table: a row of the batch sums rows of W, a latent's gradient sums rows of x. One
program makes `_COLUMNS` columns of one bag, and programs that run together share columns, so that the slab of the table
that they read may stay in the second-level cache. A heavy bag would keep one program busy long after all others, so the
entries are cut into chunks of `_CHUNK`: those that lie wholly in one bag are summed first, by programs of their own,
and the bag adds these sums to what is left at its two ends. The order of a sum depends on where its bag lies among the
entries, on nothing else. Latents and rows are numbered below 2³¹; offsets into tables may be larger.

The block sizes are by arithmetic, not yet measured: 256 divides the usual d_model, and the eight rows that a program of
two warps reads at once keep 80 kB a multiprocessor on their way, twice what an H200's memory needs to be busy.
"""

from typing import Any, Final, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from train.kernels.plain import from_dense, rows_of, top_k, top_n

__all__ = ["from_dense", "gather_dot", "gather_sum", "scatter_sum", "top_k", "top_n"]

_CHUNK: Final = 128
_ENTRIES: Final = 8
_COLUMNS: Final = 256
_WARPS: Final = 2
_SPAN: Final = 256
"""Values that one program of `_total_kernel` adds at once."""


def gather_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    bias_D: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """out[b] = bias + Σ over b's entries of value · w[latent]."""
    with torch.cuda.device_of(w_FD):
        return _sum_bags(values_n, features_n, offsets, w_FD, bias_D)


def gather_dot(
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    x_BD: Float[Tensor, "B D"],
) -> Float[Tensor, " n"]:
    """x[row] · w[latent] of each entry; entries are shared out evenly, whatever the lengths of the rows."""
    n, d_model = len(features_n), x_BD.shape[1]
    out_n = x_BD.new_empty(n)
    with torch.cuda.device_of(x_BD):
        inputs = _contiguous(features_n, rows_of(offsets, n), w_FD, x_BD)
        if n:
            _dot_kernel[(-(-n // _ENTRIES),)](out_n, *inputs, n, d_model, **_block(d_model))
    return out_n


def scatter_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    x_BD: Float[Tensor, "B D"],
    d_sae: int,
) -> tuple[Float[Tensor, "F D"], Float[Tensor, " F"]]:
    """out[f] = Σ over f's entries of value · x[row], and the sum of the values."""
    with torch.cuda.device_of(x_BD):
        sorted_n, order_n = features_n.int().sort(stable=True)  # half the passes of a sort of int64
        starts = torch.searchsorted(sorted_n, torch.arange(d_sae + 1, dtype=torch.int32, device=sorted_n.device))
        values_n, rows_n = values_n[order_n], rows_of(offsets, len(order_n))[order_n]
        out_F = x_BD.new_empty(d_sae)
        if d_sae:
            _total_kernel[(d_sae,)](out_F, values_n, starts, SPAN=_SPAN, num_warps=1)
        return _sum_bags(values_n, rows_n, starts, x_BD, None), out_F


def _sum_bags(values_n: Tensor, indices_n: Tensor, offsets: Tensor, table_MD: Tensor, bias_D: Tensor | None) -> Tensor:
    """out[b] = bias + Σ over the entries offsets[b] : offsets[b + 1] of value · table[index]."""
    values_n, indices_n, offsets, table_MD = _contiguous(values_n, indices_n, offsets, table_MD)
    entries = values_n, indices_n, table_MD, table_MD.new_zeros(table_MD.shape[1])
    firsts_C = torch.arange(0, len(values_n) // _CHUNK * _CHUNK, _CHUNK, device=offsets.device)
    ends_C = offsets[torch.searchsorted(offsets, firsts_C, right=True)]  # of the bags that the chunks begin in
    lasts_C = torch.where(ends_C < firsts_C + _CHUNK, firsts_C, firsts_C + _CHUNK)
    sums_CD = _each_bag(firsts_C, lasts_C, entries, None, None)
    return _each_bag(offsets[:-1], offsets[1:], entries, sums_CD, None if bias_D is None else bias_D.contiguous())


def _each_bag(
    firsts: Tensor, lasts: Tensor, entries: tuple[Tensor, ...], sums_CD: Tensor | None, bias_D: Tensor | None
) -> Tensor:
    """Sum of the entries first : last of each bag; those of whole chunks are taken from `sums_CD`."""
    d_model = entries[-1].numel()
    out_BD, block = entries[-1].new_empty(len(firsts), d_model), _block(d_model)
    if out_BD.numel():
        grid = len(out_BD), -(-d_model // block["COLUMNS"])
        _bag_kernel[grid](out_BD, firsts, lasts, *entries, sums_CD, bias_D, d_model, CHUNK=_CHUNK, **block)
    return out_BD


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(one.contiguous() for one in tensors)


def _block(d_model: int) -> dict[str, Any]:
    """What one program works on at once."""
    columns = min(_COLUMNS, triton.next_power_of_2(d_model))
    return {"ENTRIES": _ENTRIES, "COLUMNS": columns, "num_warps": _WARPS}


@triton.jit
@no_type_check
def _bag_kernel(
    out_BD,
    firsts,
    lasts,
    values_n,
    indices_n,
    table_MD,
    zeros_D,
    sums_CD,
    bias_D,
    d_model,
    CHUNK: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Columns of one bag: its entries before its first and behind its last whole chunk, then the sums of its chunks.

    Where there is no entry a row of zeros is read: were the loads of eight rows masked apart, the assembler would run
    out of predicates and put one behind the other.
    """
    bag = tl.program_id(0).to(tl.int64)
    columns_C = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there_C = columns_C < d_model
    first, last = tl.load(firsts + bag), tl.load(lasts + bag)
    head, tail = last, last
    if sums_CD is not None:
        head = tl.minimum((first + CHUNK - 1) // CHUNK * CHUNK, last)
        tail = tl.maximum(last // CHUNK * CHUNK, head)
    before, between, entries = (head - first).to(tl.int32), (tail - head).to(tl.int32), (last - first).to(tl.int32)
    sum_EC = tl.full((ENTRIES, COLUMNS), 0.0, tl.float32)
    for start in range(0, entries - between, ENTRIES):
        places_E = start + tl.arange(0, ENTRIES)
        places_E = tl.where(places_E < before, places_E, places_E + between)
        there_E = places_E < entries
        values_E = tl.load(values_n + first + places_E, mask=there_E, other=0.0)
        indices_E = tl.load(indices_n + first + places_E, mask=there_E, other=0)
        rows_E = tl.where(there_E, table_MD + indices_E.to(tl.int32).to(tl.int64) * d_model, zeros_D)
        rows_EC = tl.load(rows_E[:, None] + columns_C[None, :], mask=there_C[None, :], other=0.0)
        sum_EC += values_E[:, None] * rows_EC
    sum_C = tl.sum(sum_EC, 0)
    if sums_CD is not None:
        for chunk in range(head // CHUNK, tail // CHUNK):
            sum_C += tl.load(sums_CD + chunk * d_model + columns_C, mask=there_C, other=0.0)
    if bias_D is not None:
        sum_C += tl.load(bias_D + columns_C, mask=there_C, other=0.0)
    tl.store(out_BD + bag * d_model + columns_C, sum_C, mask=there_C)


@triton.jit
@no_type_check
def _total_kernel(out_F, values_n, offsets, SPAN: tl.constexpr):
    """Sum of each bag's values."""
    bag = tl.program_id(0).to(tl.int64)
    first, last = tl.load(offsets + bag), tl.load(offsets + bag + 1)
    sum_S = tl.full((SPAN,), 0.0, tl.float32)
    for start in range(first, last, SPAN):
        places_S = start + tl.arange(0, SPAN)
        sum_S += tl.load(values_n + places_S, mask=places_S < last, other=0.0)
    tl.store(out_F + bag, tl.sum(sum_S, 0))


@triton.jit
@no_type_check
def _dot_kernel(out_n, features_n, rows_n, w_FD, x_BD, n, d_model, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """x[row] · w[latent] of `ENTRIES` entries."""
    places_E = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there_E = places_E < n
    places_E = tl.minimum(places_E, n - 1)
    w_starts_E = tl.load(features_n + places_E).to(tl.int32).to(tl.int64) * d_model
    x_starts_E = tl.load(rows_n + places_E).to(tl.int32).to(tl.int64) * d_model
    sum_EC = tl.full((ENTRIES, COLUMNS), 0.0, tl.float32)
    for start in range(0, d_model, COLUMNS):
        columns_C = start + tl.arange(0, COLUMNS)
        there_1C = (columns_C < d_model)[None, :]
        w_EC = tl.load(w_FD + w_starts_E[:, None] + columns_C[None, :], mask=there_1C, other=0.0)
        x_EC = tl.load(x_BD + x_starts_E[:, None] + columns_C[None, :], mask=there_1C, other=0.0)
        sum_EC += w_EC * x_EC
    tl.store(out_n + places_E, tl.sum(sum_EC, 1), mask=there_E)
