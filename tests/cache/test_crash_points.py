"""Every instant between two changes of the disk: a writer that dies there costs nothing but its unfinished shard."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache import manifest
from tests.cache.planted import make_bits, make_meta, make_rows, tree, write

ROOT = Path(__file__).parents[2]
SCENARIOS = ("create", "extend", "layer", "exhausted")
GIVEN_UP = "given up"


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.cache.torture_writer", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where there is such a file system; `os._exit` leaves the same files there."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """One process a scenario, all at once; `both` only in the slow suite."""
    processes = {name: start("crash", str(folder / name), name) for name in (*SCENARIOS, GIVEN_UP)}
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


def check(found: dict[str, Any]) -> None:
    assert found["points"] >= 150, found
    assert found["kinds"]["half"] >= 30, found  # torn writes: payloads, indices, metadata, manifest lines
    assert found["states"]["incomplete"] >= 100, found
    assert found["states"]["complete"] >= 1, found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_writer_that_dies_at_any_call_is_continued_to_the_same_bytes(
    scenario: str, running: dict[str, "subprocess.Popen[str]"]
) -> None:
    """Before the first and after each mutating system call, and halfway through each write (checked by the helper)."""
    check(result(running[scenario]))


def test_a_writer_that_dies_while_it_sets_a_layer_aside_loses_nothing_of_either(
    running: dict[str, "subprocess.Popen[str]"],
) -> None:
    """Layer 5 was begun; layer 3 is asked for again. At every point both can still be had."""
    found = result(running[GIVEN_UP])
    assert found["points"] >= 30, found
    assert found["kinds"]["half"] >= 5, found
    assert found["states"]["incomplete"] >= 10, found


@pytest.mark.slow
def test_a_writer_that_dies_while_it_adds_a_layer_and_length_is_continued_to_the_same_bytes(folder: Path) -> None:
    check(result(start("crash", str(folder / "both"), "both")))


def test_a_line_torn_by_a_dead_rank_is_cut_off_by_the_next_append(tmp_path: Path) -> None:
    """A rank may die while others live: no line of theirs may be glued to the rest of its own."""
    many = {1: {f"layer_{layer}": "0" * 32 for layer in range(9)}}  # longer than what is written over it
    commits = [
        manifest.Commit(shard=shard, sequences=4, crc32c=many.get(shard, {"tokens": "0" * 8})) for shard in range(3)
    ]
    lines = [manifest.commit_line(commit) for commit in commits]
    for torn in (1, len(lines[1]) // 2, len(lines[1]) - 1):
        (tmp_path / "manifest.jsonl").write_bytes(lines[0] + lines[1][:torn])
        manifest.append(tmp_path, commits[2], sync=False)
        assert (tmp_path / "manifest.jsonl").read_bytes() == lines[0] + lines[2]


@pytest.mark.parametrize("file", ["layer_3/c/1/0/0", "tokens/c/0/0", "statistics/layer_5/shards/c/1/0", "split/c/1"])
@pytest.mark.parametrize("size", [None, 0, 3])
def test_a_committed_file_that_a_power_loss_took_is_written_again(tmp_path: Path, file: str, size: int | None) -> None:
    """A file system without barriers may keep a manifest line and lose a file: the next writer looks."""
    layers = {layer: make_bits(seed=layer) for layer in (3, 5)}
    write(tmp_path / "whole", make_meta(), layers, make_rows())
    write(tmp_path / "c", make_meta(), layers, make_rows(), finish=False)
    os.truncate(tmp_path / "c" / file, size) if size is not None else (tmp_path / "c" / file).unlink()
    write(tmp_path / "c", make_meta(), layers, make_rows())
    assert tree(tmp_path / "c") == tree(tmp_path / "whole")


def test_what_a_rename_or_a_manifest_line_promises_is_on_disk_before(folder: Path) -> None:
    """The order that survives a power loss: file fsync → rename → fsync of its folders → manifest line → fsync of it;
    and a root that says complete comes after everything else."""
    root = str(folder / "trace" / "cache")
    calls = [(name, path) for name, path in result(start("trace", str(folder / "trace")))["calls"]]
    renames = [
        (at, path.removesuffix(".partial").rpartition(".")[0])
        for at, (name, path) in enumerate(calls)
        if name == "rename"
    ]
    assert len(renames) > 30
    lines = [at for at, (name, path) in enumerate(calls) if (name, path) == ("pwrite", f"{root}/manifest.jsonl")]
    assert len(lines) == 2, "one line a shard"
    for at, final in renames:
        temporary = calls[at][1]
        writes = [i for i, call in enumerate(calls[:at]) if call == ("pwrite", temporary)]
        synced = [i for i, call in enumerate(calls[:at]) if call == ("fsync", temporary)]
        assert synced, f"{final} is renamed without an fsync"
        assert max(writes, default=0) < synced[-1], f"{final} is written after its fsync"
        # Every folder up to the cache is on disk before anything else relies on the name.
        relies = [i for i in [*lines, *(i for i, f in renames if f == f"{root}/zarr.json" and i > at)] if i > at]
        folder_, until = os.path.dirname(final), min(relies, default=len(calls))
        while folder_ != os.path.dirname(root):
            assert ("fsync", folder_) in calls[at:until], (
                f"{folder_} has no fsync between {final} and what relies on it"
            )
            folder_ = os.path.dirname(folder_)
    for at in lines:
        after = calls[at + 1 :]
        assert after[0] == ("fsync", f"{root}/manifest.jsonl"), (
            "a manifest line is on disk before anything else happens"
        )
    last_writes = [path for name, path in calls if name in ("pwrite", "rename")]
    assert last_writes[-2].startswith(f"{root}/zarr.json") or last_writes[-3].startswith(f"{root}/zarr.json")
    assert renames[-1][1] == f"{root}/zarr.json", "complete is written last"
    assert renames[-2][1] != f"{root}/zarr.json"
