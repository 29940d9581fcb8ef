"""What the kernels offer to the rest of training; each function picks its implementation by where the tensors are."""

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.kernels import dense, plain


class Selected(NamedTuple):
    """Active latents of B rows in CSR order: rows ascending, latents ascending within a row."""

    values_n: Tensor
    """[n] float32 pre-activations, not rectified"""
    features_n: Tensor
    """[n] int64"""
    offsets: Tensor
    """[B + 1] int64: the entries of row b are offsets[b] : offsets[b + 1]"""


@runtime_checkable
class _Kernels(Protocol):
    """One implementation of the sparse operations; `plain` says what each does."""

    def top_k(self, x_BD: Tensor, w_FD: Tensor, bias_F: Tensor, k: int) -> tuple[Tensor, Tensor]: ...

    def top_n(
        self, x_BD: Tensor, w_FD: Tensor, bias_F: Tensor, n: int, guess: float
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def gather_sum(
        self, values_n: Tensor, features_n: Tensor, offsets: Tensor, w_FD: Tensor, bias_D: Tensor
    ) -> Tensor: ...

    def gather_dot(self, features_n: Tensor, offsets: Tensor, w_FD: Tensor, x_BD: Tensor) -> Tensor: ...

    def scatter_sum(
        self, values_n: Tensor, features_n: Tensor, offsets: Tensor, x_BD: Tensor, d_sae: int
    ) -> tuple[Tensor, Tensor]: ...

    def from_dense(self, f_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


def select_top_k(
    x_BD: Float[Tensor, "B D"], w_enc_DF: Float[Tensor, "D F"], b_enc_F: Float[Tensor, " F"], k: int
) -> Selected:
    """The k largest pre-activations x W_enc + b_enc of each row, exactly those of the product; no gradient.

    Of equal ones any may be chosen. In a row that is not finite, or has a pre-activation that is not, all k are NaN.
    """
    with torch.no_grad():
        values_Bk, features_Bk = _kernels(x_BD).top_k(x_BD, w_enc_DF.T, b_enc_F, k)
        offsets = torch.arange(0, values_Bk.numel() + 1, k, device=x_BD.device)
        return Selected(values_Bk.flatten(), features_Bk.flatten(), offsets)


def select_top_n(
    x_BD: Float[Tensor, "B D"], w_enc_DF: Float[Tensor, "D F"], b_enc_F: Float[Tensor, " F"], n: int, guess: float
) -> Selected:
    """The n largest positive pre-activations of the whole batch (BatchTopK: n = B k), or all of them; no gradient.

    Args:
        guess: about how large the smallest of them is, say from the last step. It changes the time, never the result;
            any number will do, also inf or NaN.

    A row that is not finite has one entry beyond the n, NaN at latent 0.
    """
    with torch.no_grad():
        return Selected(*_kernels(x_BD).top_n(x_BD, w_enc_DF.T, b_enc_F, n, guess))


def sparse_from_dense(f_BF: Float[Tensor, "B F"]) -> Selected:
    """The positive entries of dense codes; differentiable in the values.

    On a CPU this and a sparse decode, forward and backward, beat the dense products below a density of about 15 %:
    2× at 10 %, 3× at 5 %, 9× at 1 % (d 512 to 768, F 4096 to 12288).
    """
    return Selected(*_kernels(f_BF).from_dense(f_BF))


def encode(
    x_BD: Float[Tensor, "B D"], w_enc_DF: Float[Tensor, "D F"], b_enc_F: Float[Tensor, " F"], selected: Selected
) -> Float[Tensor, " n"]:
    """relu of the selected pre-activations of these inputs, with gradients for x, W_enc and b_enc.

    Entries that are not positive get no gradient. The values are taken from `selected`, not computed again.
    """
    values_n: Tensor = _Encode.apply(x_BD, w_enc_DF, b_enc_F, *selected)  # type: ignore[no-untyped-call]
    return values_n


def decode(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_dec_FD: Float[Tensor, "F D"],
    b_dec_D: Float[Tensor, " D"],
) -> Float[Tensor, "B D"]:
    """x̂ = f W_dec + b_dec from sparse codes f, with gradients for the values, W_dec and b_dec."""
    x_hat_BD: Tensor = _Decode.apply(values_n, features_n, offsets, w_dec_FD, b_dec_D)  # type: ignore[no-untyped-call]
    return x_hat_BD


def gather_sum(
    values_n: Float[Tensor, " n"],
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
) -> Float[Tensor, "B D"]:
    """Σ over a row's entries of value · w[latent], for every row; no gradient."""
    kernels = _kernels(w_FD, len(values_n), len(offsets) - 1, len(w_FD))
    return kernels.gather_sum(values_n, features_n, offsets, w_FD, w_FD.new_zeros(w_FD.shape[1]))


def gather_dot(
    features_n: Int64[Tensor, " n"],
    offsets: Int64[Tensor, " b"],
    w_FD: Float[Tensor, "F D"],
    x_BD: Float[Tensor, "B D"],
) -> Float[Tensor, " n"]:
    """x[row] · w[latent] of every entry; no gradient."""
    return _kernels(w_FD, len(features_n), len(x_BD), len(w_FD)).gather_dot(features_n, offsets, w_FD, x_BD)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, w_DF: Tensor, bias_F: Tensor, values_n: Tensor, features_n: Tensor, offsets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_BD, w_DF, values_n, features_n, offsets)
        return values_n.relu()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_n: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, w_DF, values_n, features_n, offsets = ctx.saved_tensors
        kernels = _kernels(x_BD, len(values_n), len(x_BD), w_DF.shape[1])
        grad_n = torch.where(values_n > 0, grad_n, 0)
        grad_x_BD = grad_w_DF = grad_bias_F = None
        if ctx.needs_input_grad[0]:
            none_D = x_BD.new_zeros(x_BD.shape[1])
            grad_x_BD = kernels.gather_sum(grad_n, features_n, offsets, w_DF.T, none_D)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_w_FD, grad_bias_F = kernels.scatter_sum(grad_n, features_n, offsets, x_BD, w_DF.shape[1])
            grad_w_DF = grad_w_FD.T
        return grad_x_BD, grad_w_DF, grad_bias_F, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values_n: Tensor, features_n: Tensor, offsets: Tensor, w_FD: Tensor, bias_D: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values_n, features_n, offsets, w_FD)
        kernels = _kernels(w_FD, len(values_n), len(offsets) - 1, len(w_FD))
        return kernels.gather_sum(values_n, features_n, offsets, w_FD, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_n, features_n, offsets, w_FD = ctx.saved_tensors
        kernels = _kernels(w_FD, len(values_n), len(grad_BD), len(w_FD))
        grad_n = grad_w_FD = None
        if ctx.needs_input_grad[0]:
            grad_n = kernels.gather_dot(features_n, offsets, w_FD, grad_BD)
        if ctx.needs_input_grad[3]:
            grad_w_FD, _ = kernels.scatter_sum(values_n, features_n, offsets, grad_BD, len(w_FD))
        return grad_n, None, None, grad_w_FD, grad_BD.sum(0) if ctx.needs_input_grad[4] else None


def compiled_for(tensor: Tensor) -> bool:
    """Whether compiled kernels work on such tensors here."""
    return tensor.is_cpu and tensor.dtype == torch.float32 and _has_numba()


def _kernels(tensor: Tensor, entries: int = 0, rows: int = 0, d_sae: int = 0) -> _Kernels:
    """The implementation for tensors like this one, and for so many entries of [rows, d_sae] codes."""
    if compiled_for(tensor):
        from train.kernels import cpu

        return cpu
    if dense.pays(entries, rows, d_sae, tensor.device):
        return dense
    if tensor.is_cuda and tensor.dtype == torch.float32 and _has_triton():
        from train.kernels import triton_sparse

        return triton_sparse
    return plain


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
