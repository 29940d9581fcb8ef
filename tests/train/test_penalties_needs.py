"""Variants with penalties as they are asked for: their needs, their settings, their runs from a cache."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import cache
from evals.planted import Domains, Temporal, write_cache
from tests.train.planted_runs import request, run
from train import penalties
from train.config import RunConfig
from train.errors import TrainError
from train.exports import sae_lens
from train.variants import VARIANTS, Request, Variant, resolve, sections_of, widen

MINE = ("ortho_adaptive", "ortho_groups", "temporal", "temporal_variance", "tsae", "tsae_code")
TEMPORAL = ("temporal", "temporal_variance", "tsae", "tsae_code")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> cache.CacheReader:
    path = tmp_path_factory.mktemp("plain") / "cache"
    return write_cache(path, Temporal(d_model=12, topics=3, words=2, fast=6), sequences=48, context=16)


@pytest.fixture(scope="module")
def tagged_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tagged") / "cache"
    write_cache(path, Domains(d_model=12, forget=6, retain=6, shared=4, p_home=0.2), sequences=48, context=16)
    return path


@pytest.fixture(scope="module")
def tagged(tagged_path: Path) -> cache.CacheReader:
    return cache.open(str(tagged_path))


@pytest.mark.parametrize("variant", TEMPORAL)
def test_a_temporal_variant_comes_with_its_windows_and_is_refused_without(
    variant: str, plain: cache.CacheReader
) -> None:
    assert resolve(Request(variant=variant), plain, 0).feed.window == 8
    with pytest.raises(TrainError, match="needs windows of at least 2 positions, got window=1"):
        resolve(Request(variant=variant, settings={"window": "1"}), plain, 0)


def test_the_window_of_a_penalty_is_the_feed_s(plain: cache.CacheReader) -> None:
    """`VARIANT=temporal BASE=topk SET="temporal.window=16 temporal.coeff=0.1"`."""
    asked = {"temporal.window": "16", "temporal.coeff": "0.1"}
    one = resolve(Request(variant="temporal", base="topk", settings=asked), plain, 0)
    assert (one.architecture, one.feed.window, one.penalties["temporal"].coeff) == ("topk", 16, 0.1)
    with pytest.raises(TrainError, match="given twice, with different values"):
        resolve(Request(variant="temporal", settings={"temporal.window": "16", "window": "8"}), plain, 0)
    with pytest.raises(TrainError, match=r"unknown setting 'topk.window': choose from .*feed.window"):
        resolve(Request(variant="temporal", settings={"topk.window": "16"}), plain, 0)


def test_a_lag_needs_a_window_that_holds_it(plain: cache.CacheReader) -> None:
    assert resolve(Request(variant="temporal", settings={"lag": "7"}), plain, 0).feed.window == 8
    with pytest.raises(TrainError, match="at least 9 positions, got window=8"):
        resolve(Request(variant="temporal", settings={"lag": "8"}), plain, 0)


def test_groups_by_domain_are_refused_where_the_cache_has_none(
    plain: cache.CacheReader, tagged: cache.CacheReader
) -> None:
    with pytest.raises(TrainError, match="ortho_groups tells domains apart"):
        resolve(Request(variant="ortho_groups"), plain, 0)
    assert resolve(Request(variant="ortho_groups", settings={"by": "clusters"}), plain, 0).penalties
    assert resolve(Request(variant="ortho_groups"), tagged, 0).penalties


def test_a_variant_without_windows_shares_the_feed_of_one_with_them(plain: cache.CacheReader) -> None:
    runs = [resolve(Request(variant=name), plain, 0) for name in ("topk", "temporal")]
    assert [one.feed.window for one in runs] == [1, 8]
    assert [one.feed.window for one in widen(runs)] == [8, 8]


@pytest.mark.parametrize("variant", MINE)
def test_short_names_of_the_usual_settings_stay_unambiguous(variant: str, tagged: cache.CacheReader) -> None:
    settings = {"steps": "500", "lr": "1e-3", "k": "4", "d_sae": "48", "window": "4", "seed": "3", "coeff": "0.2"}
    settings["sae.seed"] = settings.pop("seed")  # two seeds there are, the weights' and the feed's
    found = resolve(Request(variant=variant, settings=settings), tagged, 0)
    (penalty,) = found.penalties.values()
    assert (found.training.steps, found.feed.window, penalty.coeff) == (500, 4, 0.2)


@pytest.mark.parametrize("variant", MINE)
def test_a_run_s_description_survives_json(variant: str, tagged: cache.CacheReader) -> None:
    found = resolve(Request(variant=variant), tagged, 0)
    assert RunConfig.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("variant", TEMPORAL)
def test_another_base_takes_none_of_the_own_base_s_settings(variant: str, plain: cache.CacheReader) -> None:
    found = resolve(Request(variant=variant, base="topk"), plain, 0)
    assert (found.architecture, found.feed.window) == ("topk", 8)
    assert "prefixes" in sections_of("tsae")["sae"].__dataclass_fields__


def test_a_short_run_does_not_end_before_its_penalty_begins(plain: cache.CacheReader) -> None:
    def start(**settings: Any) -> int:
        return resolve(Request(variant="temporal", settings=settings), plain, 0).penalties["temporal"].start

    assert start() == 300
    assert start(steps=100) == 20
    assert start(steps=2) == 1
    assert start(steps=100, start=60) == 60


def test_the_released_t_sae_weighs_its_two_dictionaries_unequally(plain: cache.CacheReader) -> None:
    assert resolve(Request(variant="tsae"), plain, 0).to_json()["sae"]["weights"] == ()
    assert resolve(Request(variant="tsae_code"), plain, 0).to_json()["sae"]["weights"] == (0.2, 0.8)


def test_every_variant_trains_from_one_cache_and_logs_its_term(tagged_path: Path, tmp_path: Path) -> None:
    asked = [request(name, window=8, steps=8) for name in ("batchtopk", *MINE)]
    folders = run(tagged_path, tmp_path, asked, report_every=1)
    for name, folder in zip(("batchtopk", *MINE), folders, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["steps"] == 8, name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for penalty in VARIANTS[name].penalties:
            used = [line for line in lines if f"term/{penalty}" in line]
            assert used, name
            assert f"weight/{penalty}" in used[-1]


def test_what_a_penalty_waits_for_fits_into_a_short_run(tagged: cache.CacheReader) -> None:
    def settings_of(variant: str, steps: int, **asked: str) -> Any:
        return resolve(Request(variant=variant, settings={"steps": str(steps), **asked}), tagged, 0).penalties[variant]

    assert (settings_of("temporal", 500).start, settings_of("temporal", 5000).start) == (100, 300)
    assert (settings_of("ortho_groups", 500).ramp, settings_of("ortho_groups", 500).condition_every) == (100, 100)
    assert settings_of("ortho_groups", 500, ramp="400").ramp == 400
    # The dual's weight can go from its largest to its least value in half of a run; first written, it moves as it did.
    crossing = 250 * settings_of("ortho_adaptive", 500).rate
    assert crossing == pytest.approx(math.log(20 / 1e-4))
    assert settings_of("ortho_adaptive", 50_000).rate == settings_of("ortho_adaptive", 500, mode="literal").rate == 5e-3
    assert settings_of("ortho_adaptive", 500, rate="0.001").rate == 0.001


def test_the_penalty_that_the_page_writes_is_one_file_and_one_line(
    plain: cache.CacheReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (code,) = re.findall(r"```python\n# train/penalties/short_codes.py\n(.*?)```", page, re.DOTALL)
    (row,) = re.findall(r'`"short_codes": (Variant\(.*?\))`', page)
    (tmp_path / "short_codes.py").write_text(code)
    monkeypatch.setattr(penalties, "__path__", [*penalties.__path__, str(tmp_path)])
    kind = penalties._kind("short_codes")
    assert kind is not None
    monkeypatch.setitem(penalties.PENALTIES, "short_codes", kind)
    monkeypatch.setitem(VARIANTS, "short_codes", eval(row, {"Variant": Variant}))
    path = Path(plain.folder.name)
    (with_it,) = run(path, tmp_path / "with", [request("short_codes", **{"short_codes.coeff": 1.0})])
    (without,) = run(path, tmp_path / "without", [request("batchtopk")])
    x_BD = plain.layer(0).sequences(0, 8).float().flatten(0, 1)
    assert shape_of_codes(with_it, x_BD) < shape_of_codes(without, x_BD)


def shape_of_codes(folder: Path, x_BD: Tensor) -> float:
    """Mean of ‖f‖₁ / ‖f‖₂ of a finished run's codes."""
    f_BF = sae_lens.load(folder / "sae").encode(x_BD)
    on_B = f_BF.norm(dim=1) > 0
    return float((f_BF.sum(1) / f_BF.norm(dim=1))[on_B].mean())
