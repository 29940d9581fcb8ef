"""How well the feed mixes a cache whose neighbours are strongly correlated."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.mixing import Correlated, of_batches, of_feed, of_order
from evals.planted import Dictionary, Planted, Temporal
from evals.planted.caches import write_cache
from tests.train.planted_cache import T, batches, make_cache
from train.feed import FeedConfig
from train.feed.order import Order

CACHE = Correlated(sequences=1600, context=T, shard_sequences=40, document_sequences=4)
BATCH, POOL = 40, 160  # in the proportions of the defaults and 10M tokens: a batch a quarter of the pool's sequences


def test_batches_of_the_feed_are_almost_independent_draws(tmp_path: Path) -> None:
    """The variance of batch means is at most 1.3 times that of independent draws; in sequence order it is > 5 times."""
    reader = make_cache(tmp_path / "c", n=CACHE.sequences, shard_sequences=CACHE.shard_sequences)
    config = FeedConfig(batch=BATCH, pool_sequences=POOL, split="all")
    delivered = batches(reader, config, epochs=1)
    sequence = np.stack([batch.sequence.numpy() for batch in delivered if len(batch.sequence) == BATCH])
    mixed = of_batches(CACHE, sequence, draws=60)
    in_order = of_batches(CACHE, np.sort(sequence.reshape(-1)).reshape(sequence.shape), draws=60)
    assert mixed.variance < 1.3
    assert in_order.variance > 5
    assert mixed.documents > 25 > 5 > in_order.documents


def test_independent_draws_have_a_ratio_of_one() -> None:
    sequence = np.random.default_rng(0).integers(0, CACHE.sequences, (600, BATCH))
    assert of_batches(CACHE, sequence, draws=60).variance == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("window", [2, 4])
def test_independent_windows_have_a_ratio_of_one_though_they_vary_more_than_rows(window: int) -> None:
    sequence = np.random.default_rng(0).integers(0, CACHE.sequences, (600, BATCH // window))
    mixing = of_batches(CACHE, sequence, draws=60, window=window)
    assert mixing.of_windows == pytest.approx(1, abs=0.06)
    assert mixing.variance == pytest.approx(1 + 0.3 * (window - 1), rel=0.06)


@pytest.mark.parametrize(
    ("source", "least", "most"),
    [(Dictionary(d_model=12, features=24), 0.9, 1.1), (Temporal(d_model=12, topics=4, words=2, fast=8), 1.3, 8)],
    ids=["rows that know nothing of their neighbours", "topics that stay"],
)
def test_what_windows_cost_is_told_apart_from_what_the_pool_costs(
    tmp_path: Path, source: Planted, least: float, most: float
) -> None:
    reader = write_cache(tmp_path / "c", source, sequences=400, context=16, shard_sequences=50)
    rows, windows = (of_feed(reader, 0, FeedConfig(batch=64, pool_sequences=400, window=w)) for w in (1, 8))
    assert rows.variance == rows.of_windows == pytest.approx(1, abs=0.1)
    assert windows.of_windows == pytest.approx(1, abs=0.2)
    assert least < windows.variance < most


def test_larger_pools_and_smaller_blocks_mix_better() -> None:
    def mixing(pool: int, block: int) -> float:
        order = Order(sequences=np.arange(1600), seed=0, parts=1, block=block, pool_sequences=pool)
        return of_order(CACHE, order, BATCH, draws=30).variance

    assert mixing(1600, 1) < mixing(160, 1) < mixing(40, 1)
    assert mixing(80, 1) < mixing(80, 8)
