"""Small experiments, and tables of made-up numbers."""

from evals.experiments.measure import Measured
from evals.experiments.plan import Arm
from evals.experiments.result import Section
from evals.experiments.scales import Scale
from train.variants import Request


def small(**changes: int) -> Scale:
    """Sizes that train in a blink."""
    return Scale(**{"d_sae": 64, "k": 4, "batch": 64, "steps": 21, "sequences": 12, "meta_steps": 20, **changes})


def arm(label: str, **settings: object) -> Arm:
    """An arm whose variant is the label's first word."""
    return Arm(label=label, request=Request(variant=label.split()[0], settings=settings))


def section_of(plan: list[Arm], numbers: dict[str, list[dict[str, float]]], *, alone: tuple[str, ...] = ()) -> Section:
    """Arms with the numbers of each seed, held against the first one, but for those that have no baseline."""
    return Section(
        arms=plan,
        found={label: [Measured(numbers=one) for one in some] for label, some in numbers.items()},
        baselines={one.label: plan[0].label for one in plan if one.label not in alone},
    )
