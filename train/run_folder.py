"""A run's folder, which explains itself:

config.json (resolved), provenance.json, metrics.jsonl, sae/ (SAELens format, raw units), checkpoint/, and, once the run
is complete, summary.json.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from cache.atomic import write_file
from cache.provenance import provenance
from train.config import RunConfig
from train.errors import TrainError

CONFIG: Final = "config.json"
SUMMARY: Final = "summary.json"
METRICS: Final = "metrics.jsonl"
SAE_FOLDER: Final = "sae"


class RunFolder:
    """One run on disk, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Nothing is touched before `begin`."""
        self.path = path
        self._lock = -1

    @property
    def complete(self) -> bool:
        """Whether the run has ended: its summary is written last."""
        return (self.path / SUMMARY).is_file()

    def begin(self, config: RunConfig, cache: str) -> None:
        """Make the folder, or find that it is of this very run, and lock it.

        Raises:
            TrainError: another run's folder, or another process is training it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(f"{self.path} is being trained by another process: wait for it, or stop it") from None
        if (self.path / CONFIG).exists():
            if read_config(self.path) != config:
                raise TrainError(f"{self.path} holds another run: give another OUT, or remove the folder")
            return
        self.write(
            "provenance.json", {**provenance(), "device": _device(), "cache": cache, "cache_fingerprint": config.cache}
        )
        self.write(CONFIG, config.to_json())

    def end(self) -> None:
        """Let go of the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_file(self.path, name, text.encode(), sync=True)

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file.

        Raises:
            TrainError: missing or damaged.
        """
        return _read(self.path / name)


def read_config(path: Path) -> RunConfig:
    """What a run's folder says it is.

    Raises:
        TrainError: no run, or a damaged config.
    """
    return RunConfig.from_json(_read(path / CONFIG))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise TrainError(
            f"{file.parent} is no run (it has no {file.name}): give the folder that training printed"
        ) from None
    except ValueError as error:
        raise TrainError(f"{file} is damaged ({error}): remove the run's folder and train again") from None
    if not isinstance(content, dict):
        raise TrainError(f"{file} is damaged (it holds no object): remove the run's folder and train again")
    return content


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"cpu, {torch.get_num_threads()} threads"
