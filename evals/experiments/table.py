"""The Markdown page of an experiment: one table a section, means ± spread over seeds, baselines on top."""

import math
from collections.abc import Mapping, Sequence

from evals.experiments.columns import COLUMNS
from evals.experiments.ideas import Idea
from evals.experiments.moved import chance, words
from evals.experiments.plan import Arm
from evals.experiments.result import Mean, Section


def page(
    number: str,
    idea: Idea,
    sections: Mapping[str, tuple[Section, Sequence[str]]],
    pictures: Sequence[str],
    made: str,
    runs: str,
    notes: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
        number: of the idea.
        idea: what was asked.
        sections: heading → what was found, and which columns are shown.
        pictures: files beside the page, in order.
        made: how: command, cache, sizes, hardware.
        runs: folder of the SAEs on the cache.
        notes: paragraphs of their own.
    """
    used = dict.fromkeys(name for section, names in sections.values() for name in shown(section, names))
    plan, _ = next(iter(sections.values()))
    parts = [f"# {number} · {idea.title}", made, _legend(plan.means[plan.arms[0].label]["fvu"].n)]
    for heading, (section, names) in sections.items():
        parts += [f"## {heading}", table(section, names), words(section, names)]
    parts += ["## Columns", "\n".join(f"- **{COLUMNS[name].heading}**: {COLUMNS[name].text}" for name in used)]
    if idea.elsewhere:
        parts.append(f"{idea.elsewhere} The runs are `{runs}/*`.")
    parts += notes
    if pictures:
        parts += ["## Pictures", "\n\n".join(f"![{name}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def shown(section: Section, names: Sequence[str]) -> list[str]:
    """Those of the columns that any arm has."""
    return [name for name in names if any(name in means for means in section.means.values())]


def table(section: Section, names: Sequence[str]) -> str:
    """One Markdown table."""
    columns = shown(section, names)
    headings = ["arm", *(_heading(name) for name in columns), "same L0"]
    lines = [headings, ["---", *["--:"] * len(columns), "---"]]
    lines += [[_name(section, arm), *_cells(section, arm, columns), _matched(section, arm)] for arm in section.arms]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(name: str) -> str:
    """A bar within a cell of a Markdown table is written with a backslash."""
    return f"{COLUMNS[name].heading} {COLUMNS[name].better}".strip().replace("|", "\\|")


def _legend(seeds: int) -> str:
    by_chance = (
        f" With {seeds} seeds a side chance alone does that to up to {100 * chance(seeds):.0f} % of the cells"
        " (Student's t): one bold cell is a hint and no proof; what counts is what holds in several columns and"
        " sections."
        if seeds > 1
        else " One seed has no spread: nothing is bold."
    )
    return (
        "Mean ± standard deviation over seeds. **Bold**: further from the arm's baseline than twice the standard error"
        f" of the difference.{by_chance} An arm's baseline is the same run without the penalty: same architecture, same"
        " training settings, same windows; where the plan has none the row says `no baseline` and compares with"
        " nothing. `same L0` says whether L0 lies within 2 % of the baseline's: where it does not, nothing else in the"
        " row compares. `never active`: the penalty had no gradient at any report of any seed."
    )


def _cells(section: Section, arm: Arm, columns: Sequence[str]) -> list[str]:
    own, other = section.means[arm.label], section.reference(arm)
    return [_cell(own.get(name), other.get(name), COLUMNS[name].digits) for name in columns]


def _cell(own: Mean | None, other: Mean | None, digits: int) -> str:
    if own is None:
        return "–"
    text = f"{own.mean:.{digits}f}"
    if math.isfinite(own.spread):
        text += f" ± {own.spread:.{digits}f}"
    return f"**{text}**" if own.moved(other, digits) else text


def _matched(section: Section, arm: Arm) -> str:
    held = section.baseline(arm)
    if held in ("", arm.label):
        return "baseline" if held else "no baseline"
    return "yes" if section.matched(arm) else "no"


def _name(section: Section, arm: Arm) -> str:
    return f"`{arm.label}`" + (" (never active)" if section.idle(arm) else "")
