"""Where a feed stands, as a small JSON object: what has been delivered, and of which order it is a place."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from cache import CacheReader
from train.errors import TrainError
from train.feed.config import FeedConfig
from train.feed.order import Position

VERSION: Final = 1


def identity(reader: CacheReader, layers: Iterable[int], config: FeedConfig) -> dict[str, Any]:
    """What must be the same for a state to have a meaning; memory limits and the layout on disk are not part of it."""
    settings = {name: value for name, value in asdict(config).items() if name != "pool_bytes"}
    return {
        "cache": reader.meta.fingerprint,
        "sequences": reader.n_sequences,
        "layers": list(layers),
        **settings,
    }


def make(identity: Mapping[str, Any], pool: int, batches: int, at: Mapping[int, Position]) -> dict[str, Any]:
    """The state of a feed.

    Args:
        identity: see there.
        pool: sequences that are mixed at a time, as they fitted into memory.
        batches: batches delivered.
        at: place of each part that the feed serves.
    """
    parts = {str(part): list(position) for part, position in sorted(at.items())}
    return {"version": VERSION, "identity": dict(identity), "pool": pool, "batches": batches, "parts": parts}


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of all parts, from those of the processes of one run after the same batch.

    With it a run goes on in any number of processes.

    Raises:
        TrainError: states of different runs or batches.
    """
    states = list(states)
    if not states:
        raise TrainError("wanted the states of all processes, got none")
    first, parts = states[0], {}
    for state in states:
        for name in ("version", "identity", "pool", "batches"):
            if state[name] != first[name]:
                raise TrainError(
                    f"the states differ in {name} ({first[name]} and {state[name]}): take all from the same batch"
                )
        parts.update(state["parts"])
    return {**first, "parts": dict(sorted(parts.items(), key=lambda item: int(item[0])))}


def check(state: Mapping[str, Any], wanted: Mapping[str, Any], parts: Iterable[int]) -> dict[int, Position]:
    """The places of these parts, from a state that belongs to this feed.

    Raises:
        TrainError: another version, another feed (naming what differs), a part that is not in it, or no state at all.
    """
    if not isinstance(state, Mapping) or state.keys() != {"version", "identity", "pool", "batches", "parts"}:
        raise TrainError("wanted a state that Feed.state() returned, got something else: start anew")
    if state["version"] != VERSION:
        raise TrainError(f"wanted a feed state of version {VERSION}, got {state['version']!r}: start anew")
    known = state["identity"]
    differing = [
        f"{name}: the state has {known.get(name)!r}, this feed {wanted.get(name)!r}"
        for name in {**wanted, **known}
        if known.get(name) != wanted.get(name)
    ]
    if differing:
        raise TrainError(f"the state belongs to another feed ({'; '.join(differing)}): use its settings, or start anew")
    for name in ("pool", "batches"):
        if not _whole(state[name]):
            raise TrainError(f"the feed state's {name} must be a whole number, got {state[name]!r}: start anew")
    places = {}
    for part in parts:
        place = state["parts"].get(str(part))
        if place is None:
            raise TrainError(
                f"the state has no place for part {part}, only for {', '.join(state['parts'])}: join the states of all"
                " processes with train.feed.state.merge_states"
            )
        if not isinstance(place, list | tuple) or len(place) != 3 or not all(map(_whole, place)):
            raise TrainError(f"the place of part {part} must be three whole numbers, got {place!r}: start anew")
        places[part] = Position(*place)
    return places


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
