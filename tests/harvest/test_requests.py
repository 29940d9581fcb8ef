"""What a second request makes of a cache: never less than was there, whatever becomes of the request."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig

import cache
from cache.folder import Folder
from cache.verify import Verification
from harvest import model as model_module
from harvest import plan as plan_module
from harvest.__main__ import main
from harvest.errors import HarvestError
from harvest.model import ResidualModel
from harvest.ranks import Ranks
from harvest.run import Harvest
from tests.harvest.tiny import N, S, T, config, contents, harvest, save_text, save_tiny_model

MORE = {"tokens": 2 * N * T}
DEEPER = {"layers": (3,)}
BOTH = MORE | DEEPER


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_text(folder, 120)
    save_tiny_model(folder / "model")
    return folder


@pytest.fixture
def complete(tiny: Path, tmp_path: Path) -> Path:
    """Layer 1, the last of three shards partial."""
    harvest(tiny, tmp_path / "c", layers=(1,))
    return tmp_path / "c"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda folder: usage)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> ResidualModel:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(model_module.AutoModelForCausalLM, "from_pretrained", refuse)


def stamps(path: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in path.rglob("*") if p.name != ".lock"}


def interrupted(tiny: Path, path: Path, after: int, **changes: Any) -> None:
    """Begin a harvest and press Ctrl-C after so many batches."""
    append, left = cache.CacheWriter.append, iter(range(after))

    def stop(self: cache.CacheWriter, *arguments: Any, **named: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(self, *arguments, **named)
        self.flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.CacheWriter, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            harvest(tiny, path, **changes)


@pytest.mark.parametrize("change", [MORE, DEEPER, BOTH])
def test_what_does_not_fit_beside_a_cache_leaves_it_as_it_was(
    complete: Path, tiny: Path, change: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    before = stamps(complete)
    request.getfixturevalue("full_disk")
    request.getfixturevalue("no_weights")
    with pytest.raises(HarvestError, match=r"its disk has 0.00 GB free"):
        harvest(tiny, complete, **change)
    assert stamps(complete) == before
    assert cache.open(str(complete)).layers == (1,)
    assert harvest(tiny, complete, layers=(1,)).n_sequences == N
    assert stamps(complete) == before


@pytest.mark.parametrize("batches", [0, 3, 6])
def test_a_layer_that_was_begun_is_given_up_by_the_old_request_and_taken_up_by_its_own(
    complete: Path, tiny: Path, tmp_path: Path, batches: int
) -> None:
    before = contents(complete)
    interrupted(tiny, complete, batches, **DEEPER)
    with pytest.raises(cache.CacheError, match="is incomplete"):
        cache.open(str(complete))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 0}))
        patch.setattr(model_module.AutoModelForCausalLM, "from_pretrained", None)
        reader = harvest(tiny, complete, layers=(1,))
    shards = batches // 3  # a shard of 8 is 3 batches
    assert (reader.layers, reader.n_sequences, reader.set_aside) == ((1,), N, {3: shards} if shards else {})
    assert Verification(Folder(complete)).run() == []
    now = contents(complete)
    assert now == before or shards
    assert {name: now[name] for name in before if "zarr.json" not in name and name != "manifest.jsonl"}.items() <= (
        before.items()
    )
    forward = counted_sequences(tiny, complete)
    assert forward == N - shards * S
    harvest(tiny, tmp_path / "at once", layers=(1, 3))
    assert contents(complete) == contents(tmp_path / "at once")


def counted_sequences(tiny: Path, path: Path) -> int:
    """Go on with layer 3; how many sequences had to be written."""
    append, found = cache.CacheWriter.append, 0

    def count(self: cache.CacheWriter, start: int, rows: cache.Rows, *arguments: Any, **named: Any) -> None:
        nonlocal found
        found += len(rows.tokens)
        append(self, start, rows, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache.CacheWriter, "append", count)
        harvest(tiny, path, **DEEPER)
    return found


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_a_length_that_was_a_mistake_is_taken_back_by_the_old_request(
    complete: Path, tiny: Path, tmp_path: Path, batches: int
) -> None:
    interrupted(tiny, complete, batches, layers=(1,), tokens=10**6)
    reader = harvest(tiny, complete, layers=(1,))
    held = max(N, 2 * S + batches // 3 * S)  # what was committed on the way stays
    assert reader.n_sequences == held
    harvest(tiny, tmp_path / "at once", layers=(1,), tokens=held * T)
    assert contents(complete) == contents(tmp_path / "at once")


def said(tiny: Path, path: Path, *, dry_run: bool = True, **changes: Any) -> str:
    lines: list[str] = []
    Harvest(config(tiny, path, **changes), Ranks()).run(dry_run=dry_run, say=lines.append)
    return "\n".join(lines)


def test_a_dry_run_plans_what_is_owed_and_touches_nothing(complete: Path, tiny: Path) -> None:
    before = stamps(complete)
    assert f"{S * T + S // 2 * T:,}: {S + S // 2} sequences in 2 shards (2 of 4 are there" in said(
        tiny, complete, layers=(1,), tokens=(N + S) * T
    )
    deeper = said(tiny, complete, **DEEPER)
    assert f"{N * T:,}: {N} sequences in 3 shards" in deeper
    assert "layers   1, 3 " in deeper
    with pytest.raises(cache.CacheError, match=r"seed: have 42, asked for 7"):
        said(tiny, complete, seed=7)
    with pytest.raises(cache.CacheError, match=r"context: have 16, asked for 8"):
        said(tiny, complete, context=8)
    assert stamps(complete) == before


@pytest.mark.parametrize("tokens", [N * T, T])
def test_a_dry_run_of_what_is_there_says_that_there_is_nothing_to_do(
    complete: Path, tiny: Path, tokens: int, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("full_disk")
    request.getfixturevalue("no_weights")
    told = said(tiny, complete, layers=(1,), tokens=tokens)
    assert told == f"{complete} holds layers 1 of {N * T:,} tokens already: nothing to do"


def test_a_folder_that_is_no_cache_is_refused_before_weights_are_loaded(
    tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    request.getfixturevalue("no_weights")
    for dry_run in (True, False):
        with pytest.raises(cache.CacheError, match=r"is no cache and not empty \(it holds 'notes.txt'\)"):
            said(tiny, tmp_path, dry_run=dry_run)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_context_beyond_learned_positions_is_refused_with_both_numbers(
    tiny: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the weights are read: the configuration says it."""
    shape: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 2, "eos_token_id": 1}
    few = GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=24, **shape)
    if kind == "opt":
        few = OPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
            max_position_embeddings=24, **shape,
        )  # fmt: skip
    save_tiny_model(tmp_path / kind)
    for weights in (tmp_path / kind).glob("*.safetensors"):
        weights.unlink()
    AutoModelForCausalLM.from_config(few).save_pretrained(tmp_path / kind)
    assert harvest(tiny, tmp_path / "fits", model=str(tmp_path / kind), context=24).n_sequences
    for weights in (tmp_path / kind).glob("*.safetensors"):
        weights.unlink()
    flags = ["--model", str(tmp_path / kind), "--dataset", str(tiny / "text.jsonl"), "--layer", "1"]
    assert main([*flags, "--cache", str(tmp_path / "c"), "--context", "25"]) == 2
    answer = f"error: context 25 is longer than the 24 positions that {kind} has: use CONTEXT=24"
    assert answer in capsys.readouterr().err.splitlines()


def test_a_context_beyond_rotary_positions_is_warned_of(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(tiny, tmp_path / "c", context=520, tokens=520, layers=(0,))
    assert "warning: context 520 is longer than the 512 the model was made for" in capsys.readouterr().err
