"""Every stage is busy while the others are, with little in memory; what stops one stops all, and cleanly."""

import errno
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

import cache
from harvest import batches as batches_module
from harvest import run as run_module
from harvest import tokens as tokens_module
from harvest.__main__ import main
from harvest.progress import Progress
from harvest.ranks import Ranks
from harvest.run import Harvest
from harvest.tokenizer import TextTokenizer
from tests.harvest.tiny import S, T, config, contents, harvest, save_text, save_tiny_model

ROOT = Path(__file__).parents[2]
LONG = 100 * T


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_text(folder, 120)
    save_tiny_model(folder / "model")
    return folder


def flags(tiny: Path, path: Path, *more: str) -> list[str]:
    return [
        *("--model", str(tiny / "model"), "--layer", "1,2", "--dataset", str(tiny / "text.jsonl")),
        *("--tokens", str(LONG), "--context", str(T), "--cache", str(path), "--batch", "3"),
        *("--shard-sequences", str(S), "--held-out-fraction", "0.3", *more),
    ]


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that has been tokenised."""
    seen: list[str] = []
    encode = TextTokenizer.encode

    def count(self: TextTokenizer, texts: list[str]) -> Any:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(TextTokenizer, "encode", count)
    return seen


def stopped(tiny: Path, path: Path, batches: int) -> None:
    append, left = cache.CacheWriter.append, iter(range(batches))

    def stop(self: cache.CacheWriter, *arguments: Any, **named: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(self, *arguments, **named)
        self.flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.CacheWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            harvest(tiny, path, tokens=LONG)


def test_going_on_tokenises_no_document_that_is_behind_it(tiny: Path, tmp_path: Path, tokenised: list[str]) -> None:
    harvest(tiny, tmp_path / "whole", tokens=LONG)
    whole = tokenised.copy()
    stopped(tiny, tmp_path / "c", 30)  # ten shards
    tokenised.clear()
    harvest(tiny, tmp_path / "c", tokens=LONG)
    assert tokenised == whole[-len(tokenised) :]
    at = cache.open(str(tmp_path / "c")).document(10 * S - 1, 10 * S).max()
    assert len(tokenised) <= len(whole) - at + 2, "an open row of either split may reach back a little"
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_place_in_the_text_that_is_too_long_to_keep_is_said_and_costs_no_more_than_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenised: list[str]
) -> None:
    monkeypatch.setattr(batches_module, "MAX_CURSOR_BYTES", 10)
    stopped(tiny, tmp_path / "c", 30)
    said: list[str] = []
    tokenised.clear()
    Harvest(config(tiny, tmp_path / "c", tokens=LONG), Ranks()).run(say=said.append)
    assert "too long to keep after 3 shards: going on from there tokenises from further back" in "\n".join(said)
    assert len(tokenised) == 120
    monkeypatch.undo()
    harvest(tiny, tmp_path / "whole", tokens=LONG)
    x, y = (cache.open(str(tmp_path / name)) for name in ("c", "whole"))
    assert (x.tokens() == y.tokens()).all()
    assert (x.layer(2).bits(0, 100) == y.layer(2).bits(0, 100)).all()


def test_text_is_tokenised_while_the_model_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenised: list[str]
) -> None:
    """The first forward pass, which four documents are enough for, waits until twelve have been tokenised."""
    monkeypatch.setattr(tokens_module, "BATCH_PIECES", 4)
    forward, ahead = run_module.forward, threading.Event()
    encode = TextTokenizer.encode

    def watched(self: TextTokenizer, texts: list[str]) -> Any:
        found = encode(self, texts)
        if len(tokenised) >= 12:
            ahead.set()
        return found

    def wait(*arguments: Any) -> Any:
        assert ahead.wait(timeout=60)
        return forward(*arguments)

    monkeypatch.setattr(TextTokenizer, "encode", watched)
    monkeypatch.setattr(run_module, "forward", wait)
    assert harvest(tiny, tmp_path / "c").n_sequences


@pytest.mark.parametrize("writes", [3, 25, 60])
def test_a_disk_that_fills_up_midway_stops_it_in_one_line_and_it_goes_on_byte_for_byte(
    tiny: Path, tmp_path: Path, writes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(tiny, tmp_path / "whole", tokens=LONG)
    pwrite, left = os.pwrite, iter(range(writes))

    def full(descriptor: int, *arguments: Any) -> int:
        if str(tmp_path / "c") in os.readlink(f"/proc/self/fd/{descriptor}") and next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert main(flags(tiny, tmp_path / "c")) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(lines) == 1
    assert "No space left on device while writing; everything committed is safe: free space" in lines[0]
    if (tmp_path / "c" / "zarr.json").exists():
        reader = cache.open(str(tmp_path / "c"), follow=True)
        assert not reader.state.complete
        for shard in reader.shards:
            numbers = reader.shard_range(shard)
            reader.layer(1).bits(numbers.start, numbers.stop)
    assert main(flags(tiny, tmp_path / "c")) == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_line_has_rate_bandwidth_time_left_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, world_size, label in ((0, 1, "harvest: "), (0, 4, "harvest, process 1 of 4: "), (1, 4, "")):
        terminal = _Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        writer = create_autospec(cache.CacheWriter, instance=True, waited_seconds=0.0)
        with Progress(2000, writer, Ranks(rank=rank, world_size=world_size)) as progress:
            progress.bar.mininterval = 0
            progress.advance(500, 4 * 10**6)
            progress.advance(500, 4 * 10**6)
        shown = terminal.getvalue().split("\r")[-1]
        if rank:
            assert terminal.getvalue() == ""
            continue
        assert shown.startswith(f"{label}")
        for part in ("50%", "1.00k/2.00k", "tok/s", " GB/s, waited 0% for the disk", "<00:"):
            assert part in shown
        (note,) = progress.notes()
        assert note.startswith("harvested 1,000 tokens in ")
        assert note.endswith("waited 0% for the disk")


def test_of_many_processes_one_says_why_a_request_is_refused(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "c")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harvest"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for more, answer in {
        ("--tokens", "many"): "error: TOKENS must be a number such as",
        ("--seed", "7"): f"error: {tmp_path / 'c'} holds another cache than asked for (seed: have 42, asked for 7)",
    }.items():
        command = [*torchrun, *flags(tiny, tmp_path / "c", *more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT)
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if line.startswith(("error", "interrupted"))]
        assert len(said) == 1
        assert said[0].startswith(answer)
        assert "raise PeerStopped" not in done.stderr


MEASURE = """
import sys
from pathlib import Path
import torch
from harvest.config import HarvestConfig, parse_layers
from harvest.ranks import Ranks
from harvest.run import Harvest

def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024

config = HarvestConfig(model=sys.argv[1], layers=(0, 1), sources=(), tokens=12 * 2048 * 128, context=128,
    cache=Path(sys.argv[2]), batch=64, shard_sequences=2048, random_weights=True)
one = Harvest(config, Ranks())
one.model.residuals(torch.zeros(64, 128, dtype=torch.long), layers=(0, 1))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
one.run()
print(peak() - before, one.meta.sequence_bytes * 2048 * 2)
"""


@pytest.mark.slow
def test_a_harvest_holds_no_more_than_the_model_and_four_shards(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tiny / "model"), str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    grown, shard = map(int, done.stdout.split()[-2:])
    assert shard == 2 * 2048 * 128 * 32 * 2
    assert grown <= 4 * shard, f"{grown / shard:.2f} shards"
