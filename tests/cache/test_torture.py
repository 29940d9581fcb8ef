"""A cache whose writers are killed at random instants ends up byte for byte as if nothing had happened."""

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

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: a kill does not care, and thousands of renames are faster."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory)) if os.access(memory, os.W_OK) else tmp_path
    yield path
    shutil.rmtree(path, ignore_errors=True)


def torture(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.cache.torture_writer", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_writer_killed_at_a_hundred_random_instants_leaves_the_bytes_of_an_uninterrupted_one(folder: Path) -> None:
    """After each kill a reader that follows sees only committed shards with the planted bits; the next writer touches
    no committed file; the finished cache equals the reference (the helper checks all of this)."""
    found = torture("torture", str(folder), "20260102", "110")
    assert sum(found["kills"].values()) >= 100, found
    assert min(found["kills"].get(phase, 0) for phase in ("create", "append", "finish")) >= 10, found
    assert found["rounds"] >= 8, found


def test_two_ranks_killed_at_random_instants_leave_the_bytes_of_one_process(folder: Path) -> None:
    """Either or both of two writers of disjoint shards die, again and again; ranks change nothing in the files."""
    found = torture("ranks", str(folder), "7", "40")
    assert found["kills"]["rank 0"] >= 10, found
    assert found["kills"]["rank 1"] >= 5, found
    assert found["rounds"] >= 2, found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_writer_killed_a_thousand_times_leaves_the_bytes_of_an_uninterrupted_one(folder: Path, seed: int) -> None:
    found = torture("torture", str(folder), str(seed), "250")
    assert sum(found["kills"].values()) >= 250, found
