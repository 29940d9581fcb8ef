"""Settings given as text: each finds its field, and what finds none is told the right ones."""

from dataclasses import dataclass
from typing import Any

import pytest

from train.config import TrainingConfig
from train.errors import TrainError
from train.feed.config import FeedConfig
from train.settings import convert, has, keys, parse, sort_into
from train.variants import VARIANTS, sections_of


@dataclass(frozen=True, kw_only=True)
class Left:
    d_model: int = 1
    k: int = 2
    both: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Right:
    both: float = 0.5
    name: str = "a"
    parts: tuple[float, ...] = (1.0,)
    on: bool = False
    seed: int = 0


SECTIONS: dict[str, type[Any]] = {"sae": Left, "right": Right}


def test_pairs_are_split_at_their_first_equals_sign() -> None:
    assert parse(["k=64", "a.b=x=y"]) == {"k": "64", "a.b": "x=y"}


@pytest.mark.parametrize("pairs", [["k"], ["=3"], ["k=1", "k=1"]])
def test_a_text_that_is_no_setting_or_comes_twice_is_refused(pairs: list[str]) -> None:
    with pytest.raises(TrainError, match=r"form key=value|given twice"):
        parse(pairs)


def test_a_name_that_one_section_has_needs_no_prefix() -> None:
    found = sort_into(SECTIONS, {"k": "4", "right.both": "2", "on": "true", "parts": "0.5,1"})
    assert found == {"sae": {"k": 4}, "right": {"both": 2.0, "on": True, "parts": (0.5, 1.0)}}


def test_a_name_that_two_sections_have_needs_one() -> None:
    with pytest.raises(TrainError, match=r"'both' could be sae\.both or right\.both: say which"):
        sort_into(SECTIONS, {"both": "1"})


def test_seed_alone_is_that_of_the_weights_as_the_flag_is() -> None:
    assert sort_into(SECTIONS, {"seed": "3", "right.seed": "4"}) == {"sae": {"seed": 3}, "right": {"seed": 4}}


@pytest.mark.parametrize("key", ["kk", "sae.name", "d_model", "sae.d_model", "left.k", "", "k."])
def test_an_unknown_key_is_answered_with_all_that_are_known(key: str) -> None:
    """d_model is the cache's and no setting."""
    with pytest.raises(TrainError) as caught:
        sort_into(SECTIONS, {key: "1"})
    assert f"unknown setting {key!r}: choose from" in str(caught.value)
    known = "sae.k, sae.both, sae.seed, right.both, right.name, right.parts, right.on, right.seed"
    assert str(caught.value).endswith(known)


def test_one_field_by_two_names_must_agree() -> None:
    assert sort_into(SECTIONS, {"k": "4", "sae.k": "4"})["sae"] == {"k": 4}
    with pytest.raises(TrainError, match=r"'sae\.k' is given twice, with different values"):
        sort_into(SECTIONS, {"k": "4", "sae.k": "5"})


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        ("16_384", int, 16384),
        (5, int, 5),
        ("1e-3", float, 1e-3),
        (2, float, 2.0),
        ("True", bool, True),
        ("0", bool, False),
        ("tanh", str, "tanh"),
        ("0.2,1", tuple[float, ...], (0.2, 1.0)),
        ([0.2, 1], tuple[float, ...], (0.2, 1.0)),
    ],
)
def test_texts_and_toml_values_become_the_fields_type(value: Any, kind: Any, wanted: Any) -> None:
    found = convert("key", value, kind)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("many", int, "must be a whole number, got 'many'"),
        ("2.5", int, "must be a whole number, got '2.5'"),
        (2.0, int, "must be a whole number, got 2.0"),
        (True, int, "must be a whole number, got True"),
        (True, float, "must be a finite number, got True"),
        ("nan", float, "must be a finite number, got 'nan'"),
        ("inf", float, "must be a finite number, got 'inf'"),
        ("", float, "must be a finite number, got ''"),
        ("perhaps", bool, "must be true or false, got 'perhaps'"),
        ("0.5,x", tuple[float, ...], "must be a finite number, got 'x'"),
        ({"a": 1}, float, "must be a finite number, got {'a': 1}"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(value: Any, kind: Any, words: str) -> None:
    with pytest.raises(TrainError) as caught:
        convert("some.key", value, kind)
    assert str(caught.value) == f"setting some.key {words}"


def test_what_is_a_setting_is_known_in_both_forms() -> None:
    assert has(SECTIONS, "k")
    assert has(SECTIONS, "sae.k")
    assert not has(SECTIONS, "right.k")
    assert not has(SECTIONS, "d_model")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_of_every_variant_can_be_set_to_its_own_default(variant: str) -> None:
    """A field whose type `--set` cannot express would be a setting in name alone."""
    sections = sections_of(variant)
    for key in keys(sections):
        section, name = key.split(".")
        default = getattr(sections[section], name, None)
        if default is not None:
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            if text:
                assert sort_into(sections, {key: text})[section] == {name: default}


def test_the_trainings_and_the_feeds_fields_do_not_share_names() -> None:
    assert not TrainingConfig.__dataclass_fields__.keys() & FeedConfig.__dataclass_fields__.keys()
