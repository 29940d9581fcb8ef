"""Where metrics go: `metrics.jsonl` always; TensorBoard and Weights & Biases where they are asked for and installed."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from cache.atomic import write_file
from train.errors import TrainError
from train.run_folder import METRICS


class Tracker(ABC):
    """Takes one run's metrics."""

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back."""


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The reports in a metrics file; none behind a line that an interruption has torn."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


class JsonLines(Tracker):
    """One line a report; a value that is not finite becomes null, which JSON can hold."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        """Go on behind step `step`: lines of later steps, from before an interruption, are dropped."""
        self.path = run / METRICS
        kept = [line for line in read_lines(self.path) if line["step"] <= step]
        write_file(run, METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode(), sync=True)
        self._file = self.path.open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line."""
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_report(run: Path) -> dict[str, float]:
    """The last line of a run's metrics."""
    found = read_lines(run / METRICS)
    return {name: value for name, value in found[-1].items() if name != "step"} if found else {}


class TensorBoard(Tracker):
    """Event files in `<run>/tensorboard`."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        """Events behind `step` from before an interruption are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandB(Tracker):
    """A run in the project `silo` of Weights & Biases (offline with WANDB_MODE=offline)."""

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        """One run a folder; a resumed run goes on under its name."""
        import wandb

        self._run = wandb.init(
            project="silo",
            name=run.name,
            id=run.name,
            dir=str(run),
            config=dict(config),
            resume="allow",
            reinit="create_new",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


OPTIONAL: Final = {"tensorboard": TensorBoard, "wandb": WandB}


def trackers(names: tuple[str, ...], run: Path, step: int, config: Mapping[str, Any]) -> list[Tracker]:
    """JSONL and those named.

    Raises:
        TrainError: an unknown or uninstalled one.
    """
    check(names)
    return [JsonLines(run, step, config), *(OPTIONAL[name](run, step, config) for name in names)]


def check(names: tuple[str, ...]) -> None:
    """Refuse loggers that cannot work, before anything is trained.

    Raises:
        TrainError: an unknown or uninstalled one.
    """
    for name in names:
        if name not in OPTIONAL:
            raise TrainError(f"LOG must be among {', '.join(OPTIONAL)}, got {name!r}")
        if find_spec(name) is None:
            raise TrainError(f"{name} is not installed: pip install 'silo-sae[{name}]'")
