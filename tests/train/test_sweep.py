"""Sweeps: few words, many runs, in an order that can be foreseen."""

from pathlib import Path
from typing import Any

import pytest

from train.errors import TrainError
from train.sweep import from_file, from_flags


def flags(variants: str, base: str = "", pairs: tuple[str, ...] = (), sweeps: tuple[str, ...] = ()) -> list[Any]:
    return [(one.variant, one.base, dict(one.settings)) for one in from_flags(variants, base, pairs, sweeps)]


def file(folder: Path, text: str, pairs: tuple[str, ...] = ()) -> list[Any]:
    path = folder / "sweep.toml"
    path.write_text(text)
    return [(one.variant, one.base, dict(one.settings)) for one in from_file(path, pairs)]


def test_the_first_sweep_varies_slowest() -> None:
    found = flags("topk", sweeps=("k=32,64", "seed=0,1"))
    assert [one[2] for one in found] == [
        {"k": "32", "seed": "0"},
        {"k": "32", "seed": "1"},
        {"k": "64", "seed": "0"},
        {"k": "64", "seed": "1"},
    ]


def test_each_variant_takes_the_settings_that_it_has() -> None:
    found = flags("relu,topk", pairs=("l1=0.1", "lr=1e-3"), sweeps=("k=1,2",))
    assert found == [
        ("relu", "", {"l1": "0.1", "lr": "1e-3"}),
        ("relu", "", {"l1": "0.1", "lr": "1e-3"}),
        ("topk", "", {"lr": "1e-3", "k": "1"}),
        ("topk", "", {"lr": "1e-3", "k": "2"}),
    ]


def test_a_key_that_no_variant_has_is_kept_so_that_it_is_refused() -> None:
    assert flags("relu,topk", pairs=("kk=1",))[0] == ("relu", "", {"kk": "1"})


def test_another_base_brings_its_own_settings() -> None:
    assert flags("relu", "topk", pairs=("k=8",)) == [("relu", "topk", {"k": "8"})]


def test_what_is_set_cannot_be_swept_too() -> None:
    with pytest.raises(TrainError, match="k is both set and swept"):
        flags("topk", pairs=("k=3",), sweeps=("k=1,2",))


@pytest.mark.parametrize("variants", ["", ","])
def test_no_variant_is_refused(variants: str) -> None:
    with pytest.raises(TrainError, match="VARIANT must name at least one variant"):
        flags(variants)


def test_an_unknown_variant_is_answered_with_those_there_are() -> None:
    with pytest.raises(TrainError, match="unknown VARIANT 'topkk': choose from relu, relu_april, topk, "):
        flags("topk,topkk")


FILE = """
[defaults]
steps = 2000
feed.batch = 64

[[run]]
variant = "topk"
k = [32, 64]
seed = [0, 1]

[[run]]
variant = ["temporal", "tsae"]
base = "matryoshka"
temporal.coeff = 0.1
steps = 5
prefixes = [[0.2, 1.0]]
"""


def test_a_file_is_the_product_of_its_lists_run_by_run(tmp_path: Path) -> None:
    """A list of lists sweeps a setting that is a list."""
    found = file(tmp_path, FILE)
    shared = {"steps": 2000, "feed.batch": 64}
    assert found[:4] == [("topk", "", shared | {"k": k, "seed": s}) for k in (32, 64) for s in (0, 1)]
    last = {"steps": 5, "feed.batch": 64, "temporal.coeff": 0.1, "prefixes": [0.2, 1.0]}
    assert found[4:] == [(name, "matryoshka", last) for name in ("temporal", "tsae")]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    found = file(tmp_path, '[[run]]\nvariant = "topk"\nk = [1, 2]\nsteps = 7', ("k=5",))
    assert found == [("topk", "", {"k": "5", "steps": 7})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[run]", "cannot read the sweep"),
        ("", r"needs at least one \[\[run\]\] table"),
        ("[[run]]\nk = 3", "each with a variant"),
        ('[run]\nvariant = "topk"', r"needs at least one \[\[run\]\] table"),
        ("run = 3", r"needs at least one \[\[run\]\] table"),
        ('defaults = 3\n[[run]]\nvariant = "topk"', r"at most one \[defaults\]"),
        ('steps = 3\n[[run]]\nvariant = "topk"', r"tables alone, got steps"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TrainError, match=words):
        file(tmp_path, text)


def test_a_file_that_is_no_text_or_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing", "."):
        with pytest.raises(TrainError, match="cannot read the sweep"):
            from_file(tmp_path / name, [])
