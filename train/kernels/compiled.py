"""Sparse kernels on the CPU, compiled by numba: each works on a range of rows or latents and releases the interpreter.

Entries are in CSR order: those of row b are offsets[b] : offsets[b + 1]. Sums run in the order of the entries whatever
the range, so the result does not depend on how the work is split. Only LLVM's vectorisation reorders the terms of a
dot product, the same way each time.
"""

from typing import Final, no_type_check

import numba
import numpy as np

_compiled: Final = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@_compiled
@no_type_check
def gather_sum(values_n, features_n, offsets, w_FD, bias_D, out_BD, start, stop):
    """out[b] = bias + Σ over b's entries of value · w[feature]: decode, and the gradient of the encoder's input."""
    d_model = w_FD.shape[1]
    for b in range(start, stop):
        out_D = out_BD[b]
        for d in range(d_model):
            out_D[d] = bias_D[d]
        first, last = offsets[b], offsets[b + 1]
        whole = first + (last - first) // 4 * 4
        for n in range(first, whole, 4):
            z0, z1, z2, z3 = values_n[n], values_n[n + 1], values_n[n + 2], values_n[n + 3]
            w0_D, w1_D = w_FD[features_n[n]], w_FD[features_n[n + 1]]
            w2_D, w3_D = w_FD[features_n[n + 2]], w_FD[features_n[n + 3]]
            for d in range(d_model):
                out_D[d] += (z0 * w0_D[d] + z1 * w1_D[d]) + (z2 * w2_D[d] + z3 * w3_D[d])
        for n in range(whole, last):
            z0 = values_n[n]
            w0_D = w_FD[features_n[n]]
            for d in range(d_model):
                out_D[d] += z0 * w0_D[d]


@_compiled
@no_type_check
def gather_dot(features_n, offsets, w_FD, x_BD, out_n, start, stop):
    """out[n] = x[row of n] · w[feature of n]: the dense-dense product sampled at the entries."""
    d_model = w_FD.shape[1]
    for b in range(start, stop):
        x_D = x_BD[b]
        for n in range(offsets[b], offsets[b + 1]):
            w_D = w_FD[features_n[n]]
            total = np.float32(0)
            for d in range(d_model):
                total += x_D[d] * w_D[d]
            out_n[n] = total


@_compiled
@no_type_check
def transpose(features_n, offsets, starts, entries_n, rows_n):
    """Counting sort of the entries by latent, stable in the row: entries of f are starts[f] : starts[f + 1]."""
    starts[:] = 0
    for n in range(len(features_n)):
        starts[features_n[n] + 1] += 1
    for f in range(len(starts) - 1):
        starts[f + 1] += starts[f]
    for b in range(len(offsets) - 1):
        for n in range(offsets[b], offsets[b + 1]):
            f = features_n[n]
            place = starts[f]
            entries_n[place] = n
            rows_n[place] = b
            starts[f] = place + 1
    for f in range(len(starts) - 1, 0, -1):
        starts[f] = starts[f - 1]
    starts[0] = 0


@_compiled
@no_type_check
def scatter_sum(values_n, starts, entries_n, rows_n, x_BD, out_FD, out_F, start, stop):
    """out[f] = Σ over f's entries of value · x[row], and Σ of the values: gradients of weights, each written once."""
    d_model = x_BD.shape[1]
    for f in range(start, stop):
        out_D = out_FD[f]
        for d in range(d_model):
            out_D[d] = np.float32(0)
        first, last = starts[f], starts[f + 1]
        whole = first + (last - first) // 4 * 4
        total = np.float32(0)
        for p in range(first, whole, 4):
            z0, z1 = values_n[entries_n[p]], values_n[entries_n[p + 1]]
            z2, z3 = values_n[entries_n[p + 2]], values_n[entries_n[p + 3]]
            x0_D, x1_D, x2_D, x3_D = x_BD[rows_n[p]], x_BD[rows_n[p + 1]], x_BD[rows_n[p + 2]], x_BD[rows_n[p + 3]]
            total += (z0 + z1) + (z2 + z3)
            for d in range(d_model):
                out_D[d] += (z0 * x0_D[d] + z1 * x1_D[d]) + (z2 * x2_D[d] + z3 * x3_D[d])
        for p in range(whole, last):
            z0 = values_n[entries_n[p]]
            x0_D = x_BD[rows_n[p]]
            total += z0
            for d in range(d_model):
                out_D[d] += z0 * x0_D[d]
        out_F[f] = total


@_compiled
@no_type_check
def row_squares(grad_FD, w_FD, along_F, squares_F, start, stop):
    """Component of each gradient row along the unit row of w, and the square of what is left without it."""
    for f in range(start, stop):
        grad_D, w_D = grad_FD[f], w_FD[f]
        along, square = np.float32(0), np.float32(0)
        for d in range(len(grad_D)):
            along += grad_D[d] * w_D[d]
            square += grad_D[d] * grad_D[d]
        along_F[f] = along
        squares_F[f] = max(square - along * along, np.float32(0))


@_compiled
@no_type_check
def squares(grad_FD, squares_F, start, stop):
    """Sum of squares of each row."""
    for f in range(start, stop):
        grad_D = grad_FD[f]
        total = np.float32(0)
        for d in range(len(grad_D)):
            total += grad_D[d] * grad_D[d]
        squares_F[f] = total


@_compiled
@no_type_check
def adam_rows(w_FD, grad_FD, mean_FD, square_FD, along_F, unit, scales, start, stop):
    """Adam in place on rows [start, stop); with `unit`, gradients lose their part along the row, and rows get norm 1.

    scales: (factor of the gradient, 1 − β₁, β₂, 1 − β₂, lr / (1 − β₁ᵗ), √(1 − β₂ᵗ), ε), as `torch.optim.Adam` has them.
    """
    clip, new_mean, beta2, new_square, size, correction, eps = scales
    for f in range(start, stop):
        w_D, grad_D, mean_D, square_D = w_FD[f], grad_FD[f], mean_FD[f], square_FD[f]
        along = along_F[f] if unit else np.float32(0)
        norm = np.float32(0)
        for d in range(len(w_D)):
            grad = (grad_D[d] - along * w_D[d]) * clip
            mean_D[d] += (grad - mean_D[d]) * new_mean
            square_D[d] = square_D[d] * beta2 + grad * grad * new_square
            w_D[d] -= size * mean_D[d] / (np.sqrt(square_D[d]) / correction + eps)
            norm += w_D[d] * w_D[d]
        if unit and norm > 0:
            norm = np.float32(1) / np.sqrt(norm)
            for d in range(len(w_D)):
                w_D[d] *= norm
