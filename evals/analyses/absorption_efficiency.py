"""What a reduction of absorption costs in variance.

    ARE_rec = (A₀ − A_v) / max(FVU_v − FVU₀, 0.001)

A is the absorption score, 0 the baseline, v the variant; means over seeds. Sparser or denser codes absorb differently,
so the number exists only at equal L0; and a baseline without absorption leaves nothing to reduce, which is where small
dictionaries and short trainings stand (SAEBench's own README warns of it); a difference within the noise of the
seeds is none. All three are answered with None and a caveat, not with a number. What it costs in time is no property of
a run, whose group shares the feed and the clock: `benchmarks/penalties.py` measures that.
Source: step 5 of "instantaneous top-k orthogonality".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Final

SAME_L0: Final = 0.02
"""Relative difference of L0 up to which two SAEs are compared."""
LEAST_LOSS: Final = 1e-3
"""FVU that counts as paid even where a variant reconstructs better: the ratio of two noises is no efficiency."""
FLOOR: Final = 0.02
"""Absorption of a baseline below which nothing can be said."""
LEAST_LATENTS: Final = 16_000
LEAST_TOKENS: Final = 50_000_000
LEAST_SEEDS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Absorbing:
    """One trained SAE."""

    absorption: float
    """Score from 0 to 1; the same definition for all that are compared."""
    fvu: float
    l0: float
    d_sae: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """A variant against its baseline."""

    reduction: float
    """(A₀ − A_v) / A₀."""
    per_fvu: float | None
    """ARE_rec."""
    caveats: tuple[str, ...]
    """Why a number is missing, or what it may not be used for."""


def absorption_efficiency(
    baseline: Sequence[Absorbing], variant: Sequence[Absorbing], *, planted: bool = False
) -> Efficiency:
    """Efficiency of a variant, means over seeds.

    Args:
        baseline: SAEs without the penalty, one a seed.
        variant: SAEs with it.
        planted: the absorption is that of a planted truth, for which size and length of the training do not matter.

    Raises:
        ValueError: no SAE on one of the sides.
    """
    if not baseline or not variant:
        raise ValueError(f"need at least one SAE of each kind, got {len(baseline)} and {len(variant)}")
    before, after = fmean(one.absorption for one in baseline), fmean(one.absorption for one in variant)
    l0, l0_after = fmean(one.l0 for one in baseline), fmean(one.l0 for one in variant)
    caveats = _caveats([*baseline, *variant], planted) + _seeds(baseline, variant)
    off = abs(l0_after / l0 - 1)
    if off > SAME_L0:
        caveats.append(f"L0 differs by {off:.1%}, more than {SAME_L0:.0%}: not comparable")
    if before < FLOOR:
        caveats.append(f"the baseline's absorption, {before:.4f}, is at the floor: there is nothing to reduce")
    noise = _noise(baseline, variant)
    if abs(before - after) <= noise:
        caveats.append(f"absorption differs by {abs(before - after):.4f}, within the seeds' noise of {noise:.4f}")
    counts = off <= SAME_L0 and before >= FLOOR and abs(before - after) > noise
    reduction = (before - after) / before if before else 0.0
    lost = fmean(one.fvu for one in variant) - fmean(one.fvu for one in baseline)
    return Efficiency(
        reduction=reduction,
        per_fvu=(before - after) / max(lost, LEAST_LOSS) if counts else None,
        caveats=tuple(caveats),
    )


def _noise(baseline: Sequence[Absorbing], variant: Sequence[Absorbing]) -> float:
    """Twice the standard error of the difference of mean absorptions; 0 of single seeds, which carry a caveat."""
    sides = [[one.absorption for one in side] for side in (baseline, variant)]
    return 2.0 * math.sqrt(sum(variance(side) / len(side) for side in sides if len(side) > 1))


def _seeds(baseline: Sequence[Absorbing], variant: Sequence[Absorbing]) -> list[str]:
    fewest = min(len(baseline), len(variant))
    return [f"{fewest} seeds, fewer than {LEAST_SEEDS}"] if fewest < LEAST_SEEDS else []


def _caveats(saes: Sequence[Absorbing], planted: bool) -> list[str]:
    if planted:
        return []
    found, smallest, shortest = [], min(one.d_sae for one in saes), min(one.tokens for one in saes)
    if smallest < LEAST_LATENTS:
        found.append(f"{smallest:,} latents, fewer than {LEAST_LATENTS:,}")
    if shortest < LEAST_TOKENS:
        found.append(f"{shortest:,} training tokens, fewer than {LEAST_TOKENS:,}")
    return found
