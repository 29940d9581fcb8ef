"""One idea from a cache to its page: train the plan, analyse, compare, draw."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from cache.atomic import write_file
from cache.provenance import provenance
from cache.reader import CacheReader
from evals.analyses.absorption_efficiency import Absorbing, absorption_efficiency
from evals.experiments.draw import Found, draw
from evals.experiments.held import held_out
from evals.experiments.ideas import IDEAS
from evals.experiments.measure import Measured, measure
from evals.experiments.null import write_null
from evals.experiments.plan import Arm, arms
from evals.experiments.planted import SEQUENCES, planted_cache, truth
from evals.experiments.recorder import as_curves, lasting, record
from evals.experiments.result import Section, compared, of_training, pareto, together
from evals.experiments.scales import PLANTED, PLANTED_LR, Scale
from evals.experiments.table import page
from evals.experiments.training import Trained, train

Say = Callable[[str], None]
NULL_COLUMNS: Final = ("fvu", "l0", "rho_1", "rho_1_shuffled", "stays_on", "smoothness", "latents_on", "slow_l0")
GRID_MEASURES: Final = ("time",)
GRID_COLUMNS: Final = (
    "pareto", "fvu", "l0", "dead", "rho_1", "rho_1_median", "half_life", "stays_on", "smoothness", "latents_on",
    "slow_l0", "gradient_share",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Where and how large."""

    number: str
    """Of the idea."""
    path: str
    """Of the cache."""
    layer: int
    scale: Scale
    seeds: tuple[int, ...]
    out: Path
    """Of the page and its pictures."""
    runs: Path
    """Of the trained SAEs and of the caches that an experiment makes for itself."""
    device: str = "cpu"
    planted: bool = True
    """Whether the plan is also run on planted truth."""
    grid: bool = True
    """Whether a window × coefficient grid and the null are run, where the idea has them."""
    planted_steps: int = 0
    """Steps on planted truth; 0 is the planted scale's own."""
    sequences: int = SEQUENCES
    """Of the planted cache, and at most of the null's."""


def run(experiment: Experiment, reader: CacheReader, command: str, say: Say) -> Path:
    """Run an idea's whole plan; what was trained before is not trained again. Returns the page.

    Raises:
        TrainError, CacheError, EvalError: naming what stood in the way.
    """
    idea = IDEAS[experiment.number]
    extra = {} if len(reader.meta.domains) > 1 else {"ortho_groups.by": "clusters"}
    plan = arms(experiment.number)
    section, runs = _on_cache(experiment, reader, experiment.path, plan, idea.measures, extra, "plan", say)
    sections: dict[str, tuple[Section, Sequence[str]]] = {"On the cache": (section, idea.columns)}
    grid = None
    if idea.grid and experiment.grid:
        grid = _grid(experiment, reader, arms(idea.grid), extra, say)
        sections["Window × coefficient"] = (grid, GRID_COLUMNS)
    if idea.null and experiment.grid:
        null = _null(experiment, reader, arms(idea.null), extra, say)
        sections["The null: the same rows without time"] = (null, NULL_COLUMNS)
    on_truth = None
    if experiment.planted:
        on_truth = _planted(experiment, plan, say)
        sections[f"On planted truth ({idea.planted})"] = (on_truth, idea.planted_columns)
    first = next((run for run in runs if "ortho_pairs" in run.config.penalties), None)
    pairs = None
    if first is not None and "pairs" in idea.pictures:
        say("  recording selections of pairs")
        pairs = as_curves(record(first.config, reader, experiment.path, device=experiment.device))
    experiment.out.mkdir(parents=True, exist_ok=True)
    found = Found(cache=section, grid=grid, planted=on_truth, pairs=pairs)
    drawn = draw(idea.pictures, found, experiment.out)
    made = _made(experiment, reader, command)
    notes = [lasting(first.arm.label, pairs)] if first is not None and pairs else []
    text = page(experiment.number, idea, sections, drawn, made, str(experiment.runs / "plan"), notes)
    write_file(experiment.out, "README.md", text.encode(), sync=True)
    return experiment.out / "README.md"


def _on_cache(
    experiment: Experiment,
    reader: CacheReader,
    path: str,
    plan: Sequence[Arm],
    measures: tuple[str, ...],
    extra: Mapping[str, Any],
    folder: str,
    say: Say,
) -> tuple[Section, list[Trained]]:
    say(f"{folder}: {len(plan)} arms × {len(experiment.seeds)} seeds, {experiment.scale.steps} steps")
    runs = train(
        plan,
        experiment.scale,
        experiment.seeds,
        reader,
        path,
        experiment.layer,
        experiment.runs / folder,
        extra=extra,
        device=experiment.device,
        say=say,
    )
    held = held_out(reader, experiment.layer, experiment.scale.sequences)
    found: dict[str, list[Measured]] = {}
    for number, one in enumerate(runs):
        if not number % 10:
            say(f"  {number} of {len(runs)} SAEs analysed")
        own = measure(one.load(), held, measures, meta_steps=experiment.scale.meta_steps)
        found.setdefault(one.arm.label, []).append(together(of_training(one), own))
    return compared(runs, found), runs


def _grid(
    experiment: Experiment, reader: CacheReader, cells: Sequence[Arm], extra: Mapping[str, Any], say: Say
) -> Section:
    """Window × coefficient, with a mark at what is best in both of what it trades: FVU and persistence."""
    fewer = replace(experiment, seeds=experiment.seeds[: experiment.scale.grid_seeds])
    section, runs = _on_cache(fewer, reader, experiment.path, cells, GRID_MEASURES, extra, "plan", say)
    found = {label: list(saes) for label, saes in section.found.items()}
    for label in pareto(section, "fvu", "rho_1"):
        found[label][0].numbers["pareto"] = 1.0
    return compared(runs, found)


def _null(
    experiment: Experiment, reader: CacheReader, chosen: Sequence[Arm], extra: Mapping[str, Any], say: Say
) -> Section:
    """Some arms where time was destroyed."""
    path = experiment.runs / "without_time"
    shuffled = write_null(reader, experiment.layer, path, sequences=experiment.sequences)
    section, _ = _on_cache(experiment, shuffled, str(path), chosen, GRID_MEASURES, extra, "null", say)
    return section


def _planted(experiment: Experiment, plan: Sequence[Arm], say: Say) -> Section:
    name = IDEAS[experiment.number].planted
    scale = PLANTED[name]
    if experiment.planted_steps:
        scale = replace(scale, steps=experiment.planted_steps)
    path = experiment.runs / f"planted_{name}"
    reader = planted_cache(name, path, sequences=experiment.sequences)
    say(f"planted {name}: {len(plan)} arms × {len(experiment.seeds)} seeds, {scale.steps} steps")
    runs = train(
        plan,
        scale,
        experiment.seeds,
        reader,
        str(path),
        0,
        experiment.runs / "planted",
        extra={"lr": PLANTED_LR, "k_aux": 16},
        device=experiment.device,
        say=say,
    )
    found: dict[str, list[Measured]] = {}
    for one in runs:
        numbers = truth(name, one.load(), reader, scale.sequences)
        found.setdefault(one.arm.label, []).append(together(of_training(one), Measured(numbers=numbers)))
    _add_efficiency(found, runs, compared(runs, found))
    return compared(runs, found)


def _add_efficiency(found: dict[str, list[Measured]], runs: Sequence[Trained], section: Section) -> None:
    """ARE_rec of each arm against its baseline, where the truth has absorption; one number an arm, not one a seed."""
    absorbing: dict[str, list[Absorbing]] = {}
    for label in found:
        own = [one for one in runs if one.arm.label == label]
        for run_, one in zip(own, found[label], strict=True):
            if "absorption" in one.numbers:
                scores = {key: one.numbers[key] for key in ("absorption", "fvu", "l0")}
                size, tokens = run_.config.sae.d_sae, run_.tokens
                absorbing.setdefault(label, []).append(Absorbing(**scores, d_sae=size, tokens=tokens))
    for arm in section.arms:
        baseline = section.baseline(arm)
        if arm.label in absorbing and section.reference(arm):
            got = absorption_efficiency(absorbing[baseline], absorbing[arm.label], planted=True)
            if got.per_fvu is not None:
                found[arm.label][0].numbers["are"] = got.per_fvu


def _made(experiment: Experiment, reader: CacheReader, command: str) -> str:
    """How the page came about."""
    scale, found = experiment.scale, provenance()
    sizes = f"d_sae {scale.d_sae}, k {scale.k}, {scale.steps} steps of {scale.batch} rows"
    device = torch.cuda.get_device_name() if experiment.device != "cpu" else f"{platform.machine()} CPU"
    return (
        f"`{command}`\n\n{reader.meta.model}, layer {experiment.layer}; {sizes}; seeds"
        f" {', '.join(map(str, experiment.seeds))} of the initial weights, one order of rows; numbers on held-out"
        f" sequences. {device}, torch {torch.__version__}, commit {found['commit'][:12]}."
    )
