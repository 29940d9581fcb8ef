"""The sparse operations on the CPU: those of `plain` by compiled kernels on all threads, with sums in a fixed order."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.kernels import buffers, compiled
from train.kernels.plain import from_dense
from train.kernels.selection import top_k
from train.kernels.selection_batch import top_n
from train.kernels.threads import share

__all__ = ["from_dense", "gather_dot", "gather_sum", "scatter_sum", "top_k", "top_n"]

_ROWS = 32
_LATENTS = 256


def gather_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    bias_D: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """out[b] = bias + Σ over b's entries of value · w[latent]."""
    arrays = _arrays(values_n, features_n, offsets, w_FD, bias_D)
    out_BD = np.empty((len(offsets) - 1, w_FD.shape[1]), np.float32)
    share(lambda start, stop: compiled.gather_sum(*arrays, out_BD, start, stop), len(out_BD), _ROWS)
    return torch.from_numpy(out_BD)


def gather_dot(
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    x_BD: Float[Tensor, "B D"],
) -> Float[Tensor, " n"]:
    """x[row] · w[latent] of each entry."""
    arrays = _arrays(features_n, offsets, w_FD, x_BD)
    out_n = np.empty(len(features_n), np.float32)
    share(lambda start, stop: compiled.gather_dot(*arrays, out_n, start, stop), len(x_BD), _ROWS)
    return torch.from_numpy(out_n)


def scatter_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    x_BD: Float[Tensor, "B D"],
    d_sae: int,
) -> tuple[Float[Tensor, "F D"], Float[Tensor, " F"]]:
    """out[f] = Σ over f's entries of value · x[row], and the sum of the values."""
    values, features, starts_of_rows, x = _arrays(values_n, features_n, offsets, x_BD)
    starts = np.empty(d_sae + 1, np.int64)
    entries_n, rows_n = np.empty(len(features), np.int64), np.empty(len(features), np.int64)
    compiled.transpose(features, starts_of_rows, starts, entries_n, rows_n)
    out_FD, out_F = buffers.take((d_sae, x.shape[1]), np.dtype(np.float32)), np.empty(d_sae, np.float32)

    def work(start: int, stop: int) -> None:
        compiled.scatter_sum(values, starts, entries_n, rows_n, x, out_FD, out_F, start, stop)

    share(work, d_sae, _LATENTS)
    return torch.from_numpy(out_FD), torch.from_numpy(out_F)


def _arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(one.detach().contiguous().numpy() for one in tensors)
