"""An experiment's pictures: which curves of which arms go into which figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from evals.analyses import pictures, pictures_decoder
from evals.analyses.pair_stability import PairStability
from evals.experiments.columns import COLUMNS
from evals.experiments.plan import Arm
from evals.experiments.result import Section

_PANELS: Final = 4
"""SAEs of a picture that has a panel for each."""
_GRID: Final = ("fvu", "l0", "rho_1", "latents_on")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that pictures draw on."""

    cache: Section
    grid: Section | None = None
    planted: Section | None = None
    pairs: Mapping[str, PairStability] | None = None

    def arms(self, curve: str, most: int = pictures.MOST) -> list[Arm]:
        """The first arms that have a curve, evenly over the plan where there are too many; the baseline among them."""
        having = [arm for arm in self.cache.arms if self.cache.curve(arm.label, curve) is not None]
        if len(having) <= most:
            return having
        return [having[round(i * (len(having) - 1) / (most - 1))] for i in range(most)]

    def curves(self, curve: str, most: int = pictures.MOST) -> dict[str, Any]:
        """Label → curve of its first seed."""
        return {arm.label: self.cache.curve(arm.label, curve) for arm in self.arms(curve, most)}


def draw(names: Sequence[str], found: Found, folder: Path) -> list[str]:
    """Write the pictures of which there is something to draw; returns their file names."""
    written = []
    for name in names:
        figure = PICTURES[name](found)
        if figure is not None:
            figure.savefig(folder / f"{name}.png")
            written.append(f"{name}.png")
    return written


def _pairs(found: Found) -> Figure | None:
    return pictures.pair_stability(found.pairs) if found.pairs else None


def _cosines(found: Found) -> Figure | None:
    quantiles = found.curves("max_cosine_quantiles")
    return pictures_decoder.max_cosines(quantiles) if quantiles else None


def _condition(found: Found) -> Figure | None:
    active = found.curves("active_kappa")
    return pictures_decoder.conditions(active, found.curves("eigenvalues")) if active else None


def _composition(found: Found) -> Figure | None:
    coefficients = found.curves("clustering")
    if not coefficients:
        return None
    densities = next(iter(found.curves("densities").values()))
    explained = {label: found.cache.means[label]["meta_explained"].mean for label in coefficients}
    return pictures_decoder.composition(densities, coefficients, explained)


def _redundancy(found: Found) -> Figure | None:
    matrices = found.curves("correlation", _PANELS)
    rates = found.curves("rate", _PANELS)
    if not matrices:
        return None
    order = {label: rates[label].argsort(descending=True)[:200] for label in matrices}
    shown = {
        label: (matrix[order[label]][:, order[label]], found.cache.means[label]["redundant"].mean)
        for label, matrix in matrices.items()
    }
    return pictures.redundancy(shown)


def _autocorrelation(found: Found) -> Figure | None:
    rho = found.curves("rho")
    if not rho:
        return None
    lags = next(iter(found.curves("lags").values()))
    return pictures.autocorrelation(lags, rho, found.curves("rho_shuffled"))


def _positions(found: Found) -> Figure | None:
    matrices = found.curves("positions", _PANELS)
    return pictures.position_correlation(matrices) if matrices else None


def _kinds(found: Found) -> Figure | None:
    shares = found.curves("l0_share")
    return pictures.kinds(shares, found.curves("latent_share")) if shares else None


def _weights(found: Found) -> Figure | None:
    lambdas = found.curves("weight by step")
    if not lambdas:
        return None
    return pictures.weights({label: (found.cache.curve(label, "steps"), one) for label, one in lambdas.items()})


def _separation(found: Found) -> Figure | None:
    angles = found.curves("angles")
    if not angles:
        return None
    names = {"leakage": "leakage ↓", "residual": "residual ↓", "auc": "AUC ↑", "affinity": "affinity ↓"}
    numbers = {label: {key: mean.mean for key, mean in found.cache.means[label].items()} for label in angles}
    return pictures_decoder.separation(angles, numbers, names)


def _efficiency(found: Found) -> Figure | None:
    section = found.planted
    if section is None:
        return None
    points = {
        arm.label: (
            section.means[arm.label]["fvu"].mean,
            section.means[arm.label]["absorption"].mean,
            section.matched(arm),
        )
        for arm in section.arms
        if "absorption" in section.means[arm.label]
    }
    return pictures.efficiency(points) if points else None


def _thresholds(found: Found) -> Figure | None:
    """Arms of `ortho_pairs` that differ in the share of pairs, by τ; on planted truth where that was run."""
    section = found.planted or found.cache
    by_tau: dict[str, dict[float, dict[str, float]]] = {}
    for arm in section.arms:
        own = arm.request.settings
        if arm.request.variant == "ortho_pairs" and own.keys() <= {"share", "tau"} and "share" in own:
            values = {key: mean.mean for key, mean in section.means[arm.label].items()}
            by_tau.setdefault(f"τ = {own.get('tau', 0):g}", {})[float(own["share"])] = values
    if not by_tau:
        return None
    baseline = {key: mean.mean for key, mean in section.means[section.arms[0].label].items()}
    measured = {key for by_share in by_tau.values() for values in by_share.values() for key in values}
    names = [key for key in ("absorption", "fvu", "mmc", "redundant", "jaccard") if key in measured]
    shown: dict[str, str] = {key: f"{COLUMNS[key].heading} {COLUMNS[key].better}".strip() for key in names}
    return pictures_decoder.thresholds(dict(sorted(by_tau.items())), shown, baseline)


def _grid(found: Found) -> Figure | None:
    section = found.grid
    if section is None:
        return None
    values: dict[str, dict[tuple[int, float], float]] = {}
    directions = {COLUMNS[name].heading: COLUMNS[name].better for name in _GRID}
    for arm in section.arms:
        coefficient = float(arm.request.settings.get("coeff", 0))
        for name in _GRID:
            if name in section.means[arm.label]:
                cells = values.setdefault(COLUMNS[name].heading, {})
                cells[arm.window, coefficient] = section.means[arm.label][name].mean
    places = [place for cells in values.values() for place in cells]
    windows, coefficients = sorted({window for window, _ in places}), sorted({c for _, c in places})
    return pictures.window_and_coefficient(windows, coefficients, values, directions)


PICTURES: Final[Mapping[str, Callable[[Found], Figure | None]]] = {
    "pairs": _pairs,
    "thresholds": _thresholds,
    "cosines": _cosines,
    "condition": _condition,
    "composition": _composition,
    "redundancy": _redundancy,
    "efficiency": _efficiency,
    "autocorrelation": _autocorrelation,
    "positions": _positions,
    "kinds": _kinds,
    "grid": _grid,
    "weights": _weights,
    "separation": _separation,
}
