"""A feed goes on with exactly the next batch, wherever it stood and by however many processes it is served."""

import json
from pathlib import Path

import pytest
import torch

import cache
from cache.repack import repack
from tests.train.planted_cache import as_int8, batches, make_cache, rows_of, some
from train.errors import TrainError
from train.feed import Feed, FeedConfig
from train.feed.batch import Batch
from train.feed.state import merge_states

SMALL = {"batch": 24, "pool_sequences": 12, "block": 2}


@pytest.fixture
def reader(tmp_path: Path) -> cache.CacheReader:
    return make_cache(tmp_path / "c", domain=True)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in Batch.__dataclass_fields__)


@pytest.mark.parametrize("changes", [{}, {"window": 4}, {"parts": 2}, {"pool_sequences": 100}, {"batch": 24 * 16}])
def test_a_resumed_feed_delivers_the_rest_bit_for_bit(reader: cache.CacheReader, changes: dict[str, int]) -> None:
    """At every batch of two epochs: within chapters, across them and across the epoch's end."""
    config = FeedConfig(**{**SMALL, **changes})  # type: ignore[arg-type]
    states = []
    with Feed(reader, [3], config, epochs=2) as feed:
        whole = []
        for batch in feed:
            whole.append(batch)
            states.append(json.loads(json.dumps(feed.state())))
    for done, state in enumerate(states, start=1):
        with Feed(reader, [3], config, epochs=2, state=state) as feed:
            assert feed.state() == state
            for batch in whole[done : done + 3]:
                assert same(next(feed), batch)
    assert states[-1]["batches"] == len(whole)
    assert batches(reader, config, epochs=2, state=states[-1]) == []


def test_the_state_speaks_of_the_batches_handed_out_not_of_those_prepared(reader: cache.CacheReader) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        at_once = feed.state()
        assert (at_once["batches"], at_once["parts"]) == (0, {"0": [0, 0, 0]})
        next(feed)
        assert feed.state()["parts"] == {"0": [0, 0, 24]}
        assert len(json.dumps(feed.state())) < 800


def test_a_run_of_two_processes_goes_on_in_one_or_four(reader: cache.CacheReader) -> None:
    config = FeedConfig(**SMALL, parts=4)
    with Feed(reader, [3], config) as alone:
        list(some(alone, 9))
        wanted = [rows_of(batch) for batch in some(alone, 6)]
    states = []
    for rank in range(2):
        with Feed(reader, [3], config, rank=rank, world_size=2) as feed:
            list(some(feed, 9))
            states.append(feed.state())
    with pytest.raises(TrainError, match="no place for part 1, only for 0, 2: join the states"):
        Feed(reader, [3], config, state=states[0])
    merged = merge_states(reversed(states))
    with Feed(reader, [3], config, state=merged) as feed:
        assert [rows_of(batch) for batch in some(feed, 6)] == wanted
    quarters = []
    for rank in range(4):
        with Feed(reader, [3], config, rank=rank, world_size=4, state=merged) as feed:
            quarters.append([rows_of(batch) for batch in some(feed, 6)])
    assert [[row for rows in batch for row in rows] for batch in zip(*quarters, strict=True)] == wanted


def test_states_of_different_batches_cannot_be_joined(reader: cache.CacheReader) -> None:
    states = []
    for rank in range(2):
        with Feed(reader, [3], FeedConfig(**SMALL, parts=2), rank=rank, world_size=2) as feed:
            list(some(feed, rank))
            states.append(feed.state())
    with pytest.raises(TrainError, match=r"the states differ in batches \(0 and 1\)"):
        merge_states(states)


def test_a_repacked_cache_continues_the_run(reader: cache.CacheReader, tmp_path: Path) -> None:
    repack(reader, tmp_path / "r", codec="blosc-lz4", shard_sequences=3)
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        list(some(feed, 5))
        state = feed.state()
        wanted = next(feed)
        with Feed(cache.open(str(tmp_path / "r")), [3], FeedConfig(**SMALL), state=state) as other:
            assert same(next(other), wanted)


def test_the_pool_that_fitted_is_kept_when_memory_has_changed(reader: cache.CacheReader) -> None:
    tight = FeedConfig(**{**SMALL, "pool_sequences": 16}, pool_bytes=2 * 8 * 12 * 8 * 2)
    with Feed(reader, [3], tight) as feed:
        assert feed.state()["pool"] == 8
        list(some(feed, 4))
        state = feed.state()
        wanted = next(feed)
    with Feed(reader, [3], FeedConfig(**{**SMALL, "pool_sequences": 16}), state=state) as feed:
        assert feed.state()["pool"] == 8
        assert same(next(feed), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: the state has 0, this feed 1"),
        ({"batch": 48}, "batch: the state has 24, this feed 48"),
        ({"window": 2}, "window: the state has 1, this feed 2"),
        ({"parts": 2}, "parts: the state has 1, this feed 2"),
        ({"drop_bos": False}, "drop_bos: the state has True, this feed False"),
        ({"pool_sequences": 16}, "pool_sequences: the state has 12, this feed 16"),
    ],
)
def test_a_state_of_another_feed_is_refused_by_name(
    reader: cache.CacheReader, changes: dict[str, int], message: str
) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        state = feed.state()
    with pytest.raises(TrainError, match=message):
        Feed(reader, [3], FeedConfig(**{**SMALL, **changes}), state=state)


def test_a_state_of_another_cache_or_layer_is_refused(reader: cache.CacheReader, tmp_path: Path) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        state = feed.state()
    with pytest.raises(TrainError, match=r"layers: the state has \[3\], this feed \[5\]"):
        Feed(reader, [5], FeedConfig(**SMALL), state=state)
    with pytest.raises(TrainError, match="cache: the state has"):
        Feed(as_int8(reader, tmp_path / "q"), [3], FeedConfig(**SMALL), state=state)
    with pytest.raises(TrainError, match="sequences: the state has 43, this feed 20"):
        Feed(make_cache(tmp_path / "d", n=20, domain=True), [3], FeedConfig(**SMALL), state=state)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "wanted a feed state of version 1, got 2"),
        ({"more": 1}, "wanted a state that Feed.state"),
        ({"batches": -1}, "batches must be a whole number, got -1"),
        ({"pool": "12"}, "pool must be a whole number, got '12'"),
        ({"parts": {"0": [0, 0]}}, "the place of part 0 must be three whole numbers"),
        ({"parts": {"0": [0, 0, -3]}}, "the place of part 0 must be three whole numbers"),
        ({"parts": {"0": [0, 99, 0]}}, "chapter 99 of an epoch of"),
    ],
)
def test_a_damaged_state_is_refused(reader: cache.CacheReader, damage: dict[str, object], message: str) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        state = {**feed.state(), **damage}
    with pytest.raises(TrainError, match=message):
        Feed(reader, [3], FeedConfig(**SMALL), state=state)


def test_a_place_beyond_its_chapter_is_refused(reader: cache.CacheReader) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        state = {**feed.state(), "parts": {"0": [0, 0, 10**6]}}
    with pytest.raises(TrainError, match="the state stands at item 1000000 of a chapter of"):
        next(Feed(reader, [3], FeedConfig(**SMALL), state=state))
