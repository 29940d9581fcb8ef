"""How well the feed mixes a cache whose neighbours are strongly correlated."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.mixing import Correlated, of_batches, of_order
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


def test_larger_pools_and_smaller_blocks_mix_better() -> None:
    def mixing(pool: int, block: int) -> float:
        order = Order(sequences=np.arange(1600), seed=0, parts=1, block=block, pool_sequences=pool)
        return of_order(CACHE, order, BATCH, draws=30).variance

    assert mixing(1600, 1) < mixing(160, 1) < mixing(40, 1)
    assert mixing(80, 1) < mixing(80, 8)
