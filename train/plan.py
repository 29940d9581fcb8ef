"""What a training will cost, told before it starts."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from cache.reader import CacheReader
from cache.statistics import ROW_SETS
from train.config import RunConfig
from train.errors import TrainError
from train.loop import Options
from train.run_folder import RunFolder

_GB = 1e9


def describe(planned: list[tuple[RunConfig, Path]], reader: CacheReader, options: Options) -> str:
    """Rows, epochs, SAEs and disk of the runs that are still to be trained.

    Raises:
        TrainError: the disk cannot hold the checkpoints.
    """
    pending = [(run, folder) for run, folder in planned if not RunFolder(folder).complete]
    lines = [_rows(run, reader) for run in {(r.training.steps, r.feed.batch): r for r, _ in pending}.values()]
    if pending:
        lines += [_saes(run for run, _ in pending), _disk([run for run, _ in pending], pending[0][1], options)]
    return "\n".join(lines)


def _rows(run: RunConfig, reader: CacheReader) -> str:
    count = int(reader.statistics(run.layer).count[ROW_SETS.index("train")])
    rows = run.training.steps * run.feed.batch
    window = f", windows of {run.feed.window}" if run.feed.window > 1 else ""
    epochs = f"{rows / count:.1f} epochs of {count:,}" if count else "the cache has no training rows"
    return f"  rows     {run.training.steps:,} steps × {run.feed.batch:,} = {rows:,}{window}: {epochs}"


def _saes(runs: Iterable[RunConfig]) -> str:
    shapes: dict[str, int] = {}
    for run in runs:
        name = f"{run.variant} {run.sae.d_model} × {run.sae.d_sae}"
        shapes[name] = shapes.get(name, 0) + 1
    return "  SAEs     " + ", ".join(name + (f" (× {n})" if n > 1 else "") for name, n in shapes.items())


def _disk(runs: list[RunConfig], folder: Path, options: Options) -> str:
    parameters = [(2 * run.sae.d_model + 3) * run.sae.d_sae + run.sae.d_model for run in runs]
    # float32: the SAE, and in each checkpoint its parameters and two moments; one more while the oldest is replaced.
    wanted = 4 * (sum(parameters) * (1 + 3 * options.keep) + 3 * max(parameters))
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise TrainError(
            f"the runs need {wanted / _GB:.1f} GB at {place}, {free / _GB:.1f} GB are free: free space, say KEEP=1 or"
            " give another OUT"
        )
    return f"  disk     at most {wanted / _GB:.2f} GB (the newest {options.keep} checkpoints), {free / _GB:.1f} GB free"
