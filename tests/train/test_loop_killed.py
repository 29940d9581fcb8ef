"""A training process that is told to stop, or killed: the same command goes on, to the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.train.planted_runs import make_cache
from train import checkpoint
from train.__main__ import main
from train.trackers import read_lines

TIMES = ("rows_per_s", "gb_per_s", "feed_wait")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("caches") / "planted")


def flags(planted: Path, out: Path, *, variants: str, steps: int) -> list[str]:
    return [
        *("--variant", variants, "--k", "4", "--cache", str(planted), "--out", str(out), "--steps", str(steps)),
        *("--set", "d_sae=48 batch=96 lr=3e-3 pool_sequences=16 dead_after=300"),
        *("--checkpoint-every", "50", "--device", "cpu"),
    ]


def stop(arguments: list[str], out: Path, kill: signal.Signals) -> tuple[int, str]:
    """Train in a process until it has written a checkpoint, then end it; returns its status and its errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not any(checkpoint.steps(run) for run in out.glob("*/*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kill)
    _, errors = process.communicate()
    return process.returncode, errors


def assert_same_bits(whole: Path, cut: Path, steps: int) -> None:
    """Everything that the runs in two folders know of themselves, and every line that they reported."""
    runs = sorted(whole.glob("*/*"))
    assert runs
    for one in runs:
        other = cut / one.parent.name / one.name
        a, b = (checkpoint.load(folder, steps).tensors for folder in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        told = [
            [{key: line[key] for key in line if key not in TIMES} for line in read_lines(run / "metrics.jsonl")]
            for run in (one, other)
        ]
        assert told[0] == told[1]


def test_a_process_that_is_told_to_stop_saves_what_it_has_and_goes_on_to_the_same_bits(
    planted: Path, tmp_path: Path
) -> None:
    steps = 500
    wanted = flags(planted, tmp_path / "cut", variants="topk", steps=steps)
    status, errors = stop(wanted, tmp_path / "cut", signal.SIGTERM)
    assert status == 130, errors
    assert "checkpoint was written" in errors
    (run,) = (tmp_path / "cut").glob("*/*")
    saved = max(checkpoint.steps(run))
    assert 50 <= saved < steps
    assert main(wanted) == 0
    assert main(flags(planted, tmp_path / "whole", variants="topk", steps=steps)) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "cut", steps)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_resumes_bit_for_bit(planted: Path, tmp_path: Path, kill: signal.Signals) -> None:
    whole, cut = (flags(planted, tmp_path / name, variants="topk,batchtopk", steps=4000) for name in ("whole", "cut"))
    assert main(whole) == 0
    status, errors = stop(cut, tmp_path / "cut", kill)
    if kill != signal.SIGKILL:
        assert status == 130
        assert "checkpoint was written" in errors
        assert len({tuple(checkpoint.steps(run))[-1:] for run in (tmp_path / "cut").glob("*/*")}) == 1
    again = subprocess.run([sys.executable, "-m", "train", *cut], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert_same_bits(tmp_path / "whole", tmp_path / "cut", 4000)
