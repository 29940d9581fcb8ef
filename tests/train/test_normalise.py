"""Rows as an SAE sees them: mean 0 and E‖x‖² = D, whatever the model's own scale and its outliers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cache
from cache import bf16
from tests.cache.planted import BOS, make_meta, write
from train.errors import TrainError
from train.feed import Feed
from train.feed.config import FeedConfig
from train.initialise import geometric_median
from train.normalise import Normalisation, normalisation

N, T, D, LAYER = 60, 10, 8, 3


def sink_cache(path: Path, *, constant: bool = False) -> cache.CacheReader:
    """Rows around a mean of 5 with unequal scales; BOS is 300 times as large, and so is one other row in fifty."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 90, (N, T)).astype(np.int32)
    tokens[:, 0] = BOS
    tokens[::2, T // 2] = BOS
    x_NTD = 5 + rng.standard_normal((N, T, D)) * np.arange(1, D + 1)
    x_NTD[tokens == BOS] *= 300
    x_NTD[::5, 3] *= 300
    if constant:
        x_NTD[:] = 1.0
    split = (np.arange(N) % 6 == 1).astype(np.uint8)
    x_NTD[split == 1] += 50  # held-out rows must not count
    document = np.repeat(np.arange(N, dtype=np.int32)[:, None], T, axis=1)
    document[::4, -2:] = -1
    x_NTD[document < 0] = -1000
    write(
        path,
        make_meta(context=T, d_model=D, shard_sequences=16),
        {LAYER: bf16.from_float32(x_NTD.astype(np.float32))},
        cache.Rows(tokens, document, split, None),
    )
    return cache.open(str(path))


def fed(reader: cache.CacheReader, config: FeedConfig) -> Tensor:
    """All rows of an epoch."""
    with Feed(reader, (LAYER,), config, epochs=1) as feed:
        return torch.cat([batch.x for batch in feed])


FILTERS = {
    "the default": {},
    "special tokens dropped": {"drop_special": True},
    "first positions skipped": {"skip_positions": 2},
    "large norms dropped": {"max_norm": 5.0},
    "BOS kept": {"drop_bos": False},
    "held-out rows": {"split": "held_out"},
}


@pytest.mark.parametrize("filters", FILTERS)
def test_rows_that_the_feed_gives_have_mean_zero_and_mean_square_norm_d(tmp_path: Path, filters: str) -> None:
    reader, config = sink_cache(tmp_path / "c"), FeedConfig(batch=8, **FILTERS[filters])
    unit = normalisation(reader, LAYER, config)
    x_BD = unit.apply(fed(reader, config))
    assert x_BD.dtype == torch.float32
    assert x_BD.mean(0).abs().max() < 0.05
    assert float(x_BD.square().sum(1).mean()) == pytest.approx(D, rel=0.02)


def test_the_default_filter_takes_the_caches_statistics_and_another_measures_its_rows(tmp_path: Path) -> None:
    reader = sink_cache(tmp_path / "c")
    default = normalisation(reader, LAYER, FeedConfig(batch=8))
    without = normalisation(reader, LAYER, FeedConfig(batch=8, max_norm=5.0))
    assert "cache statistics" in default.source
    assert "filtered rows" in without.source
    assert without.scale < default.scale / 5, "the sinks were most of the scale"
    assert float(without.mean_D.mean()) == pytest.approx(5, abs=1.5)


def test_the_order_of_rows_and_the_batch_pattern_change_no_scale(tmp_path: Path) -> None:
    reader = sink_cache(tmp_path / "c")
    one, other = (
        normalisation(reader, LAYER, FeedConfig(batch=b, seed=s, window=w)) for b, s, w in ((8, 0, 1), (64, 1, 4))
    )
    assert one.scale == other.scale
    assert torch.equal(one.mean_D, other.mean_D)


def test_undo_is_the_inverse_and_leaves_raw_units() -> None:
    unit = Normalisation(torch.arange(4.0), 3.0, "by hand")
    x_BD = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit.undo(unit.apply(x_BD)), x_BD)
    torch.testing.assert_close(unit.apply(x_BD), (x_BD - torch.arange(4.0)) / 3)


def test_rows_that_do_not_vary_are_refused(tmp_path: Path) -> None:
    reader = sink_cache(tmp_path / "c", constant=True)
    with pytest.raises(TrainError, match="do not vary"):
        normalisation(reader, LAYER, FeedConfig(batch=8))


def test_the_geometric_median_ignores_how_far_an_outlier_lies() -> None:
    x_BD = torch.randn(501, 3, generator=torch.Generator().manual_seed(0))
    median_D = geometric_median(x_BD)
    x_BD[0] = 1e6
    assert (geometric_median(x_BD) - median_D).norm() < 0.02
    assert x_BD.mean(0).norm() > 1000


def test_no_point_near_the_geometric_median_is_nearer_to_the_rows() -> None:
    x_BD = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)).exp()
    median_D = geometric_median(x_BD)

    def distance(point_D: Tensor) -> float:
        return float((x_BD - point_D).norm(dim=1).mean())

    for step_D in torch.cat([torch.eye(3), -torch.eye(3)]) * 0.05:
        assert distance(median_D + step_D) > distance(median_D)
