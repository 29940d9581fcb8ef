"""The geometry of a decoder: cosines among its rows, spectra of groups of rows, and how far groups lie apart.

Every function takes decoder rows of any length and means their directions. Hand over the rows of live latents alone
(`w_dec_FD[live_F]`): dead ones keep their random directions and make any dictionary look orthogonal.
Nothing larger than `block_bytes` is held at once but d × d Gram matrices; sums are in float64.
Shapes: F latents, D d_model, g and h latents of two groups, n samples, K active latents of a sample, b rows of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

BLOCK_BYTES: Final = 256 << 20
QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
DUPLICATE: Final = 0.9
"""Cosine above which two latents count as duplicates."""
ENERGY: Final = 0.95
"""Share of Σλ that the kept part of a spectrum holds."""
COSINE_BINS: Final = 4000
"""Of the histogram of all cosines from -1 to 1: a quantile is known to within 0.00025."""
_COPIES: Final = 2  # a block of cosines, and what the histogram makes of it
_MOST_COUNTED: Final = 2**24  # entries of a block: torch counts a histogram in float32


@dataclass(frozen=True, kw_only=True)
class DecoderCosines:
    """Statistics of the F (F - 1) / 2 cosines among decoder rows; a lone row has none, and NaN for all of them."""

    mean_max: float
    """MMC: mean over latents of the largest cosine with any other (OrtSAE, arXiv 2509.22033)."""
    mean_max_absolute: float
    """The same of |cos|: a latent and its negative count as near, too."""
    max_quantiles: tuple[float, ...]
    """Quantiles, at `QUANTILES`, of the largest cosine of each latent."""
    pair_quantiles: tuple[float, ...]
    """Quantiles, at `QUANTILES`, of the cosines of all pairs, each to within 0.00025."""
    mean_absolute: float
    """c_dec: mean |cos| over all pairs ("Sparse but wrong", arXiv 2508.16560); sqrt(2 / (π D)) for random rows."""
    duplicated: float
    """Share of latents with another at a cosine above `DUPLICATE`."""
    excess_frame_potential: float
    """See `excess_frame_potential`."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Eigenvalues of a group's d × d Gram matrix WᵀW of unit rows, in falling order, and what follows from them."""

    eigenvalues: Float64[Tensor, " m"]
    """The min(g, D) that can be above 0; they sum to g."""
    rank: int
    """r: how many of the largest hold 95 % of the sum."""
    condition: float
    """κ_eff = sqrt(λ_1 / λ_r), of that part of the spectrum: 1 for orthonormal rows."""
    effective_rank: float
    """exp(H) of the shares λ / Σλ, from 1 (all rows parallel) to min(g, D); Roy & Vetterli 2007, of the energies."""


@dataclass(frozen=True, kw_only=True)
class GroupSeparation:
    """How far two groups of latents lie apart, as subspaces and row by row."""

    affinity: float
    """|Q₁ᵀQ₂|_F² / min(r₁, r₂): 0 for orthogonal subspaces, 1 where one holds the other, r / D for random ones."""
    angles: Float64[Tensor, " r"]
    """Principal angles between the subspaces, in radians, ascending; min(r₁, r₂) of them."""
    max_cosine: float
    """Mean over the rows of the first group of the largest cosine with a row of the second."""
    rms_cosine: float
    """Root mean square of all g · h cosines."""


def decoder_cosines(w_dec_FD: Float[Tensor, "F D"], *, block_bytes: int = BLOCK_BYTES) -> DecoderCosines:
    """Cosines of every row with every other, blocks of rows at a time.

    Args:
        w_dec_FD: decoder rows of live latents.
        block_bytes: most memory for the cosines of one block.
    """
    unit_FD, n = _unit(w_dec_FD), len(w_dec_FD)
    signed_F, absolute_F = unit_FD.new_empty(n), unit_FD.new_empty(n)
    total = unit_FD.new_zeros((), dtype=torch.float64)
    counts = torch.zeros(COSINE_BINS, dtype=torch.float64, device=unit_FD.device)
    for start, cosines_bF in _blocks(unit_FD, unit_FD, block_bytes):
        place = slice(start, start + len(cosines_bF))
        own_bb = cosines_bF.clamp_(-1, 1)[:, place]
        own_bb.fill_diagonal_(-2)  # no row is a neighbour of itself, and the histogram skips what lies outside
        signed_F[place] = cosines_bF.max(dim=1).values
        counts += torch.histc(cosines_bF, COSINE_BINS, min=-1, max=1).double()
        own_bb.fill_diagonal_(0)
        absolute_F[place] = cosines_bF.abs_().max(dim=1).values
        total += cosines_bF.sum(dim=1).sum(dtype=torch.float64)
    if n < 2:
        signed_F, absolute_F = signed_F.fill_(torch.nan), absolute_F.fill_(torch.nan)
    levels = torch.tensor(QUANTILES, dtype=torch.float64, device=unit_FD.device)
    return DecoderCosines(
        mean_max=float(signed_F.double().mean()),
        mean_max_absolute=float(absolute_F.double().mean()),
        max_quantiles=tuple(signed_F.double().quantile(levels).tolist()),
        pair_quantiles=_histogram_quantiles(counts),
        mean_absolute=float(total) / (n * (n - 1)) if n > 1 else float("nan"),
        duplicated=float((signed_F > DUPLICATE).double().mean()) if n > 1 else float("nan"),
        excess_frame_potential=excess_frame_potential(w_dec_FD),
    )


def excess_frame_potential(w_dec_FD: Float[Tensor, "F D"]) -> float:
    """How far Σ_ij cos_ij² lies above the least that F directions in D dimensions can have: 0 for a tight frame.

    The least is F² / D, or F where F < D (Benedetto & Fickus 2003); for F random rows the excess is about D / F. It
    says nothing about duplicates: an orthonormal basis written down twice is tight.
    """
    n, d = w_dec_FD.shape
    unit_FD = _unit(w_dec_FD)
    return float(_gram(unit_FD).square().sum()) / max(n, n * n / d) - 1


def spectrum(w_gD: Float[Tensor, "g D"]) -> Spectrum:
    """Eigenvalues of a group's Gram matrix, its condition number and effective rank, through the smaller Gram matrix.

    Raises:
        ValueError: a group without rows.
    """
    if not len(w_gD):
        raise ValueError("a spectrum needs at least one row, got an empty group")
    falling_m = torch.linalg.eigvalsh(_gram(_unit(w_gD))).flip(0).clamp_min(0)
    rank = _kept(falling_m)
    share_m = falling_m / falling_m.sum()
    return Spectrum(
        eigenvalues=falling_m,
        rank=rank,
        condition=_condition(falling_m[:rank]),
        effective_rank=float(torch.special.entr(share_m).sum().exp()),
    )


def active_condition(codes_nF: Float[Tensor, "n F"], w_dec_FD: Float[Tensor, "F D"]) -> Float64[Tensor, " n"]:
    """Condition number of the decoder rows that are active together, sample by sample: sqrt(λ_max / λ_min) ≥ 1.

    This one governs how well a code is determined by its reconstruction: an error of a share ε in x̂ may be one of κ ε
    in the code. 1 for orthogonal rows, a single one or none; infinite where active rows depend on one another (always
    where K > D).

    Args:
        codes_nF: codes of n samples, 256 are plenty; above 0 is active.
        w_dec_FD: decoder rows of the same latents.
    """
    condition_n = torch.ones(len(codes_nF), dtype=torch.float64)
    for i, code_F in enumerate(codes_nF):
        active_KD = _unit(w_dec_FD[code_F > 0]).double()
        if len(active_KD) > 1:
            condition_n[i] = _condition(torch.linalg.eigvalsh(active_KD @ active_KD.T).flip(0))
    return condition_n


def group_separation(
    w_gD: Float[Tensor, "g D"], w_hD: Float[Tensor, "h D"], *, block_bytes: int = BLOCK_BYTES
) -> GroupSeparation:
    """How far two groups lie apart; each subspace is the span of the eigenvectors that hold 95 % of its energy.

    Args:
        w_gD: decoder rows of the first group.
        w_hD: decoder rows of the second.
        block_bytes: most memory for the cosines of one block.

    Raises:
        ValueError: a group without rows.
    """
    if not (len(w_gD) and len(w_hD)):
        raise ValueError(f"two groups need at least one row each, got {len(w_gD)} and {len(w_hD)}")
    unit_gD, unit_hD = _unit(w_gD), _unit(w_hD)
    gram_g_DD, gram_h_DD = _gram_of_columns(unit_gD), _gram_of_columns(unit_hD)
    between_rr = _basis(gram_g_DD).T @ _basis(gram_h_DD)
    cosines_r = torch.linalg.svdvals(between_rr).clamp(max=1)
    nearest_g = torch.cat([one.max(dim=1).values for _, one in _blocks(unit_gD, unit_hD, block_bytes)])
    # Σ cos² over all pairs is <WgᵀWg, WhᵀWh>: no g × h matrix is needed.
    mean_square = float((gram_g_DD * gram_h_DD).sum()) / (len(w_gD) * len(w_hD))
    return GroupSeparation(
        affinity=float(cosines_r.square().mean()),
        angles=cosines_r.arccos(),
        max_cosine=float(nearest_g.double().mean()),
        rms_cosine=mean_square**0.5,
    )


def _unit(w_FD: Float[Tensor, "F D"]) -> Float[Tensor, "F D"]:
    return normalize(w_FD.detach().float(), dim=1)


def _blocks(
    unit_gD: Float[Tensor, "g D"], unit_hD: Float[Tensor, "h D"], block_bytes: int
) -> Iterator[tuple[int, Float[Tensor, "b h"]]]:
    """Cosines of the first rows with all of the second, as many rows at a time as the memory allows."""
    entries = min(block_bytes // (4 * _COPIES), _MOST_COUNTED)
    rows = max(1, entries // len(unit_hD))
    for start in range(0, len(unit_gD), rows):
        yield start, unit_gD[start : start + rows] @ unit_hD.T


def _gram_of_columns(unit_FD: Float[Tensor, "F D"]) -> Float64[Tensor, "D D"]:
    """WᵀW, in float64 a few rows at a time."""
    d = unit_FD.shape[1]
    gram_DD = torch.zeros(d, d, dtype=torch.float64, device=unit_FD.device)
    for rows_bD in unit_FD.split(max(d, 1024)):
        gram_DD += rows_bD.double().T @ rows_bD.double()
    return gram_DD


def _gram(unit_FD: Float[Tensor, "F D"]) -> Float64[Tensor, "m m"]:
    """WᵀW or W Wᵀ, whichever is smaller: their eigenvalues above 0 and their sums of squares are the same."""
    n, d = unit_FD.shape
    return unit_FD.double() @ unit_FD.double().T if n < d else _gram_of_columns(unit_FD)


def _kept(falling_m: Float64[Tensor, " m"]) -> int:
    """How many of the largest eigenvalues hold `ENERGY` of the sum."""
    return 1 + int((falling_m.cumsum(0) < ENERGY * falling_m.sum()).sum())


def _basis(gram_DD: Float64[Tensor, "D D"]) -> Float64[Tensor, "D r"]:
    values_D: Tensor
    vectors_DD: Tensor
    values_D, vectors_DD = torch.linalg.eigh(gram_DD)
    return vectors_DD.flip(1)[:, : _kept(values_D.flip(0))]


def _condition(falling_m: Float64[Tensor, " m"]) -> float:
    """sqrt(λ_1 / λ_m); infinite where λ_m is no larger than what float32 rows leave of an exact 0."""
    resolution = float(falling_m[0]) * torch.finfo(torch.float32).eps ** 2
    return float((falling_m[0] / falling_m[-1]).sqrt()) if falling_m[-1] > resolution else float("inf")


def _histogram_quantiles(counts: Float64[Tensor, " bins"]) -> tuple[float, ...]:
    """The middle of the bin in which each of `QUANTILES` lies; NaN of an empty histogram."""
    cumulative = counts.cumsum(0)
    if not cumulative[-1]:
        return (float("nan"),) * len(QUANTILES)
    wanted = torch.tensor(QUANTILES, dtype=torch.float64, device=counts.device) * cumulative[-1]
    bins = torch.searchsorted(cumulative, wanted)
    return tuple((-1 + (bins + 0.5) * (2 / COSINE_BINS)).tolist())
