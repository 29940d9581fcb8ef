"""The table at the end: what each run came to."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.run_folder import SUMMARY, RunFolder

_COLUMNS = ("fvu", "explained", "cosine", "l0", "dead", "rows/s")


def table(folders: Iterable[Path]) -> str:
    """One line a complete run: held-out scores of the saved SAE (training's own where nothing is held out)."""
    lines: list[tuple[str, ...]] = [("run", *_COLUMNS)]
    for folder in folders:
        run = RunFolder(folder)
        lines.append((folder.name, *(_cells(run.read(SUMMARY)) if run.complete else ["–"] * len(_COLUMNS))))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([shown[0], "─" * len(shown[0]), *shown[1:]])


def _cells(summary: dict[str, Any]) -> list[str]:
    trained = summary["train"]
    score = summary["held_out"] or trained
    return [
        f"{score['fvu']:.4f}",
        f"{1 - score['fvu']:.4f}",
        f"{score['cosine']:.4f}",
        f"{score['l0']:.1f}",
        f"{trained['dead']:.1%}",
        f"{trained['rows_per_s']:,.0f}",
    ]
