"""The sparse operations in plain PyTorch: what runs on other devices and where numba is missing, and the reference.

Shapes: n entries in CSR order, those of row b at offsets[b] : offsets[b + 1], ascending by latent within a row.
"""

from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from train.kernels import products

_AT_ONCE: Final = 2**14
"""Entries whose two vectors are gathered at once: 300 MB at d 2304."""


def top_k(
    x_BD: Float[Tensor, "B D"], w_FD: Float[Tensor, "F D"], bias_F: Float[Tensor, " F"], k: int
) -> tuple[Float[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """The k largest pre-activations of each row and their latents; all NaN where one of them is not finite."""
    values_Bk, features_Bk = torch.topk(products.addmm(bias_F, x_BD, w_FD.T), k, dim=1, sorted=False)
    features_Bk, order_Bk = features_Bk.sort(dim=1)
    values_Bk = values_Bk.gather(1, order_Bk)
    broken_B1 = ~values_Bk.isfinite().all(dim=1, keepdim=True)
    return (
        values_Bk.masked_fill(broken_B1, torch.nan),
        torch.where(broken_B1, torch.arange(k, device=x_BD.device), features_Bk),
    )


def top_n(
    x_BD: Float[Tensor, "B D"], w_FD: Float[Tensor, "F D"], bias_F: Float[Tensor, " F"], n: int, guess: float
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " b"]]:
    """The n largest positive pre-activations of the batch: values, latents and offsets; `guess` is not needed here.

    A row that is not finite has one entry, NaN at latent 0, beyond the n.
    """
    pre_BF = products.addmm(bias_F, x_BD, w_FD.T)
    broken_B = ~pre_BF.sum(dim=1).isfinite()
    pre_BF.masked_fill_(broken_B[:, None], -torch.inf)
    values_n, places_n = pre_BF.flatten().topk(min(n, pre_BF.numel()), sorted=False)
    places_n = torch.cat((places_n[values_n > 0], broken_B.nonzero().flatten() * len(w_FD))).sort().values
    rows_n = places_n // len(w_FD)
    values_n = pre_BF.flatten()[places_n].masked_fill(broken_B[rows_n], torch.nan)
    return values_n, places_n % len(w_FD), _offsets(rows_n, len(x_BD))


def gather_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    bias_D: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """out[b] = bias + Σ over b's entries of value · w[latent]."""
    return _bags(values_n, features_n, offsets, w_FD).add_(bias_D)


def gather_dot(
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    x_BD: Float[Tensor, "B D"],
) -> Float[Tensor, " n"]:
    """x[row] · w[latent] of each entry."""
    rows_n, out_n = rows_of(offsets, len(features_n)), x_BD.new_empty(len(features_n))
    for start in range(0, len(features_n), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        out_n[part] = (x_BD[rows_n[part]] * w_FD[features_n[part]]).sum(dim=1)
    return out_n


def scatter_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    x_BD: Float[Tensor, "B D"],
    d_sae: int,
) -> tuple[Float[Tensor, "F D"], Float[Tensor, " F"]]:
    """out[f] = Σ over f's entries of value · x[row], and the sum of the values; sums run in a fixed order."""
    features_n, order_n = features_n.sort(stable=True)
    values_n, starts = values_n[order_n], _offsets(features_n, d_sae)
    ones_B1 = x_BD.new_ones(len(x_BD), 1)
    rows_n = rows_of(offsets, len(features_n))[order_n]
    return _bags(values_n, rows_n, starts, x_BD), _bags(values_n, rows_n, starts, ones_B1)[:, 0]


def from_dense(f_BF: Float[Tensor, "B F"]) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " b"]]:
    """The positive entries (and NaN, so that it is not lost) of dense codes."""
    rows_n, features_n = (~(f_BF <= 0)).nonzero(as_tuple=True)
    return f_BF[rows_n, features_n], features_n, _offsets(rows_n, len(f_BF))


def _bags(values_n: Tensor, indices_n: Tensor, offsets: Tensor, table_MD: Tensor) -> Tensor:
    """Weighted sums of rows of a table, without the n gathered rows ever being in memory."""
    if not len(indices_n):
        return table_MD.new_zeros(len(offsets) - 1, table_MD.shape[1])
    return embedding_bag(
        indices_n, table_MD, offsets, mode="sum", per_sample_weights=values_n, include_last_offset=True
    )


def rows_of(offsets: Tensor, n: int) -> Tensor:
    """The row of each entry."""
    rows_B = torch.arange(len(offsets) - 1, device=offsets.device)
    return rows_B.repeat_interleave(offsets.diff(), output_size=n)


def _offsets(rows_n: Tensor, n_rows: int) -> Tensor:
    counts_B = torch.zeros(n_rows + 1, dtype=torch.int64, device=rows_n.device)
    return counts_B.index_add_(0, rows_n + 1, torch.ones_like(rows_n)).cumsum(0)
