"""Many runs from few words: `--variant a,b --sweep k=32,64`, or a TOML file.

[defaults]
steps = 2000

[[run]]
variant = "topk"
k = [32, 64]          # a list is a grid; the product of all lists is trained
seed = [0, 1, 2]

[[run]]
variant = "temporal"
base = "topk"
temporal.coeff = [0.03, 0.1]
"""

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from train import settings
from train.errors import TrainError
from train.variants import Request, sections_of


def from_flags(variants: str, base: str, pairs: Iterable[str], sweeps: Iterable[str]) -> list[Request]:
    """Every variant with every combination of the swept values.

    Raises:
        TrainError: a text that is no setting.
    """
    fixed = settings.parse(pairs)
    grid = {key: value.split(",") for key, value in settings.parse(sweeps).items()}
    if both := fixed.keys() & grid.keys():
        raise TrainError(f"{', '.join(sorted(both))} is both set and swept: say one")
    names = [name for name in variants.split(",") if name]
    if not names:
        raise TrainError("VARIANT must name at least one variant, such as topk or topk,batchtopk; --list shows all")
    # Of several variants each takes the settings that it has; a key that none of them has is refused by the first.
    known = {name: sections_of(name, base) for name in names}
    shared = {key for key in fixed | grid if any(settings.has(sections, key) for sections in known.values())}
    found = []
    for name, sections in known.items():
        for one in _product(grid):
            own = {k: v for k, v in (fixed | one).items() if k not in shared or settings.has(sections, k)}
            found.append(Request(variant=name, base=base, settings=own))
    return found


def from_file(path: Path, pairs: Iterable[str]) -> list[Request]:
    """The runs of a TOML file; settings of the command line win over its defaults.

    Raises:
        TrainError: no such file, not TOML, or a table without a variant.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"cannot read the sweep {path}: {error}") from None
    if extra := content.keys() - {"defaults", "run"}:
        raise TrainError(f"{path} has [defaults] and [[run]] tables alone, got {', '.join(sorted(extra))}")
    defaults, runs = content.get("defaults", {}), content.get("run", [])
    tables = isinstance(defaults, dict) and isinstance(runs, list) and all(isinstance(run, dict) for run in runs)
    if not tables or not runs or not all("variant" in run for run in runs):
        raise TrainError(f"{path} needs at least one [[run]] table, each with a variant, and at most one [defaults]")
    fixed = settings.parse(pairs)
    found = []
    for run in runs:
        flat = _flat(defaults) | _flat(run) | fixed
        for one in _product({key: value if isinstance(value, list) else [value] for key, value in flat.items()}):
            name, base = str(one.pop("variant")), str(one.pop("base", ""))
            found.append(Request(variant=name, base=base, settings=one))
    return found


def _flat(table: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Dotted keys, which TOML reads as tables within tables, as the keys that settings have."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flat(value, f"{start}{key}.") if isinstance(value, dict) else {f"{start}{key}": value}
    return found


def _product(grid: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
