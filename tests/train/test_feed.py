"""The feed: each eligible row exactly once an epoch, with the cache's bits, whatever the cache, parts and processes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import cache
from cache.repack import repack
from cache.statistics import QUANTILES
from tests.cache.planted import BOS, make_meta, write
from tests.train.planted_cache import (
    LAYERS,
    D,
    N,
    S,
    T,
    as_int8,
    batches,
    bits_of,
    eligible_rows,
    make_cache,
    planted_bits,
    rows_of,
    some,
)
from train.errors import TrainError
from train.feed import Feed, FeedConfig

GOLDEN_ROWS = [(37, 9), (7, 4), (37, 4), (13, 7), (8, 4), (39, 1), (7, 11), (8, 1)]
GOLDEN_WINDOWS = [(42, 1), (12, 2)]
SMALL = {"batch": 24, "pool_sequences": 12, "block": 2}


@pytest.fixture
def reader(tmp_path: Path) -> cache.CacheReader:
    return make_cache(tmp_path / "c")


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("pool", [8, 12, 100])
def test_every_eligible_row_is_delivered_exactly_once_an_epoch(
    reader: cache.CacheReader, parts: int, pool: int
) -> None:
    config = FeedConfig(batch=24, parts=parts, pool_sequences=pool, block=2)
    wanted = Counter(eligible_rows(reader, config))
    for epochs in (1, 3):
        found = Counter(row for batch in batches(reader, config, epochs=epochs) for row in rows_of(batch))
        assert found == Counter(dict.fromkeys(wanted, epochs))


@pytest.mark.parametrize(("parts", "world_size"), [(2, 2), (3, 3), (4, 4), (4, 2), (4, 1)])
def test_processes_together_deliver_the_batches_of_one(reader: cache.CacheReader, parts: int, world_size: int) -> None:
    config = FeedConfig(**SMALL, parts=parts)
    alone = batches(reader, config, epochs=2)
    ranks = [batches(reader, config, epochs=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    for number, batch in enumerate(alone):
        together = [rows_of(rank[number]) for rank in ranks if number < len(rank)]
        assert Counter(rows_of(batch)) == Counter(row for rows in together for row in rows)


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4", "zstd"])
@pytest.mark.parametrize("window", [1, 3])
def test_vectors_have_the_bits_of_the_cache(tmp_path: Path, codec: str, window: int) -> None:
    reader = make_cache(tmp_path / "c", codec=codec)
    bits = planted_bits(N, LAYERS[0])
    for batch in batches(reader, FeedConfig(**SMALL, window=window), epochs=1):
        n, t = np.array(rows_of(batch)).T
        assert batch.x.dtype == torch.bfloat16
        assert np.array_equal(bits_of(batch.x).reshape(-1, bits.shape[2]), bits[n, t])


def test_an_eight_bit_cache_is_served_decoded_and_in_the_same_order(tmp_path: Path) -> None:
    reader = make_cache(tmp_path / "c")
    small = as_int8(reader, tmp_path / "q")
    bits = small.layer(LAYERS[0]).bits(0, N)
    for batch, same in zip(*(batches(one, FeedConfig(**SMALL), epochs=1) for one in (small, reader)), strict=True):
        n, t = np.array(rows_of(batch)).T
        assert np.array_equal(bits_of(batch.x), bits[n, t])
        assert rows_of(batch) == rows_of(same)


@pytest.mark.parametrize("window", [1, 3])
def test_several_layers_are_aligned_in_the_order_asked_for(reader: cache.CacheReader, window: int) -> None:
    config = FeedConfig(**SMALL, window=window)
    for both, one in zip(
        batches(reader, config, layers=[5, 3], epochs=1), batches(reader, config, layers=[3], epochs=1), strict=True
    ):
        assert torch.equal(both.x[..., 1, :], one.x)
        assert both.x.shape == (*one.x.shape[:-1], 2, one.x.shape[-1])
        assert (bits_of(both.x)[..., 0, 2] == 5).all()
        assert both.x[..., 1, :].reshape(-1, one.x.shape[-1]).is_contiguous()


def test_tokens_documents_and_domains_are_those_of_the_rows(tmp_path: Path) -> None:
    reader = make_cache(tmp_path / "c", domain=True)
    tokens, document, domain = reader.tokens(), reader.document(), reader.domain()
    for window in (1, 3):
        for batch in batches(reader, FeedConfig(**SMALL, window=window), epochs=1):
            n, t = np.array(rows_of(batch)).T
            assert np.array_equal(batch.tokens.reshape(-1), tokens[n, t])
            assert np.array_equal(batch.document.reshape(-1), document[n, t])
            assert np.array_equal(batch.domain, domain[batch.sequence])
    assert batches(make_cache(tmp_path / "d"), FeedConfig(**SMALL), epochs=1)[0].domain.shape == (0,)


@pytest.mark.parametrize(
    "filters",
    [
        {"drop_bos": False},
        {"drop_special": True},
        {"drop_special": True, "drop_bos": False},
        {"skip_positions": 5},
        {"split": "held_out"},
        {"split": "all"},
    ],
)
def test_filters_drop_exactly_the_rows_they_name(reader: cache.CacheReader, filters: dict[str, object]) -> None:
    config = FeedConfig(**SMALL, **filters)  # type: ignore[arg-type]
    found = Counter(row for batch in batches(reader, config, epochs=1) for row in rows_of(batch))
    assert found == Counter(eligible_rows(reader, config))


def test_the_default_drops_bos_wherever_it_stands_padding_and_held_out_sequences(reader: cache.CacheReader) -> None:
    split = reader.split()
    for batch in batches(reader, FeedConfig(**SMALL), epochs=1):
        assert (batch.tokens != BOS).all()
        assert (batch.document >= 0).all()
        assert not split[batch.sequence].any()


def test_rows_of_too_large_a_norm_are_dropped_and_end_a_window(tmp_path: Path) -> None:
    """Every vector is about √(D − 3) long but for one in twelve, which is 100 times that."""
    reader = make_cache(tmp_path / "c", n=20)
    bits = planted_bits(20, LAYERS[0])
    bits[:, 4, 3:] = 0x42C8  # 100
    path = tmp_path / "loud"
    rows = cache.Rows(reader.tokens(), reader.document(), reader.split())
    write(path, make_meta(context=T, d_model=D, shard_sequences=S), {LAYERS[0]: bits}, rows)
    loud = cache.open(str(path))
    assert loud.statistics(LAYERS[0]).norm_quantiles[2, QUANTILES.index(0.5)] < 3
    config = FeedConfig(**SMALL, max_norm=10.0)
    found = Counter(row for batch in batches(loud, config, epochs=1) for row in rows_of(batch))
    assert found == Counter(row for row in eligible_rows(loud, config) if row[1] != 4)
    windows = [rows_of(one) for one in batches(loud, FeedConfig(**SMALL, max_norm=10.0, window=3), epochs=1)]
    assert windows
    assert all(t != 4 for rows in windows for _, t in rows)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_windows_lie_within_one_document_and_tile_its_runs(reader: cache.CacheReader, window: int) -> None:
    config = FeedConfig(**SMALL, window=window)
    document, eligible = reader.document(), set(eligible_rows(reader, config))
    tiles = []
    with Feed(reader, [3], config, epochs=1) as feed:
        found = Counter()
        for batch in feed:
            assert batch.tokens.shape == batch.document.shape == (len(batch.sequence), window)
            assert (batch.document == batch.document[:, :1]).all()
            found.update(rows_of(batch))
        report = feed.report()
    assert set(found) <= eligible
    assert set(found.values()) == {1}
    for n in range(N):  # each run of length l holds l // W windows
        for run in _runs(n, document[n], eligible):
            tiles.append(len(run) // window * window)
            assert sum((n, t) in found for t in run) == tiles[-1]
    assert report.untiled_share == pytest.approx(1 - sum(tiles) / len(eligible))


def _runs(n: int, document: np.ndarray, eligible: set[tuple[int, int]]) -> list[list[int]]:
    runs: list[list[int]] = []
    for t in range(T):
        if (n, t) not in eligible:
            continue
        if runs and runs[-1][-1] == t - 1 and document[t] == document[t - 1]:
            runs[-1].append(t)
        else:
            runs.append([t])
    return runs


def test_windows_begin_elsewhere_in_other_epochs_and_the_same_whatever_the_parts(reader: cache.CacheReader) -> None:
    def starts(epochs: int, **changes: int) -> Counter[tuple[int, int]]:
        config = FeedConfig(**{**SMALL, **changes}, window=4)
        return Counter(
            rows_of(batch)[i]
            for batch in batches(reader, config, epochs=epochs)
            for i in range(0, len(rows_of(batch)), 4)
        )

    first = starts(1)
    assert starts(1, parts=3) == starts(1, pool_sequences=40) == first
    assert starts(2) - first != first


def test_a_window_of_one_is_a_row(reader: cache.CacheReader) -> None:
    first = batches(reader, FeedConfig(**SMALL, window=1), epochs=1)[0]
    assert first.x.shape == (24, 8)
    assert first.tokens.shape == first.document.shape == (24,)


def test_batches_run_on_over_the_end_of_an_epoch(reader: cache.CacheReader) -> None:
    config = FeedConfig(**SMALL)
    per_epoch = len(eligible_rows(reader, config))
    assert per_epoch % 24
    sizes = [len(batch.sequence) for batch in batches(reader, config, epochs=2)]
    assert sizes == [24] * (2 * per_epoch // 24) + [2 * per_epoch % 24]
    with Feed(reader, [3], config) as endless:
        assert all(len(batch.sequence) == 24 for batch in some(endless, 3 * len(sizes)))
        assert endless.report().epoch == pytest.approx(3 * len(sizes) * 24 / per_epoch, abs=0.15)


def test_the_order_does_not_depend_on_how_the_cache_is_laid_out(reader: cache.CacheReader, tmp_path: Path) -> None:
    repack(reader, tmp_path / "r", codec="zstd", shard_sequences=16)
    other = cache.open(str(tmp_path / "r"))
    for a, b in zip(*(batches(one, FeedConfig(**SMALL), epochs=1) for one in (reader, other)), strict=True):
        assert rows_of(a) == rows_of(b)
        assert torch.equal(a.x, b.x)


def test_the_first_batch_is_the_golden_one(reader: cache.CacheReader) -> None:
    with Feed(reader, [3], FeedConfig(batch=8, pool_sequences=12, block=2, seed=1)) as feed:
        assert rows_of(next(feed)) == GOLDEN_ROWS
    with Feed(reader, [3], FeedConfig(batch=8, pool_sequences=12, block=2, seed=1, window=4)) as feed:
        assert rows_of(next(feed))[::4] == GOLDEN_WINDOWS


def test_a_batch_stays_what_it_was_for_as_long_as_it_is_held(reader: cache.CacheReader) -> None:
    with Feed(reader, [3], FeedConfig(**SMALL)) as feed:
        held = [(batch.x, batch.x.clone()) for batch in some(feed, 40)]
        view = next(feed).x[3:5].view(torch.int16)
        copy = view.clone()
        list(some(feed, 20))
    assert all(torch.equal(x, kept) for x, kept in held)
    assert torch.equal(view, copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 25, "window": 2}, "batch must be a multiple of window × parts = 2 × 1, got 25: take 24"),
        ({"split": "test"}, "split must be one of train, held_out, all, got 'test'"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"block": 9}, "block must be at most 8"),
        ({"max_norm": float("nan")}, "max_norm must be a number of medians"),
        ({"parts": 4, "block": 8}, "pool_sequences must hold a block for each part, 8 × 4, got 12"),
    ],
)
def test_a_configuration_that_no_cache_can_serve_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        FeedConfig(**{**SMALL, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"window": 24}, {}, "window must be at most the cache's context of 12 positions, got 24"),
        ({"skip_positions": 12}, {}, "skip_positions=12 leaves none of the 12 positions"),
        ({"parts": 3}, {"world_size": 2}, "parts must be a multiple of the number of processes, 2, got 3: take"),
        ({}, {"rank": 1}, "rank must be from 0 to below world_size=1, got 1"),
        ({}, {"layers": []}, "layers must be one or more"),
        ({}, {"device": "meta"}, "device must be 'cpu' or a CUDA device"),
        ({"pool_bytes": 100}, {}, "the smallest pools need .* bytes, pool_bytes .* is 100: set a larger pool_bytes"),
    ],
)
def test_what_this_cache_cannot_serve_is_refused_with_the_remedy(
    reader: cache.CacheReader, changes: dict[str, object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        batches(reader, FeedConfig(**{**SMALL, **changes}), epochs=1, **options)  # type: ignore[arg-type]


def test_a_layer_that_is_not_there_is_named(reader: cache.CacheReader) -> None:
    with pytest.raises(cache.CacheError, match="has no layer 9, only 3, 5"):
        Feed(reader, [9], FeedConfig(**SMALL))


def test_a_cache_without_held_out_sequences_says_so(tmp_path: Path) -> None:
    reader = make_cache(tmp_path / "c", n=3)
    with pytest.raises(TrainError, match=r"split='held_out' asks for sequences of which .* has none among its 3"):
        Feed(reader, [3], FeedConfig(**SMALL, split="held_out"))


@pytest.mark.parametrize("window", [1, 12])
def test_filters_that_leave_nothing_are_an_error_and_no_endless_loop(tmp_path: Path, window: int) -> None:
    reader = make_cache(tmp_path / "c")
    skip = 11 if window == 1 else 0
    config = FeedConfig(batch=24, pool_sequences=12, block=2, skip_positions=skip, window=window, max_norm=1e-9)
    with pytest.raises(TrainError, match=r"no (row|run of 12 rows of one document) of the train split is eligible"):
        batches(reader, config)
