"""Checkpoints of one run: safetensors and JSON, whole or not at all, the last n kept.

`checkpoint/step_00001000/` holds `state.safetensors` (parameters, moments, counters, penalties' state, random state)
and `state.json` (step, feed position, checksum). Nothing here is a pickle.
"""

import json
import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
from torch import Tensor

from cache.atomic import explaining
from cache.checksum import hex_digits
from train.errors import TrainError

FOLDER: Final = "checkpoint"
_TENSORS, _STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on bit for bit."""

    step: int
    feed: Mapping[str, Any]
    """Position in the feed after that step."""
    tensors: Mapping[str, Tensor]


def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint and remove all but the newest `keep`.

    Raises:
        CacheError: the disk is full or failing; earlier checkpoints stay.
    """
    folder = run / FOLDER / f"step_{checkpoint.step:08d}"
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    content = safetensors.torch.save(
        {name: one.detach().cpu().contiguous() for name, one in checkpoint.tensors.items()}
    )
    state = {"step": checkpoint.step, "feed": dict(checkpoint.feed), "crc32c": hex_digits(content)}
    with explaining(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary / _TENSORS, content)
        _write(temporary / _STATE, json.dumps(state, indent=2, sort_keys=True).encode())
        _sync(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        _sync(folder.parent)
    for old in steps(run)[:-keep]:
        shutil.rmtree(run / FOLDER / f"step_{old:08d}", ignore_errors=True)
    for torn in folder.parent.glob("*.partial"):
        shutil.rmtree(torn, ignore_errors=True)
    return folder


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints of a run, ascending."""
    names = [path.name for path in (run / FOLDER).glob("step_*") if not path.name.endswith(".partial")]
    return sorted(int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdecimal())


def load(run: Path, step: int) -> Checkpoint:
    """Read one checkpoint; its tensors are mapped, so a process that keeps a share of them reads no more than that.

    Raises:
        TrainError: missing or damaged.
    """
    folder = run / FOLDER / f"step_{step:08d}"
    try:
        state = json.loads((folder / _STATE).read_bytes())
        if _checksum(folder / _TENSORS) != state["crc32c"] or state["step"] != step:
            raise ValueError("checksum")
        return Checkpoint(step, state["feed"], safetensors.torch.load_file(folder / _TENSORS))
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise TrainError(
            f"{folder} is damaged ({error}): remove it, and training goes on from the checkpoint before"
        ) from None


def _checksum(path: Path) -> str:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        return hex_digits(view)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
