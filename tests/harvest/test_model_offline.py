"""A model that cannot be had ends in one line with the remedies, within seconds; a cached copy needs no network."""

import time
from pathlib import Path

import huggingface_hub.constants
import pytest

from harvest.errors import HarvestError
from harvest.hub import content_revision, folder_revision, resolve_dataset, resolve_model
from harvest.model import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that refuses every connection, and an empty local hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def one_line(error: pytest.ExceptionInfo[HarvestError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_without_a_network_the_model_and_the_three_remedies_are_named_within_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(HarvestError) as caught:
        load_model("google/gemma-2-2b")
    assert time.monotonic() - start < 5  # huggingface_hub's own retries take 23 s
    text = one_line(caught)
    for part in ("google/gemma-2-2b", "accept its licence", "local folder", "MODEL=miniature"):
        assert part in text


def test_offline_mode_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HarvestError, match="accept its licence"):
        load_model("google/gemma-2-2b")


def test_without_a_network_the_data_set_and_its_remedies_are_named() -> None:
    with pytest.raises(HarvestError) as caught:
        resolve_dataset("monology/pile-uncopyrighted")
    text = one_line(caught)
    for part in ("monology/pile-uncopyrighted", ".jsonl", "DATASET=miniature"):
        assert part in text


def test_a_cached_model_needs_no_network(unreachable_hub: Path) -> None:
    repository = unreachable_hub / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    origin = resolve_model("owner/name")
    assert origin == ("owner/name", str(snapshot), COMMIT, True)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_path_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(HarvestError, match="is no folder and no hub id"):
        resolve_model(name)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarvestError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))


def test_a_repository_that_needs_its_own_code_is_refused_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "strange", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(HarvestError, match="cannot load model"):
        load_model(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(HarvestError, match="cannot load model"):
        load_model(str(tmp_path))


def test_a_folder_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
        (tmp_path / place / "notes.md").write_text(place)
    one, two = (folder_revision(tmp_path / place) for place in ("one", "two"))
    assert one == two
    assert len(one) == len(content_revision(b"")) == 40
    (tmp_path / "two" / "tokenizer.json").write_text("{}")
    assert folder_revision(tmp_path / "two") != one
