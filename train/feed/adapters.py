"""A feed as the data of other trainers, which then run from our caches unchanged.

Shapes: B rows, D d_model.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float32
from torch import Tensor

from train.errors import TrainError
from train.feed.feed import Feed


def sae_lens_data_provider(feed: Feed) -> Iterator[Float32[Tensor, "B D"]]:
    """What SAELens' `SAETrainer(data_provider=…)` draws its batches from: float32 rows, without end.

    Source: SAELens 6, `sae_lens/training/types.py`, DataProvider. Its `SAETrainerConfig.train_batch_size_samples` only
    counts; the size of a batch is the feed's.

    Raises:
        TrainError: a feed of windows or of several layers.
    """
    return _float32(feed)


def dictionary_learning_data(feed: Feed) -> Iterator[Float32[Tensor, "B D"]]:
    """What dictionary_learning's `trainSAE(data=…)` iterates over: float32 rows.

    Source: dictionary_learning, `training.py`, which moves each batch to its device and, with `normalize_activations`,
    takes its first batches for the scale.

    Raises:
        TrainError: a feed of windows or of several layers.
    """
    return _float32(feed)


def _float32(feed: Feed) -> Iterator[Float32[Tensor, "B D"]]:
    if feed.config.window != 1 or len(feed.layers) != 1:
        raise TrainError(
            f"wanted a feed of single rows of one layer, got window={feed.config.window} and layers {feed.layers}:"
            " other trainers take [B, D]"
        )
    return (batch.x.to(torch.float32) for batch in feed)
