"""The sparse operations by dense matrix products: for GPUs, where tensor cores win once the codes are dense enough."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.kernels import products
from train.kernels.plain import from_dense, rows_of, top_k, top_n

__all__ = ["from_dense", "gather_dot", "gather_sum", "pays", "scatter_sum", "top_k", "top_n"]


def pays(entries: int, rows: int, d_sae: int, device: torch.device) -> bool:
    """Whether dense products should take the place of sparse ones.

    By arithmetic, not yet measured (`benchmarks/kernels.py` does it): on an H100 or H200 a gathered entry moves 4 D
    bytes at about 3 TB/s, an entry of the dense product costs 2 D operations at about 500 TFLOP/s, so they meet at a
    density of 0.3 %: k 320 of 18432 (1.7 %) is dense, k 64 of 65536 (0.1 %) is sparse. On a CPU the compiled sparse
    kernels win up to 15 %.
    """
    return device.type == "cuda" and 300 * entries > rows * d_sae


def gather_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    bias_D: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """out[b] = bias + Σ over b's entries of value · w[latent]."""
    return products.addmm(bias_D, _codes(values_n, features_n, offsets, len(w_FD)), w_FD)


def gather_dot(
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    x_BD: Float[Tensor, "B D"],
) -> Float[Tensor, " n"]:
    """x[row] · w[latent] of each entry."""
    return products.mm(x_BD, w_FD.T)[rows_of(offsets, len(features_n)), features_n]


def scatter_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    x_BD: Float[Tensor, "B D"],
    d_sae: int,
) -> tuple[Float[Tensor, "F D"], Float[Tensor, " F"]]:
    """out[f] = Σ over f's entries of value · x[row], and the sum of the values."""
    f_BF = _codes(values_n, features_n, offsets, d_sae)
    return products.mm(f_BF.T, x_BD), f_BF.sum(0)


def _codes(values_n: Tensor, features_n: Tensor, offsets: Tensor, d_sae: int) -> Float[Tensor, "B F"]:
    f_BF = values_n.new_zeros(len(offsets) - 1, d_sae)
    return f_BF.index_put_((rows_of(offsets, len(features_n)), features_n), values_n)
