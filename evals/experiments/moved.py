"""A table in words: which numbers of which arms moved, by how much, and which arms moved nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from evals.experiments.columns import COLUMNS
from evals.experiments.plan import Arm
from evals.experiments.result import ERRORS, Mean, Section

_ARMS: Final = 8
"""Arms that have a line of their own: those that moved most."""
_NUMBERS: Final = 5
"""Numbers in such a line: those that moved most, and FVU where it moved."""


def words(section: Section, names: Sequence[str]) -> str:
    """What moved, in a dozen lines: arms by their largest relative change, and the numbers of each by theirs.

    Relative is: over the larger of both means. L0 itself is no finding; arms at another L0 are named and not compared.
    """
    held = [arm for arm in section.arms if section.reference(arm)]
    even = [arm for arm in held if section.matched(arm) and not section.idle(arm)]
    cells = {arm.label: _cells(section, arm, names) for arm in even}
    moved = {label: _moved(own) for label, own in cells.items()}
    number, total = (sum(map(len, one.values())) for one in (moved, cells))
    order = sorted((arm for arm in even if moved[arm.label]), key=lambda arm: -_change(*moved[arm.label][0][1:]))
    parts = {
        "Moved less": [arm.label for arm in order[_ARMS:]],
        "Nothing moved": [arm.label for arm in even if not moved[arm.label]],
        "Never active": [arm.label for arm in section.arms if section.idle(arm)],
        "Another L0, not compared": [arm.label for arm in held if not section.matched(arm)],
        "No baseline": [arm.label for arm in section.arms if not section.baseline(arm)],
    }
    lines = [f"**What moved:** {number} of the {total} numbers that have a baseline at the same L0, L0 itself aside."]
    lines += [_line(section, arm, moved[arm.label]) for arm in order[:_ARMS]]
    lines += [f"- {text}: {', '.join(f'`{one}`' for one in some)}." for text, some in parts.items() if some]
    return f"{lines[0]}\n\n" + "\n".join(lines[1:]) if total else "**What moved:** one seed a side says nothing."


def chance(seeds: int) -> float:
    """P(|t| > 2) of Student's t with 2·seeds − 2 degrees of freedom: how often two means of `seeds` equal normal
    numbers are further apart than twice the standard error of their difference.

    Raises:
        ValueError: a single seed, which has no spread.
    """
    if seeds < 2:
        raise ValueError(f"a spread needs at least 2 seeds, got {seeds}")
    freedom = 2 * seeds - 2  # even, where the distribution has a closed form (Abramowitz & Stegun 26.7.4)
    angle = math.atan(ERRORS / math.sqrt(freedom))
    term = total = 1.0
    for half in range(1, freedom // 2):
        term *= (2 * half - 1) / (2 * half) * math.cos(angle) ** 2
        total += term
    return 1 - math.sin(angle) * total


Cell = tuple[str, Mean, Mean]
"""Name of a number, its mean, the baseline's."""


def _cells(section: Section, arm: Arm, names: Sequence[str]) -> list[Cell]:
    own, other = section.means[arm.label], section.reference(arm)
    both = [name for name in names if name != "l0" and name in own and own[name].comparable(other.get(name))]
    return [(name, own[name], other[name]) for name in both]


def _moved(cells: Sequence[Cell]) -> list[Cell]:
    """Those that moved, the largest relative change first."""
    found = [(name, own, other) for name, own, other in cells if own.moved(other, COLUMNS[name].digits)]
    return sorted(found, key=lambda one: -_change(one[1], one[2]))


def _change(own: Mean, other: Mean) -> float:
    return abs(own.mean - other.mean) / max(abs(own.mean), abs(other.mean))


def _line(section: Section, arm: Arm, moved: Sequence[Cell]) -> str:
    price = [one for one in moved[_NUMBERS:] if one[0] == "fvu"]  # never left out, however small
    told = "; ".join(_told(*one) for one in [*moved[: _NUMBERS - len(price)], *price])
    more = f"; {len(moved) - _NUMBERS} more" if len(moved) > _NUMBERS else ""
    return f"- `{arm.label}` against `{section.baseline(arm)}`: {told}{more}."


def _told(name: str, own: Mean, other: Mean) -> str:
    column = COLUMNS[name]
    numbers = f"{column.heading} {other.mean:.{column.digits}f} → {own.mean:.{column.digits}f}"
    verdict: Mapping[bool, str] = {True: "better", False: "worse"}
    if not column.better:
        return numbers
    return f"{numbers} ({verdict[(own.mean > other.mean) == (column.better == '↑')]})"
