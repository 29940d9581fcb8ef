"""What fires together: the largest entries of each row's code, and the pairs of latents that share the most rows.

Everything comes from the sparse entries, in shapes that do not depend on the data: no [B, F], no [F, F], and nothing
waits for the device. Shapes: B rows, F d_sae, s sampled rows, m entries a row, n pairs of entries.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.codes import Code
from train.penalties.pairs.overlap import row_cosines
from train.penalties.pairs.selection import Pairs, best, repeated

SCORES: Final = ("coactivation", "coactivation_cosine", "correlation")
_LONGEST: Final = 4  # entries of a row that are looked at, in means


class Active(NamedTuple):
    """The m largest entries of each of s rows, by latent; slots that a shorter row does not fill have value 0."""

    features_sm: Int64[Tensor, "s m"]
    values_sm: Float[Tensor, "s m"]


@torch.no_grad()
def active(code: Code, rows_s: Int64[Tensor, " s"], most: int) -> Active:
    """The m largest entries of some rows, m = min(`most`, four times the batch's mean number of entries a row).

    Of a row with more than four times the mean number of entries, only so many, evenly spaced, are looked at.
    """
    if not code.is_sparse:
        top = code.dense.detach()[rows_s].topk(min(most, code.d_sae), dim=1)
        return _by_latent(top.indices, top.values)
    values_e, features_e, offsets = code.entries
    longest = min(code.d_sae, _LONGEST * mean_length(code))
    if not longest:
        none_s1 = rows_s.new_zeros(len(rows_s), 1)
        return Active(none_s1, none_s1.to(values_e.dtype))
    start_s, slot_l = offsets[rows_s], torch.arange(longest, device=rows_s.device)
    length_s1 = (offsets[rows_s + 1] - start_s)[:, None]
    step_sl = torch.where(length_s1 > longest, slot_l * length_s1 // longest, slot_l)
    place_sl = (start_s[:, None] + step_sl).clamp_max(len(values_e) - 1)
    values_sl = torch.where(slot_l < length_s1, values_e.detach()[place_sl], 0)
    top = values_sl.topk(min(most, longest), dim=1, sorted=False)
    return _by_latent(features_e[place_sl.gather(1, top.indices)].long(), top.values)


def mean_length(code: Code) -> int:
    """Entries a row on average, rounded up; F where the code is dense (counting them would wait for the device)."""
    return -(-len(code.entries.values_n) // code.n_rows) if code.is_sparse else code.d_sae


def _by_latent(features_sm: Tensor, values_sm: Tensor) -> Active:
    """Latents ascending, so that a pair of entries has its smaller latent first."""
    features_sm, order_sm = features_sm.sort(dim=1)
    return Active(features_sm, values_sm.gather(1, order_sm))


@torch.no_grad()
def coactive(code: Code, w_dec_FD: Float[Tensor, "F D"], k: int, *, score: str, rows: int, most: int) -> Pairs:
    """The k pairs of latents with the largest score on a batch.

    C_ij = Σ_b z_bi z_bj over the rows; the score is C_ij, C_ij [cos_ij]₊ (its cosines come from the Gram matrix of each
    row's latents), or the uncentred correlation C_ij / √(C_ii C_jj).

    Args:
        code: of the batch.
        w_dec_FD: the decoder.
        k: how many; fewer where fewer latents fire together.
        score: one of `SCORES`.
        rows: rows to look at, evenly spaced; 0 is all.
        most: entries a row, the largest first; at most twice the batch's mean number of entries a row.
    """
    rows_s = spread(code.n_rows, rows, w_dec_FD.device)
    features_sm, values_sm = active(code, rows_s, min(most, max(2, 2 * mean_length(code))))
    i, j = torch.triu_indices(features_sm.shape[1], features_sm.shape[1], 1, device=w_dec_FD.device)
    key_n = (features_sm[:, i] * code.d_sae + features_sm[:, j]).flatten()
    together_sp = values_sm[:, i] * values_sm[:, j]
    if score == "coactivation_cosine":
        together_sp *= row_cosines(w_dec_FD, features_sm)[:, i, j].clamp_min(0)
    first_n, second_n, together_n = _summed(key_n, together_sp.flatten(), code.d_sae)
    if score == "correlation":
        power_F = values_sm.new_zeros(code.d_sae).index_add_(0, features_sm.flatten(), values_sm.square().flatten())
        together_n = together_n / (power_F[first_n] * power_F[second_n]).sqrt().clamp_min(1e-12)
    return best(first_n, second_n, together_n, k, code.d_sae)


@torch.no_grad()
def mean_activation(code: Code) -> Float[Tensor, " F"]:
    """E_b[z_bi] of each latent."""
    if not code.is_sparse:
        return code.dense.detach().mean(0)
    values_e, features_e, _ = code.entries
    return values_e.new_zeros(code.d_sae).index_add_(0, features_e.long(), values_e.detach()) / code.n_rows


def spread(n_rows: int, wanted: int, device: torch.device) -> Int64[Tensor, " s"]:
    """Evenly spaced rows of a batch whose rows are in random order already: no randomness is needed, none is used.

    Row i·step + i mod step, so that in a batch of windows every position comes up.
    """
    wanted = min(wanted or n_rows, n_rows)
    step = n_rows // wanted
    i = torch.arange(wanted, device=device)
    return i * step + i % step


def _summed(key_n: Tensor, value_n: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values of equal keys added up at the first of them in sorted order; 0 at the others."""
    key_n, order_n = key_n.sort()
    group_n = (~repeated(key_n)).cumsum(0) - 1
    sum_n = torch.zeros_like(value_n).index_add_(0, group_n, value_n[order_n])
    key_n = torch.zeros_like(key_n).index_copy_(0, group_n, key_n)
    return key_n // d_sae, key_n % d_sae, sum_n
