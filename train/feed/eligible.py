"""Which rows of a cache are wanted: a choice made when reading, never when harvesting.

Shapes: n sequences, T positions, D d_model, L layers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt16

from cache import CacheReader, bf16
from cache.statistics import QUANTILES
from train.errors import TrainError
from train.feed.config import FeedConfig

_TRAIN, _HELD_OUT = 0, 1


def wanted_sequences(reader: CacheReader, split: str) -> Int64[np.ndarray, " N"]:
    """Numbers of the sequences of a split, ascending.

    Raises:
        TrainError: there are none.
    """
    if split == "all":
        numbers = np.arange(reader.n_sequences)
    else:
        numbers = np.flatnonzero(reader.split() == (_TRAIN if split == "train" else _HELD_OUT))
    if not len(numbers):
        remedy = ": harvest with a held_out_fraction above 0" if split == "held_out" else ": harvest more tokens"
        raise TrainError(
            f"split={split!r} asks for sequences of which {reader.folder.name} has none among its"
            f" {reader.n_sequences}{remedy}"
        )
    return numbers


class Filter:
    """The filters of a configuration, applied to a cache."""

    def __init__(self, reader: CacheReader, layers: Sequence[int], config: FeedConfig) -> None:
        """Look up token ids and, where norms are limited, their medians.

        Raises:
            TrainError: a filter that leaves no position.
        """
        if config.skip_positions >= reader.meta.context:
            raise TrainError(
                f"skip_positions={config.skip_positions} leaves none of the {reader.meta.context} positions of a"
                " sequence: lower it"
            )
        self.skip = config.skip_positions
        dropped = set(reader.meta.special_token_ids) if config.drop_special else set()
        if config.drop_bos and reader.meta.bos_token_id >= 0:
            dropped.add(reader.meta.bos_token_id)
        self.dropped = np.array(sorted(dropped), np.int32)
        self.limit_L = np.array([_median_norm(reader, layer) * config.max_norm for layer in layers])
        self.limits_norms = config.max_norm > 0

    def mask(
        self, tokens_nT: Int32[np.ndarray, "n T"], document_nT: Int32[np.ndarray, "n T"]
    ) -> Bool[np.ndarray, "n T"]:
        """Which positions are wanted, as far as tokens and documents say."""
        wanted_nT: np.ndarray = document_nT >= 0
        wanted_nT[:, : self.skip] = False
        if len(self.dropped):
            wanted_nT &= ~np.isin(tokens_nT, self.dropped)
        return wanted_nT

    def within_norm(self, bits_LnTD: UInt16[np.ndarray, "L n T D"]) -> Bool[np.ndarray, "n T"]:
        """Which positions have a norm within the limit in every layer."""
        inside_nT = np.ones(bits_LnTD.shape[1:3], bool)
        for limit, bits_nTD in zip(self.limit_L, bits_LnTD, strict=True):
            for inside_T, bits_TD in zip(inside_nT, bits_nTD, strict=True):
                inside_T &= _norm(bits_TD) <= limit
        return inside_nT


def _norm(bits_TD: UInt16[np.ndarray, "T D"]) -> Float64[np.ndarray, " T"]:
    # In float64 the sum of bfloat16 squares is all but exact: no machine decides otherwise about a row.
    x_TD = bf16.to_float32(bits_TD).astype(np.float64)
    norm_T: np.ndarray = np.sqrt(np.einsum("td,td->t", x_TD, x_TD))
    return norm_T


def _median_norm(reader: CacheReader, layer: int) -> float:
    """Of the rows that are trained on; of all rows where the cache has none of those."""
    statistics = reader.statistics(layer)
    row_set = statistics.row_set("train")
    if not statistics.count[row_set]:
        row_set = statistics.row_set("all")
    return float(statistics.norm_quantiles[row_set, QUANTILES.index(0.5)])
