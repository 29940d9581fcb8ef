"""The clocks of a training: what a line of metrics and the last line say of the feed."""

from pathlib import Path

import pytest

from tests.train.planted_cache import D, make_cache
from train import pace
from train.feed import Feed, FeedConfig
from train.metrics import DEFINITIONS
from train.pace import Pace


class _Clock:
    """A clock that goes a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_rows_and_bytes_of_the_interval_and_documents_of_the_last_batch(tmp_path: Path) -> None:
    with Feed(make_cache(tmp_path / "c"), [3], FeedConfig(batch=24, pool_sequences=12)) as feed:
        clock = Pace()
        for _ in range(3):
            batch = clock.waiting(lambda: next(feed))
            clock.stepped(24)
        told = clock.report(feed)
        clock.restart()
        idle = clock.report(feed)
        position = feed.report().epoch
    assert told["gb_per_s"] == pytest.approx(told["rows_per_s"] * 2 * D / 1e9)
    assert told["documents_per_batch"] == idle["documents_per_batch"] == len(set(batch.document.tolist()))
    assert 0 < told["feed_wait"] <= 1
    assert told["epoch"] == position > 0
    assert idle["rows_per_s"] == idle["gb_per_s"] == idle["feed_wait"] == 0
    assert told.keys() <= DEFINITIONS.keys()


def test_of_many_processes_all_rows_and_their_bytes_count(tmp_path: Path) -> None:
    """Each of two has half of a batch: the rates are of both."""
    with Feed(make_cache(tmp_path / "c"), [3], FeedConfig(batch=24, pool_sequences=12, parts=2), world_size=2) as feed:
        clock = Pace()
        assert clock.waiting(lambda: next(feed)).x.shape == (12, D)
        clock.stepped(24)
    assert (clock.rows, clock.nbytes) == (24, 24 * 2 * D)


def test_the_last_line_is_of_the_whole_run_up_to_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Feed(make_cache(tmp_path / "c"), [3], FeedConfig(batch=24, pool_sequences=12)) as feed:
        batch = next(feed)
    monkeypatch.setattr(pace, "time", _Clock())
    clock = Pace()  # begins at 1, its interval at 2
    for _ in range(2):  # each waits a second and looks three times
        clock.waiting(lambda: batch)
        clock.stepped(24)
    assert str(clock) == "48 rows in 0:00:07: 7 rows/s, 1.1e-07 GB/s from the feed, waited 28.6% of the time for it"
    assert clock.left(4) == "0:00:16 left"
