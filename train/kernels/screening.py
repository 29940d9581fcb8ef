"""Kernels that find the largest pre-activations from a bfloat16 product, without missing one.

With x̃, w̃ the rounded operands, |x·w − x̃·w̃| ≤ ‖x − x̃‖·‖w̃‖ + ‖x‖·‖w − w̃‖ (Cauchy-Schwarz); the product's own
float32 sum adds at most D·2⁻²³·‖x‖·‖w‖, and storing it as bfloat16 at most 2⁻⁸ of itself. So each screened value comes
with an interval that holds the true one: whoever cannot reach the k-th largest lower end is out for certain, and the
rest, about twice k, are computed in float32. The bfloat16 product therefore has no influence on the result.
"""

from typing import Final, no_type_check

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_compiled: Final = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
ROUNDING: Final = np.float32(2.0**-8 * 1.01)
"""Of a bfloat16, relative to the rounded value."""
SINGLE: Final = np.float32(2.0**-22)
"""Of a few float32 roundings, relative."""
TINY: Final = np.float32(1e-30)
"""Denormal numbers may count as zero in the product."""
NEAR: Final = 2**10
"""How far below the k-th largest a threshold for candidates may be, in float32 numbers: 2⁻¹³ of it."""
LARGEST: Final = np.float32(1e37)
"""Products beyond this may overflow: such rows count as not finite."""


@intrinsic
@no_type_check
def _float_of(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
@no_type_check
def _bits_of(typing_context, number):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@_compiled
@no_type_check
def round_rows(w_FD, bits_FD, norms_F2, start, stop):
    """bfloat16 copies of rows [start, stop) to nearest even; ‖w‖ and ‖w − w̃‖ a row, a hair above."""
    for f in range(start, stop):
        w_D, bits_D = w_FD[f], bits_FD[f]
        norm, error = np.float32(0), np.float32(0)
        for d in range(w_FD.shape[1]):
            bits = _bits_of(w_D[d])
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            bits_D[d] = np.uint16(rounded)
            away = w_D[d] - _float_of(rounded << np.uint32(16))
            norm += w_D[d] * w_D[d]
            error += away * away
        norms_F2[f, 0] = np.sqrt(norm) * np.float32(1.001)
        norms_F2[f, 1] = np.sqrt(error) * np.float32(1.001)


@_compiled
@no_type_check
def _order(number):
    """Whole numbers in the order of the float32 numbers that they stand for."""
    bits = np.int64(_bits_of(number))
    return bits if bits < 0x80000000 else 0x80000000 - bits


@_compiled
@no_type_check
def _number(order):
    """The inverse of `_order`."""
    size = _float_of(np.uint32(abs(order)))
    return size if order >= 0 else -size


@_compiled
@no_type_check
def kth_largest(a, n, k, apart):
    """The k-th largest of a[:n], or with `apart` > 1 a number at most so many float32 numbers below it.

    By bisection: its passes run in full vectors, where a quickselect would wait for mispredicted branches.
    """
    least, largest = a[0], a[0]
    for i in range(n):
        least = a[i] if a[i] < least else least
        largest = a[i] if a[i] > largest else largest
    low, high = _order(least), _order(largest) + 1
    while high - low > apart:  # at least k of them reach `low`, fewer reach `high`
        middle = (low + high) // 2
        number = _number(middle)
        reach = 0
        for i in range(n):
            reach += a[i] >= number
        if reach >= k:
            low = middle
        else:
            high = middle
    return _number(low)


@_compiled
@no_type_check
def _error(x_norms, w_norms, sums):
    """Bound on what rounding the operands does to one product; norms are (of the vector, of its rounding error)."""
    return x_norms[1] * w_norms[0] + x_norms[0] * (w_norms[1] + sums * w_norms[0]) + TINY


@_compiled
@no_type_check
def _group_maxima(bits_F, bias_F, upper_F, lower_G, upper_G):
    """Upper ends without `_error`, and the largest lower and upper ends in each group.

    Latent f is in group f mod G, so the loops run along memory.
    """
    n_groups = len(lower_G)
    for g in range(n_groups):
        lower_G[g] = -np.inf
        upper_G[g] = -np.inf
    for first in range(0, len(bits_F), n_groups):
        chunk, bias = bits_F[first : first + n_groups], bias_F[first : first + n_groups]
        ends = upper_F[first : first + n_groups]
        for g in range(len(chunk)):
            a = _float_of(np.uint32(chunk[g]) << np.uint32(16))
            slack = abs(a) * ROUNDING + abs(bias[g]) * SINGLE
            lower, upper = a - slack + bias[g], a + slack + bias[g]
            ends[g] = upper
            lower_G[g] = lower if lower > lower_G[g] else lower_G[g]
            upper_G[g] = upper if upper > upper_G[g] else upper_G[g]


@_compiled
@no_type_check
def _candidates(bits_F, bias_F, upper_G, bound, x_norms, norms_F2, sums, out, place):
    """Latents whose upper end reaches `bound`, ascending, with both ends, from `place` on; returns the next place."""
    features_n, lower_n, upper_n, open_G, upper_F = out
    n_groups, n_open = len(upper_G), 0
    easy = bound - _error(x_norms, norms_F2[-1], sums)
    for g in range(n_groups):  # without branches: which groups are open is not predictable
        open_G[n_open] = g
        n_open += upper_G[g] >= easy
    first = place
    for base in range(0, len(bits_F), n_groups):
        for i in range(n_open):
            f = base + open_G[i]
            if f < len(bits_F):
                features_n[place] = f
                place += upper_F[f] >= easy
    last, place = place, first
    for i in range(first, last):
        f = features_n[i]
        a = _float_of(np.uint32(bits_F[f]) << np.uint32(16))
        error = _error(x_norms, norms_F2[f], sums) + abs(a) * ROUNDING + abs(bias_F[f]) * SINGLE
        pre = a + bias_F[f]
        features_n[place], lower_n[place], upper_n[place] = f, pre - error, pre + error
        place += pre + error >= bound
    return place


@_compiled
@no_type_check
def _product(x_D, w_D):
    total = np.float32(0)
    for d in range(len(x_D)):
        total += x_D[d] * w_D[d]
    return total


@_compiled
@no_type_check
def top_k_rows(bits_BF, x_BD, x_norms_B2, w_FD, bias_F, norms_F2, n_groups, k, values_Bk, features_Bk):
    """The k largest pre-activations of each row, exact in float32, by ascending latent; returns how many were computed.

    norms_F2 has one row more than there are latents: the largest of each column. Ties go to the smaller latent.
    """
    d_sae, d_model = w_FD.shape
    lower_G, upper_G = np.empty(n_groups, np.float32), np.empty(n_groups, np.float32)
    features_n = np.empty(d_sae + 1, np.int64)
    lower_n, upper_n = np.empty(d_sae + 1, np.float32), np.empty(d_sae + 1, np.float32)
    out = (features_n, lower_n, upper_n, np.empty(n_groups + 1, np.int64), np.empty(d_sae, np.float32))
    sums = np.float32(d_model * 2.0**-23)
    computed = 0
    for b in range(len(x_BD)):
        x_norms = x_norms_B2[b]
        if not x_norms[0] * norms_F2[-1, 0] < LARGEST:
            for i in range(k):
                values_Bk[b, i], features_Bk[b, i] = np.nan, i
            continue
        _group_maxima(bits_BF[b], bias_F, out[4], lower_G, upper_G)
        widest = _error(x_norms, norms_F2[-1], sums)
        bound = kth_largest(lower_G, n_groups, k, NEAR) - widest
        n = _candidates(bits_BF[b], bias_F, upper_G, bound, x_norms, norms_F2, sums, out, 0)
        bound = kth_largest(lower_n, n, k, NEAR)
        kept = 0
        for i in range(n):
            if upper_n[i] >= bound:
                f = features_n[i]
                features_n[kept] = f
                lower_n[kept] = _product(x_BD[b], w_FD[f]) + bias_F[f]
                kept += 1
        computed += kept
        bound = kth_largest(lower_n, kept, k, 1)
        _keep_k(features_n[:kept], lower_n[:kept], bound, values_Bk[b], features_Bk[b])
    return computed


@_compiled
@no_type_check
def _keep_k(features_n, values_n, bound, out_values, out_features):
    """Entries at or above their k-th largest value, in order; of those equal to it, the first."""
    k = len(out_values)
    room = k
    for value in values_n:
        room -= value > bound
    place = 0
    for i in range(len(values_n)):
        equal = values_n[i] == bound
        if values_n[i] > bound or (equal and room > 0):
            room -= equal
            out_values[place], out_features[place] = values_n[i], features_n[i]
            place += 1


@_compiled
@no_type_check
def collect_rows(
    bits_BF,
    x_norms_B2,
    bias_F,
    norms_F2,
    d_model,
    bound,
    limit,
    row,
    place,
    maxima_BG,
    counts_B,
    out,
):
    """Candidates for one threshold over all rows, from `row` on while `out` has room; returns (next row, next place).

    Also, for every row, a value that its true pre-activations reach in each group. Beyond `limit` candidates none are
    collected: the threshold was too low, and the group maxima will give a better one.
    """
    n_groups = maxima_BG.shape[1]
    upper_G = np.empty(n_groups, np.float32)
    sums = np.float32(d_model * 2.0**-23)
    for b in range(row, len(bits_BF)):
        if len(out[0]) - place <= bits_BF.shape[1]:
            return b, place
        x_norms = x_norms_B2[b]
        if not x_norms[0] * norms_F2[-1, 0] < LARGEST:
            maxima_BG[b] = -np.inf
            counts_B[b] = -1
            continue
        _group_maxima(bits_BF[b], bias_F, out[4], maxima_BG[b], upper_G)
        widest = _error(x_norms, norms_F2[-1], sums)
        for g in range(n_groups):
            maxima_BG[b, g] -= widest
        first = place
        if place <= limit:
            place = _candidates(bits_BF[b], bias_F, upper_G, bound, x_norms, norms_F2, sums, out, place)
        counts_B[b] = place - first
    return len(bits_BF), place
