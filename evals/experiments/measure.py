"""The named analyses of an idea, run on one trained SAE and held-out sequences: numbers for the table, curves to draw.

Shapes: n sequences, T positions, F latents, D d_model, R rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from evals.analyses.composition import clustering, meta_explained
from evals.analyses.profiles import Profiler
from evals.analyses.redundancy import LatentCorrelation, most_active
from evals.analyses.separation import groups, separation
from evals.analyses.specialisation import specialisation
from evals.experiments.held import Held
from evals.geometry import active_condition, decoder_cosines, group_separation, spectrum
from evals.temporal import LAGS, AutoCorrelation, PositionProfile, Smoothness, shuffled
from train.inference import InferenceSAE

CHUNK: Final = 16
"""Sequences encoded at a time: dense codes of 16 × 128 rows and 18432 latents are 151 MB."""
CONDITIONED: Final = 256
"""Samples whose active Gram matrix is looked at."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What every analysis is given."""

    sae: InferenceSAE
    held: Held
    live_F: Tensor
    """Whether each latent fired on the held-out rows."""
    rate_F: Tensor
    meta_steps: int

    def codes(self, part: Held) -> Tensor:
        """Codes [n, T, F] of some sequences."""
        return self.sae.encode(part.x_nTD.float())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of one SAE."""

    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def measure(sae: InferenceSAE, held: Held, names: tuple[str, ...], *, meta_steps: int) -> Measured:
    """Run some of `MEASURES` on one SAE.

    Args:
        sae: in raw model units, on the CPU.
        held: sequences that it was not trained on.
        names: which analyses.
        meta_steps: of the Meta-SAE.
    """
    on_F, rows = torch.zeros(sae.d_sae, dtype=torch.float64), 0
    for part in held.chunks(CHUNK):
        codes_RF = sae.encode(part.rows)
        on_F += (codes_RF > 0).sum(0)
        rows += len(codes_RF)
    rate_F = on_F / rows
    subject = Subject(sae=sae, held=held, live_F=rate_F > 0, rate_F=rate_F, meta_steps=meta_steps)
    found = Measured()
    for name in names:
        one = MEASURES[name](subject)
        found.numbers.update(one.numbers)
        found.curves.update(one.curves)
    return found


def _cosines(subject: Subject) -> Measured:
    """Decoder cosines over live latents (reference §5.7)."""
    found = decoder_cosines(subject.sae.W_dec[subject.live_F].float())
    numbers = {
        "mmc": found.mean_max,
        "c_dec": found.mean_absolute,
        "duplicated": found.duplicated,
        "frame": found.excess_frame_potential,
    }
    return Measured(numbers=numbers, curves={"max_cosine_quantiles": found.max_quantiles})


def _condition(subject: Subject) -> Measured:
    """Spectrum of the live rows and condition of what is active together (reference §5.8)."""
    found = spectrum(subject.sae.W_dec[subject.live_F].float())
    rows_RD = subject.held.rows
    chosen = torch.linspace(0, len(rows_RD) - 1, CONDITIONED).round().long()
    condition_n = active_condition(subject.sae.encode(rows_RD[chosen]), subject.sae.W_dec.float())
    numbers = {
        "kappa": found.condition,
        "effective_rank": found.effective_rank,
        "active_kappa": float(condition_n.median()),
    }
    curves = {"eigenvalues": found.eigenvalues.tolist(), "active_kappa": condition_n.sort().values.tolist()}
    return Measured(numbers=numbers, curves=curves)


def _time(subject: Subject) -> Measured:
    """Persistence, smoothness and dependence on the position (reference §5.1b, c and 5.2)."""
    context, f = subject.held.x_nTD.shape[1], subject.sae.d_sae
    lags = tuple(lag for lag in LAGS if lag < context)
    real, chance = AutoCorrelation(f, lags=lags), AutoCorrelation(f, lags=lags)
    place, smooth, generator = PositionProfile(context, f), Smoothness(), torch.Generator().manual_seed(0)
    for part in subject.held.chunks(CHUNK):
        codes_nTF = subject.codes(part)
        real.add(codes_nTF, part.document_nT)
        chance.add(shuffled(codes_nTF, part.document_nT, generator), part.document_nT)
        place.add(codes_nTF, part.document_nT)
        smooth.add(codes_nTF, part.x_nTD.float(), part.document_nT)
    found, null = real.result(), chance.result()
    summary = found.summary()
    eta_F = place.eta_squared().nan_to_num(0.0)
    numbers = {
        "rho_1": summary["weighted_mean"],
        "rho_1_shuffled": null.summary()["weighted_mean"],
        "rho_1_median": summary["median"],
        "rho_1_high": summary["share_above_half"],
        "half_life": summary["median_half_life"],
        "stays_on": _weighted(found.on_excess_F, found.rate_F),
        "position_invariance": 1 - _weighted(eta_F, found.rate_F),
        **smooth.result(),
    }
    curves = {
        "lags": lags,
        "rho": [_weighted(rho_F, found.rate_F) for rho_F in found.rho_LF],
        "rho_shuffled": [_weighted(rho_F, null.rate_F) for rho_F in null.rho_LF],
        "positions": place.correlation(),
    }
    return Measured(numbers=numbers, curves=curves)


def _redundancy(subject: Subject) -> Measured:
    """Latents that correlate and are parallel (reference §5.1a)."""
    sums = LatentCorrelation(most_active(subject.rate_F))
    for part in subject.held.chunks(CHUNK):
        sums.add(subject.sae.encode(part.rows))
    found = sums.result(subject.sae.W_dec)
    numbers = {"redundant": found.share, "mean_correlation": found.mean_absolute}
    return Measured(
        numbers=numbers, curves={"correlation": found.correlation_MM, "rate": subject.rate_F[found.latents_M]}
    )


def _kinds(subject: Subject) -> Measured:
    """Kinds of latents and their share of L0 (reference §5.3)."""
    profiler = Profiler(subject.held.x_nTD.shape[1], subject.sae.d_sae)
    for part in subject.held.chunks(CHUNK):
        profiler.add(subject.codes(part), part.document_nT, part.tokens_nT)
    found = specialisation(profiler.result())
    numbers = {f"l0_{kind}": share for kind, share in found.l0_share.items()}
    numbers |= {"silhouette": found.silhouette, "cohesion": found.cohesion}
    return Measured(numbers=numbers, curves={"l0_share": found.l0_share, "latent_share": found.latent_share})


def _composition(subject: Subject) -> Measured:
    """Triangles and a Meta-SAE of the decoder (reference §5.7)."""
    live_FD = subject.sae.W_dec[subject.live_F].float()
    found = clustering(live_FD)
    with torch.enable_grad():
        explained = meta_explained(live_FD, steps=subject.meta_steps)
    numbers = {"clustering_excess": found.excess, "meta_explained": explained}
    return Measured(numbers=numbers, curves={"densities": found.densities, "clustering": found.coefficients})


def _groups(subject: Subject) -> Measured:
    """Two domains' latents (reference §5.9): chosen on one half of the held-out rows, judged on the other.

    Nothing where the cache has no domains.
    """
    held, sae = subject.held, subject.sae
    if held.domain_n is None or len(held.domain_n.unique()) < 2:
        return Measured()
    kept_nT, first_n = held.document_nT >= 0, held.domain_n == 0
    half_n = torch.arange(len(first_n)) % 4 < 2
    rows = {
        (first, half): held.x_nTD[(first_n == first) & (half_n == half)][
            kept_nT[(first_n == first) & (half_n == half)]
        ].float()
        for first in (True, False)
        for half in (True, False)
    }
    chosen = groups(sae.encode(rows[True, True]), sae.encode(rows[False, True]))
    x_nD, x_mD = rows[True, False], rows[False, False]
    found = separation(chosen, x_nD, sae.encode(x_nD), x_mD, sae.encode(x_mD), sae.decode)
    numbers = {
        "leakage": found.leakage,
        "auc": found.auc,
        "residual": found.residual_signal,
        "kept": found.kept_signal,
        "damage": found.retain_fvu_change,
    }
    curves: dict[str, Any] = {}
    if len(chosen.first_g) and len(chosen.second_h):
        apart = group_separation(sae.W_dec[chosen.first_g].float(), sae.W_dec[chosen.second_h].float())
        numbers |= {"affinity": apart.affinity, "cross_cosine": apart.max_cosine, "cross_rms": apart.rms_cosine}
        curves["angles"] = apart.angles.tolist()
    return Measured(numbers=numbers, curves=curves)


def _weighted(value_F: Tensor, rate_F: Tensor) -> float:
    """Mean over latents weighted by how often each fires; those without a value are left out."""
    known_F = ~value_F.isnan()
    return float((value_F[known_F] * rate_F[known_F]).sum() / rate_F[known_F].sum())


MEASURES: Final[Mapping[str, Callable[[Subject], Measured]]] = {
    "cosines": _cosines,
    "condition": _condition,
    "time": _time,
    "redundancy": _redundancy,
    "kinds": _kinds,
    "composition": _composition,
    "groups": _groups,
}
