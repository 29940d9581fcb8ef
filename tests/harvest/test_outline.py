"""What is known of a model before its weights are loaded, and the requests for which that is enough."""

from pathlib import Path
from typing import Any

import pytest

import cache
from harvest import model as model_module
from harvest.errors import HarvestError
from harvest.model import ResidualModel, load_model
from harvest.ranks import Ranks
from harvest.run import Harvest
from tests.harvest.test_model import FAMILIES, N_LAYERS, VOCABULARY, build
from tests.harvest.tiny import config, contents, harvest, save_text, save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_text(folder, 120)
    save_tiny_model(folder / "model")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outline_of_a_model_is_what_its_weights_come_as(family: str, tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        build(family).model.save_pretrained(tmp_path / family)
        outline, loaded = (load_model(str(tmp_path / family), dtype=dtype, device=device) for device in ("meta", "cpu"))
        assert outline.identity == loaded.identity
        assert outline.vocab_size == loaded.vocab_size == VOCABULARY
        assert len(outline.blocks) == len(loaded.blocks) == N_LAYERS
        assert outline.max_positions == loaded.max_positions
        assert all(weight.is_meta for weight in outline.model.parameters())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whoever loads weights from here on fails."""

    def refuse(*_: Any, **__: Any) -> ResidualModel:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(model_module.AutoModelForCausalLM, "from_pretrained", refuse)
    return monkeypatch


def test_a_request_that_is_met_loads_no_weights(tiny: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole = harvest(tiny, tmp_path / "c")
    ended = harvest(tiny, tmp_path / "ended", tokens=10**6)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    request.getfixturevalue("no_weights")
    assert harvest(tiny, tmp_path / "c").n_sequences == whole.n_sequences
    assert harvest(tiny, tmp_path / "c", layers=(2,), tokens=16).layers == (1, 2)
    assert harvest(tiny, tmp_path / "ended", tokens=10**7).n_sequences == ended.n_sequences
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_request_that_contradicts_the_cache_is_refused_without_weights(
    tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    harvest(tiny, tmp_path / "c")
    request.getfixturevalue("no_weights")
    changes: dict[str, dict[str, Any]] = {
        r"seed: have 42, asked for 7": {"seed": 7},
        r"model_dtype: have 'bfloat16', asked for 'float32'": {"dtype": "float32"},
        r"context: have 16, asked for 32": {"context": 32},
    }
    for answer, change in changes.items():
        with pytest.raises(cache.CacheError, match=answer):
            harvest(tiny, tmp_path / "c", **change)
    with pytest.raises(HarvestError, match="layer 99 is out of range: model has layers 0 to 3"):
        harvest(tiny, tmp_path / "c", layers=(99,))


@pytest.mark.parametrize("change", [{"tokens": 30 * 16}, {"layers": (3,)}])
def test_weights_that_cannot_be_had_leave_the_cache_as_it_was(
    tiny: Path, tmp_path: Path, change: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    harvest(tiny, tmp_path / "c")
    before = contents(tmp_path / "c")
    request.getfixturevalue("no_weights")
    with pytest.raises(AssertionError, match="the weights were loaded"):
        harvest(tiny, tmp_path / "c", **change)
    assert contents(tmp_path / "c") == before


def test_weights_that_are_not_what_the_configuration_said_are_refused(tiny: Path, tmp_path: Path) -> None:
    one = Harvest(config(tiny, tmp_path / "c"), Ranks())
    one.outline = load_model(str(tiny / "model"), dtype="float32", device="meta")
    with pytest.raises(HarvestError, match="its configuration said"):
        one.run()
    assert not (tmp_path / "c").exists()
