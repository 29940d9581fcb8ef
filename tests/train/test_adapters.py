"""Other libraries' trainers run from a feed unchanged; with the libraries themselves where they are installed."""

from pathlib import Path

import numpy as np
import pytest
import torch

import cache
from tests.cache.planted import D, T, make_bits, make_meta, make_rows, write
from train.errors import TrainError
from train.feed import Feed, FeedConfig
from train.feed.adapters import dictionary_learning_data, sae_lens_data_provider

CONFIG = FeedConfig(batch=32, pool_sequences=16)


@pytest.fixture
def reader(tmp_path: Path) -> cache.CacheReader:
    n = 60
    write(tmp_path / "c", make_meta(shard_sequences=16), {3: make_bits(n), 5: make_bits(n, seed=5)}, make_rows(n))
    return cache.open(str(tmp_path / "c"))


@pytest.mark.parametrize("adapt", [sae_lens_data_provider, dictionary_learning_data])
def test_rows_are_those_of_the_feed_in_float32(reader: cache.CacheReader, adapt: object) -> None:
    with Feed(reader, [3], CONFIG, epochs=1) as feed, Feed(reader, [3], CONFIG, epochs=1) as same:
        adapted = list(adapt(feed))  # type: ignore[operator]
        assert all(torch.equal(a, b.x.float()) for a, b in zip(adapted, same, strict=True))
    assert adapted[0].shape == (32, D)
    assert adapted[0].dtype == torch.float32


@pytest.mark.parametrize("adapt", [sae_lens_data_provider, dictionary_learning_data])
def test_windows_and_several_layers_are_refused(reader: cache.CacheReader, adapt: object) -> None:
    for layers, config in (([3, 5], CONFIG), ([3], FeedConfig(batch=32, window=2))):
        with Feed(reader, layers, config) as feed, pytest.raises(TrainError, match="wanted a feed of single rows"):
            adapt(feed)  # type: ignore[operator]


def test_a_trainer_may_change_a_batch_in_place(reader: cache.CacheReader) -> None:
    """dictionary_learning divides each batch by its norm in place."""
    with Feed(reader, [3], CONFIG, epochs=2) as feed, Feed(reader, [3], CONFIG, epochs=2) as untouched:
        for changed, batch in zip(dictionary_learning_data(feed), untouched, strict=True):
            assert torch.equal(changed, batch.x.float())
            changed.zero_()


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_sae_lens_learns_from_a_feed(reader: cache.CacheReader) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=4 * D, k=8))
    before = sae.W_dec.detach().clone()
    settings = SAETrainerConfig(
        total_training_samples=32 * 40,
        train_batch_size_samples=32,
        lr=1e-2,
        lr_end=1e-2,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
    )
    with Feed(reader, [3], CONFIG) as feed:
        SAETrainer(cfg=settings, sae=sae, data_provider=sae_lens_data_provider(feed)).fit()
        assert feed.report().rows >= 32 * 40
    assert not torch.equal(before, sae.W_dec)
    assert fvu(sae(rows(reader)), rows(reader)) < 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalise", [False, True])
def test_the_trainer_of_dictionary_learning_learns_from_a_feed(
    reader: cache.CacheReader, tmp_path: Path, normalise: bool
) -> None:
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
    from dictionary_learning.training import trainSAE

    settings = {
        "trainer": TopKTrainer,
        "dict_class": AutoEncoderTopK,
        "activation_dim": D,
        "dict_size": 4 * D,
        "k": 8,
        "lr": 1e-2,
        "steps": 60,
        "layer": 3,
        "lm_name": "planted",
        "device": "cpu",
        "warmup_steps": 0,
        "seed": 0,
    }
    with Feed(reader, [3], CONFIG) as feed:
        trainSAE(
            data=dictionary_learning_data(feed),
            trainer_configs=[settings],
            steps=60,
            save_dir=str(tmp_path / "run"),
            normalize_activations=normalise,
            device="cpu",
        )
        assert feed.report().rows >= 32 * 60
    sae = AutoEncoderTopK.from_pretrained(str(tmp_path / "run" / "trainer_0" / "ae.pt"), k=8, device="cpu")
    assert fvu(sae(rows(reader)), rows(reader)) < 0.5


def rows(reader: cache.CacheReader) -> torch.Tensor:
    """Rows that are not BOS and not the extreme values of the first sequence."""
    return reader.layer(3).rows(np.arange(T, 3 * T)).float()


def fvu(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
