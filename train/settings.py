"""`--set key=value`: texts to the fields of a run's configs, with the valid keys in every refusal."""

import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from train.errors import TrainError

Sections = Mapping[str, type[Any]]
# Decided by the cache, by another flag, or by the trainer itself.
FIXED: Final = {"d_model", "group_biases"}
# What a penalty asks of the feed may be set under the penalty's name too.
OF_THE_FEED: Final = {"window"}
# Two configs have a seed; alone the word means what `--seed` does.
SHORT: Final = {"seed": "sae.seed"}


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """Split `key=value` texts.

    Raises:
        TrainError: a text without `=`, or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise TrainError(f"a setting has the form key=value, such as k=64 or temporal.coeff=0.1, got {pair!r}")
        if key in found:
            raise TrainError(f"setting {key!r} is given twice")
        found[key] = value
    return found


def sort_into(sections: Sections, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find the field that each key means: `section.field`, or a field's name alone where only one section has it.

    Raises:
        TrainError: an unknown or ambiguous key (naming the valid ones), or a value of the wrong type.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in sections}
    for key, text in settings.items():
        section, name = _find(sections, key)
        kind = typing.get_type_hints(sections[section])[name]
        value = convert(key, text, kind)
        if values[section].setdefault(name, value) != value:
            raise TrainError(f"setting {key!r} is given twice, with different values")
    return values


def keys(sections: Sections) -> list[str]:
    """Every valid key in its long form."""
    return [f"{name}.{one.name}" for name, kind in sections.items() for one in fields(kind) if one.name not in FIXED]


def has(sections: Sections, key: str) -> bool:
    """Whether a key, short or long, means a field here."""
    return any(key in (long, long.rpartition(".")[2]) for long in keys(sections))


def _find(sections: Sections, key: str) -> tuple[str, str]:
    section, dot, name = SHORT.get(key, key).rpartition(".")
    if name in OF_THE_FEED and section in set(sections) - {"sae", "training", "feed"}:
        section = "feed"  # temporal.window: the penalty needs it, the feed has it
    places = [(place, name) for place in ([section] if dot else sections) if f"{place}.{name}" in keys(sections)]
    if len(places) == 1:
        return places[0]
    if places:
        raise TrainError(f"setting {key!r} could be {' or '.join('.'.join(place) for place in places)}: say which")
    raise TrainError(f"unknown setting {key!r}: choose from {', '.join(keys(sections))}")


def convert(key: str, value: Any, kind: Any) -> Any:
    """A text (or a TOML value) as a field's type.

    Raises:
        TrainError: naming the setting, the type and what came.
    """
    if typing.get_origin(kind) is tuple:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(convert(key, part, typing.get_args(kind)[0]) for part in parts)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if kind is int:
            return int(str(value).replace("_", ""))
        if kind is float and (isinstance(value, bool) or not math.isfinite(float(value))):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError):
        wanted = {bool: "true or false", int: "a whole number", float: "a finite number"}.get(kind, str(kind))
        raise TrainError(f"setting {key} must be {wanted}, got {value!r}") from None
