"""Whole harvests of a tiny Gemma-2: what is cached is what the model says, whatever happened on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cache
from cache.folder import Folder
from cache.verify import Verification
from harvest import plan as plan_module
from harvest.__main__ import main
from harvest.errors import HarvestError
from harvest.model import load_model
from harvest.ranks import Ranks
from harvest.run import Harvest
from harvest.text import TextSource
from tests.harvest.tiny import N, S, T, config, contents, harvest, save_text, save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_text(folder, 120)
    save_tiny_model(folder / "model")
    return folder


@pytest.mark.parametrize("packing", ["pack", "truncate"])
def test_a_cached_row_is_a_fresh_forward_pass_bit_for_bit(tiny: Path, tmp_path: Path, packing: str) -> None:
    reader = harvest(tiny, tmp_path / "c", packing=packing, layers=(0, 1, 3))
    model = load_model(str(tiny / "model"))
    for shard in reader.shards:
        numbers = reader.shard_range(shard)
        for start in range(numbers.start, numbers.stop, 3):
            stop = min(start + 3, numbers.stop)
            member = torch.from_numpy(reader.document(start, stop) >= 0)
            fresh = model.residuals(torch.from_numpy(reader.tokens(start, stop)), layers=(0, 1, 3))
            for layer in (0, 1, 3):
                stored = reader.layer(layer).sequences(start, stop)
                assert torch.equal(stored[member].view(torch.int16), fresh[layer][member].view(torch.int16))


def test_other_batch_shapes_agree_within_bfloat16_rounding(tiny: Path, tmp_path: Path) -> None:
    one, other = harvest(tiny, tmp_path / "1", batch=1), harvest(tiny, tmp_path / "8", batch=8)
    assert np.array_equal(one.tokens(), other.tokens())
    for layer in (1, 2):
        x, y = (reader.layer(layer).sequences(0, N).float() for reader in (one, other))
        assert ((x - y).norm() / x.norm()).item() < 2**-6


def test_the_cache_of_a_harvest_has_no_findings(tiny: Path, tmp_path: Path) -> None:
    reader = harvest(tiny, tmp_path / "c")
    assert Verification(Folder(tmp_path / "c")).run() == []
    assert reader.state.audit == {"layer_1/bf16_fvu": 0.0, "layer_2/bf16_fvu": 0.0}  # a bfloat16 model loses nothing
    assert (reader.meta.model, reader.meta.attn_implementation, reader.meta.bos_token_id) == ("model", "eager", 2)
    assert 0 < (reader.split() == 1).sum() < N


def test_a_float32_model_says_what_bfloat16_storage_loses(tiny: Path, tmp_path: Path) -> None:
    audit = harvest(tiny, tmp_path / "c", dtype="float32").state.audit
    assert all(1e-7 < value < 1e-4 for value in audit.values())  # 8 bits of mantissa: about 2**-18 / 3 of the variance


def test_a_harvest_that_stops_anywhere_goes_on_byte_for_byte(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    harvest(tiny, whole)
    append = cache.CacheWriter.append
    for batches in range(8):
        left = iter(range(batches))

        def stop_after(self: cache.CacheWriter, *arguments: Any, left: Any = left, **named: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            append(self, *arguments, **named)

        path = tmp_path / f"stopped-{batches}"
        with monkeypatch.context() as patch:
            patch.setattr(cache.CacheWriter, "append", stop_after)
            with pytest.raises(KeyboardInterrupt):
                harvest(tiny, path)
        harvest(tiny, path)
        assert contents(path) == contents(whole)


def test_resuming_begins_at_the_cursor_of_the_last_shard(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    harvest(tiny, path, tokens=2 * S * T)
    with cache.CacheWriter(path, harvest_meta(tiny, path), layers=(1, 2), sequences=N) as writer:
        at, cursor = writer.cursor_before(2)
    assert at == 2 * S
    assert cursor["sequences"] == 2 * S


def harvest_meta(tiny: Path, path: Path) -> cache.CacheMeta:
    return Harvest(config(tiny, path), Ranks()).meta


def test_a_killed_harvest_goes_on_byte_for_byte(tiny: Path, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole", tmp_path / "killed"
    harvest(tiny, whole, tokens=100 * T)
    command = [sys.executable, "-m", "harvest", *flags(tiny, path, tokens=100 * T)]
    for kills in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while committed(path) < 2 * (kills + 1) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert committed(path) > 0
    harvest(tiny, path, tokens=100 * T)
    assert contents(path) == contents(whole)


def committed(path: Path) -> int:
    manifest = path / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def flags(tiny: Path, path: Path, tokens: int) -> list[str]:
    """The command line that means the same as `config`."""
    return [
        *("--model", str(tiny / "model"), "--layer", "1,2", "--dataset", str(tiny / "text.jsonl")),
        *("--tokens", str(tokens), "--context", str(T), "--cache", str(path), "--batch", "3"),
        *("--shard-sequences", str(S), "--held-out-fraction", "0.3"),
    ]


def test_two_processes_write_what_one_writes(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "harvest", *flags(tiny, tmp_path / "two", tokens=N * T)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.count("is complete") == 1


def test_two_processes_agree_on_where_the_text_ends(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "one", tokens=10**6)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "harvest", *flags(tiny, tmp_path / "two", tokens=10**6)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert "the text held no more than" in done.stdout


def test_more_tokens_extend_a_cache_as_if_asked_for_at_once(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "at once")
    harvest(tiny, tmp_path / "c", tokens=(S + 3) * T)
    harvest(tiny, tmp_path / "c")
    assert contents(tmp_path / "c") == contents(tmp_path / "at once")


def test_another_layer_is_added_over_the_same_tokens(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "at once", layers=(1, 2))
    harvest(tiny, tmp_path / "c", layers=(2,))
    tokens_file = tmp_path / "c" / "tokens" / "c" / "0" / "0"
    before = tokens_file.stat().st_mtime_ns
    harvest(tiny, tmp_path / "c", layers=(1,))
    assert tokens_file.stat().st_mtime_ns == before
    assert contents(tmp_path / "c") == contents(tmp_path / "at once")


def test_extending_continues_the_layers_that_are_there(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "c", layers=(3,), tokens=S * T)
    reader = harvest(tiny, tmp_path / "c", layers=(1,))
    assert (reader.layers, reader.n_sequences) == ((1, 3), N)
    harvest(tiny, tmp_path / "at once", layers=(1, 3))
    assert contents(tmp_path / "c") == contents(tmp_path / "at once")


def test_the_same_request_again_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "c")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*") if p.is_file() and p.name != ".lock"}
    harvest(tiny, tmp_path / "c", tokens=T)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_other_text_for_the_same_cache_is_refused_with_what_differs(tiny: Path, tmp_path: Path) -> None:
    harvest(tiny, tmp_path / "c")
    with pytest.raises(cache.CacheError, match=r"seed: have 42, asked for 7"):
        harvest(tiny, tmp_path / "c", seed=7)


def test_sources_carry_their_domains_into_the_cache(tiny: Path, tmp_path: Path) -> None:
    sources = tuple(
        TextSource(text=str(save_text(tmp_path / d, n)), domain=d) for d, n in (("forget", 40), ("retain", 70))
    )
    reader = harvest(tiny, tmp_path / "c", sources=sources)
    assert reader.meta.domains == ("forget", "retain")
    assert set(reader.domain().tolist()) == {0, 1}


def test_a_row_that_is_not_finite_stops_the_harvest_with_its_place(tiny: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny / "model"))
    model.blocks[2].register_forward_hook(lambda _m, _i, output: output.index_fill(1, torch.tensor([5]), float("nan")))
    with pytest.raises(cache.CacheError, match=r"layer 2 is NaN or infinite at sequence 0, position 5 \(document \d+"):
        Harvest(config(tiny, tmp_path / "c"), Ranks(), model).run()
    assert cache.open(str(tmp_path / "c"), follow=True).shards == ()


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(HarvestError, match=r"its disk has 0.00 GB free: free some space, use another CACHE"):
        harvest(tiny, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert Harvest(config(tiny, tmp_path / "c"), Ranks()).run(dry_run=True, say=said.append) is None
    (text,) = said
    assert f"{N * T:,}: {N} sequences in 3 shards" in text
    assert not (tmp_path / "c").exists()


def test_random_weights_are_marked_and_need_no_text(tiny: Path, tmp_path: Path) -> None:
    reader = harvest(tiny, tmp_path / "c", random_weights=True)
    assert reader.meta.random_weights
    assert reader.meta.sources[0].dataset == "random token ids"
    assert reader.tokens().max() > 200
    harvest(tiny, tmp_path / "c", random_weights=True, tokens=2 * N * T)
    harvest(tiny, tmp_path / "at once", random_weights=True, tokens=2 * N * T)
    assert contents(tmp_path / "c") == contents(tmp_path / "at once")


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        (["--layer", "99"], "layer 99 is out of range: model has layers 0 to 3"),
        (["--layer", "twelve"], "LAYER must be a block number or several"),
        (["--tokens", "many"], "TOKENS must be a number such as"),
        (["--tokens", "0"], "TOKENS must be at least 1, got 0"),
        (["--packing", "loose"], "PACKING must be pack or truncate, got 'loose'"),
        (["--dataset", "no/such/file.jsonl"], "no file or folder 'no/such/file.jsonl'"),
        (["--dataset-split", "test"], "DATASET_SPLIT 'test' means nothing for text.jsonl: leave it out"),
        (["--text-column", "body"], "has no field 'body': choose from text"),
        (["--dtype", "int4"], "unknown dtype 'int4': choose from"),
        (["--model", "some/model"], "accept its licence on the hub, or give a local folder, or use MODEL=miniature"),
    ],
)
def test_a_bad_request_gets_one_line_and_exit_code_2(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], answer: str
) -> None:
    assert main([*flags(tiny, tmp_path / "c", tokens=N * T), *changes]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert answer in lines[0]
    assert not (tmp_path / "c").exists()


def test_the_command_line_names_column_separator_and_paths_with_signs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [json.loads(line)["text"] for line in (tiny / "text.jsonl").read_text().splitlines()]
    Path("a=1,b.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    Path("joined.txt").write_text("\n--\n".join(texts))
    rest = flags(tiny, tmp_path / "unused", tokens=N * T)
    for cache_name, given in {
        "lines": ["--dataset", "a=1,b.jsonl", "--text-column", "body"],
        "joined": ["--dataset", "joined.txt", "--separator", r"\n--\n"],
    }.items():
        assert main([*rest, *given, "--cache", cache_name]) == 0
    reader, joined = cache.open("lines"), cache.open("joined")
    assert reader.meta.sources[0].dataset == "a=1,b.jsonl"
    assert joined.document().max() > 3
    assert np.array_equal(reader.tokens(), harvest(tiny, tmp_path / "plain").tokens())
