"""What an experiment found: every SAE's numbers and curves, and their means over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Final

from evals.experiments.measure import Measured
from evals.experiments.plan import Arm, baselines
from evals.experiments.training import Trained

ERRORS: Final = 2.0
"""Standard errors of a difference beyond which a number counts as moved."""
SAME_L0: Final = 0.02
"""Relative difference of L0 up to which an arm counts as matched with its baseline."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A number over seeds."""

    mean: float
    spread: float
    """Standard deviation over seeds (of a sample); NaN of a single one."""
    n: int

    def comparable(self, other: "Mean | None") -> bool:
        """Whether both sides have a spread."""
        return other is not None and min(self.n, other.n) > 1

    def differs(self, other: "Mean") -> bool:
        """Whether two means are further apart than twice the standard error of their difference."""
        error = math.sqrt(self.spread**2 / self.n + other.spread**2 / other.n)
        return math.isfinite(error) and abs(self.mean - other.mean) > ERRORS * error

    def moved(self, other: "Mean | None", digits: int) -> bool:
        """Whether it differs from a baseline's, in the digits that are shown too."""
        shown = other is not None and f"{self.mean:.{digits}f}" != f"{other.mean:.{digits}f}"
        return other is not None and shown and self.differs(other)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table: some arms, each with all its seeds, on one cache."""

    arms: Sequence[Arm]
    found: Mapping[str, Sequence[Measured]]
    """Arm's label → what was measured of each seed's SAE, in the order of the seeds."""
    baselines: Mapping[str, str]
    """Arm's label → its baseline's; its own of a baseline; none where the plan has no true one."""
    means: dict[str, dict[str, Mean]] = field(init=False)
    """Arm's label → number → mean."""

    def __post_init__(self) -> None:
        """Means of what is finite; a number that some seed does not have is the mean of the others."""
        means = {label: _means([one.numbers for one in saes]) for label, saes in self.found.items()}
        object.__setattr__(self, "means", means)

    def curve(self, label: str, name: str) -> Any:
        """A curve of an arm's first seed; None if it was not measured."""
        return self.found[label][0].curves.get(name)

    def baseline(self, arm: Arm) -> str:
        """Label of what an arm is held against; empty where there is none."""
        return self.baselines.get(arm.label, "")

    def reference(self, arm: Arm) -> Mapping[str, Mean]:
        """The baseline's means; none of a baseline itself, and of an arm without one."""
        return self.means[held] if (held := self.baseline(arm)) not in ("", arm.label) else {}

    def matched(self, arm: Arm) -> bool:
        """Whether its L0 is that of its baseline."""
        own, other = (self.means[label]["l0"].mean if label else 0.0 for label in (arm.label, self.baseline(arm)))
        return abs(own / other - 1) <= SAME_L0 if other else False

    def idle(self, arm: Arm) -> bool:
        """Whether its penalty had no gradient at any report, of any seed: what differs then is something else."""
        active = self.means[arm.label].get("active")
        return active is not None and active.mean == 0


def compared(runs: Sequence[Trained], found: Mapping[str, Sequence[Measured]]) -> Section:
    """What was found of some arms' runs, in their order, each arm with the baseline that its configuration says."""
    first = {run.arm.label: run for run in reversed(runs)}
    arms = {run.arm.label: run.arm for run in runs}
    configs = {label: first[label].config for label in arms}
    return Section(arms=list(arms.values()), found=found, baselines=baselines(configs))


def pareto(section: Section, low: str, high: str) -> list[str]:
    """Labels of the arms, at their baseline's L0, that no other such arm beats in one mean at no loss in the other.

    Args:
        section: of the arms.
        low: the number that should be low.
        high: the number that should be high.
    """
    points = {
        arm.label: (-means[low].mean, means[high].mean)
        for arm in section.arms
        if {low, high} <= (means := section.means[arm.label]).keys() and section.matched(arm)
    }
    return [
        label
        for label, one in points.items()
        if not any(other != one and all(a >= b for a, b in zip(other, one, strict=True)) for other in points.values())
    ]


def of_training(run: Trained) -> Measured:
    """What the trainer's own summary and log say of a run."""
    summary, log = run.summary(), run.log()
    held = summary["held_out"]
    numbers = {"fvu": held["fvu"], "l0": held["l0"], "dead": held["never_active"]}
    penalty = next(iter(run.config.penalties), "")
    if penalty and run.config.penalties[penalty].coeff:
        numbers["active"] = fmean(bool(line.get(f"gradient/{penalty}")) for line in log)
    last = log[-1]
    wanted = {
        "jaccard": f"{penalty}/jaccard",
        "slow_l0": f"{penalty}/slow_l0",
        "weight": f"{penalty}/lambda",
        "violation": f"term/{penalty}",
        "gradient_share": f"gradient/{penalty}",
    }
    numbers |= {name: last[key] for name, key in wanted.items() if last.get(key) is not None}
    steps = [int(line["step"]) for line in log]
    curves = {name: [line.get(key, math.nan) for line in log] for name, key in wanted.items() if key in last}
    return Measured(
        numbers=numbers, curves={"steps": steps, **{f"{name} by step": one for name, one in curves.items()}}
    )


def together(*parts: Measured) -> Measured:
    """Several findings on one SAE as one."""
    return Measured(
        numbers={key: value for part in parts for key, value in part.numbers.items()},
        curves={key: value for part in parts for key, value in part.curves.items()},
    )


def _means(seeds: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    found: dict[str, Mean] = {}
    for name in dict.fromkeys(key for one in seeds for key in one):
        values = [one[name] for one in seeds if name in one and math.isfinite(one[name])]
        if values:
            spread = stdev(values) if len(values) > 1 else math.nan
            found[name] = Mean(mean=fmean(values), spread=spread, n=len(values))
    return found
