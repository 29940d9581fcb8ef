"""A cache of a terabyte is opened like a small one."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cache import OPEN, sparse_terabyte


@pytest.mark.slow
def test_opening_a_terabyte_takes_little_memory_and_reads_only_what_is_asked(tmp_path: Path) -> None:
    """3,311 shards of sparse files: valid in every byte that is looked at. The time is the benchmark's business."""
    sparse_terabyte(tmp_path / "c")
    assert sum(file.stat().st_size for file in (tmp_path / "c").rglob("c/*/0/0")) > 0.99e12
    command = [sys.executable, "-c", OPEN, str(tmp_path / "c")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    _, _, peak, total = (float(word) for word in done.stdout.split())
    assert peak < 300e6
    assert total == 0
