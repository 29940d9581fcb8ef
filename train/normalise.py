"""From raw rows to the trainer's units and back: x' = (x − μ) / c with E‖x'‖² = D over the rows that training sees.

μ and c come from the cache's statistics (every row, float64) where the feed's filter is the default one, and from a
sample of the filtered rows where it is not. They are folded into every saved SAE, which speaks raw model units.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from cache.statistics import ROW_SETS
from train.errors import TrainError
from train.feed import Feed, FeedConfig

SAMPLE_ROWS: Final = 2**17


@dataclass(frozen=True)
class Normalisation:
    """Mean and scale of one layer."""

    mean_D: Float[Tensor, " D"]
    """μ, float32, raw units."""
    scale: float
    """c, raw units: the root mean square of an entry of x − μ."""
    source: str
    """Which rows it was computed from."""

    def apply(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Raw rows (any float type) to normalised float32."""
        return (x_BD.float() - self.mean_D).mul_(1 / self.scale)

    def undo(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Normalised rows to raw units."""
        return x_BD * self.scale + self.mean_D

    def to(self, device: str) -> "Normalisation":
        """The same on another device."""
        return replace(self, mean_D=self.mean_D.to(device))


def normalisation(reader: CacheReader, layer: int, config: FeedConfig) -> Normalisation:
    """Mean and scale over the rows that a feed of this configuration gives.

    Raises:
        TrainError: rows that do not vary, or none at all.
        CacheError: a damaged cache.
    """
    default = FeedConfig()
    filters = ("split", "drop_bos", "drop_special", "skip_positions", "max_norm")
    if all(getattr(config, name) == getattr(default, name) for name in filters):
        statistics, at = reader.statistics(layer), ROW_SETS.index("train")
        mean_D, variance_D = statistics.mean[at], statistics.variance[at]
        source = f"cache statistics, row set train, {int(statistics.count[at]):,} rows"
        scale = float(variance_D.mean()) ** 0.5
        return _checked(torch.from_numpy(mean_D.copy()), scale, source)
    return _sampled(reader, layer, config)


def _sampled(reader: CacheReader, layer: int, config: FeedConfig) -> Normalisation:
    total_D = torch.zeros(reader.meta.d_model, dtype=torch.float64)
    square, count = 0.0, 0
    rows = replace(config, window=1, parts=1)
    with Feed(reader, (layer,), rows, epochs=1) as feed:
        for batch in feed:
            x_BD = batch.x.double()
            total_D += x_BD.sum(0)
            square += float(x_BD.square().sum())
            count += len(x_BD)
            if count >= SAMPLE_ROWS:
                break
    if not count:
        raise TrainError("the filters leave no row to train on")
    mean_D = total_D / count
    variance = (square / count - float(mean_D.square().sum())) / len(mean_D)
    return _checked(mean_D, max(variance, 0.0) ** 0.5, f"the first {count:,} filtered rows of the first epoch")


def _checked(mean_D: Tensor, scale: float, source: str) -> Normalisation:
    if not scale > 0:
        raise TrainError(f"the rows do not vary ({source}): nothing can be learned from them")
    return Normalisation(mean_D.float(), scale, source)
