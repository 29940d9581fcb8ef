"""What a feed says of itself: rows, bytes, documents, and how much it mixes at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest

import cache
from tests.train.planted_cache import D, T, eligible_rows, make_cache, some
from train.feed import Feed, FeedConfig, PoolReport
from train.feed.pool import HostMemory

SMALL = {"batch": 24, "pool_sequences": 12, "block": 2}
SEQUENCE = 2 * T * D


@pytest.fixture
def reader(tmp_path: Path) -> cache.CacheReader:
    return make_cache(tmp_path / "c")


def pool_of(reader: cache.CacheReader, **settings: int) -> PoolReport:
    with Feed(reader, [3], FeedConfig(**SMALL | settings)) as feed:
        return feed.pool()


def test_a_feed_reports_what_it_delivered(reader: cache.CacheReader) -> None:
    config = FeedConfig(**SMALL)
    with Feed(reader, [3, 5], config, epochs=1) as feed:
        delivered = list(feed)
        report = feed.report()
    rows = len(eligible_rows(reader, config))
    assert (report.rows, report.bytes) == (rows, rows * 2 * 8 * 2)
    assert report.epoch == 1
    assert 0 <= report.waited_share <= 1
    assert report.rows_per_second > 0
    assert report.gigabytes_per_second > 0
    assert report.eligible_share == pytest.approx(rows / (T * int((reader.split() == 0).sum())))
    assert report.untiled_share == 0
    distinct = [len(set(batch.document.tolist())) for batch in delivered[::8]]
    assert report.documents_per_batch == pytest.approx(np.mean(distinct))


def test_a_pool_that_fits_is_as_large_as_was_asked_for(reader: cache.CacheReader) -> None:
    """37 sequences in four equal chapters of five blocks: one pool is drained while another is filled."""
    pool = pool_of(reader)
    assert (pool.sequences, pool.split, pool.limited) == (10, int((reader.split() == 0).sum()), False)
    assert pool.bytes == 2 * 10 * SEQUENCE
    assert str(pool) == "10 sequences (of 37) are mixed at a time, in 3.8e-06 GB of memory"


def test_a_pool_that_holds_the_split_is_there_once(reader: cache.CacheReader) -> None:
    pool = pool_of(reader, pool_sequences=1000)
    assert (pool.sequences, pool.bytes, pool.limited) == (pool.split, pool.split * SEQUENCE, False)
    assert "the whole split" in str(pool)


def test_a_pool_that_memory_limits_says_so(reader: cache.CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMemory, "total_bytes", lambda self: 4 * 16 * SEQUENCE)
    pool = pool_of(reader)
    assert (pool.sequences, pool.bytes, pool.budget, pool.limited) == (6, 12 * SEQUENCE, 16 * SEQUENCE, True)
    assert "12 would take more than" in str(pool)
    assert "feed.pool_bytes allows more" in str(pool)


def test_a_feed_that_goes_on_keeps_the_size_of_its_pool(reader: cache.CacheReader) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL, pool_bytes=16 * SEQUENCE)) as feed:
        list(some(feed, 3))
        state = feed.state()
    with Feed(reader, [3], FeedConfig(**SMALL), state=state) as feed:
        assert feed.pool().sequences == 6
        assert str(feed.pool()).endswith("the size that the run began with")


@pytest.mark.skipif(sys.platform != "linux", reason="files are joined by Linux's mmap")
def test_a_pool_of_mapped_files_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    pool = pool_of(make_cache(tmp_path / "pages", d_model=512))  # a sequence is three pages
    assert pool.bytes == 0
    assert str(pool).endswith("from the cache's files, mapped")
