"""Which sequences are mixed when, and in which order their rows come: a pure function of (seed, epoch, parts).

The wanted sequences, in the order of their numbers, are cut into *blocks*; the blocks are dealt to the *parts* once for
a seed. Every epoch permutes the blocks of a part and cuts them into *chapters* of equal size, each of which fits into
the pool; the rows of a chapter are then delivered in a random order. What follows depends on nothing else: not on the
cache's shards or codec, the number of processes or threads, or what was read before.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from train.errors import TrainError


class Purpose(IntEnum):
    """What random numbers are drawn for; part of the key of each generator."""

    DEAL = 0
    BLOCKS = 1
    ITEMS = 2
    PHASES = 3


class Position(NamedTuple):
    """A place in the stream of one part: so many items of that chapter of that epoch have been delivered."""

    epoch: int
    chapter: int
    offset: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order in which the sequences of a cache are served."""

    sequences: Int64[np.ndarray, " N"]
    """Numbers of the wanted sequences, ascending."""
    seed: int
    parts: int
    block: int
    pool_sequences: int
    """Most sequences of the chapters of all parts together."""

    def __post_init__(self) -> None:
        """Refuse more parts than there are blocks.

        Raises:
            TrainError: too few sequences.
        """
        if self.blocks < self.parts:
            raise TrainError(
                f"{self.parts} parts need {self.parts} blocks of {self.block} sequences, the wanted split has"
                f" {len(self.sequences)} sequences: lower parts or block, or harvest more"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks of all parts."""
        return -(-len(self.sequences) // self.block)

    def chapters(self, part: int) -> int:
        """Chapters an epoch of a part; the same in every epoch."""
        most = max(1, self.pool_sequences // (self.parts * self.block))
        return -(-len(self._dealt[part]) // most)

    def chapter_sequences(self, part: int) -> int:
        """Most sequences that a chapter of a part has."""
        return min(-(-len(self._dealt[part]) // self.chapters(part)) * self.block, len(self.sequences))

    def chapter(self, part: int, epoch: int, chapter: int) -> Int64[np.ndarray, " n"]:
        """Numbers of the sequences of one chapter, ascending."""
        dealt = self._dealt[part]
        blocks = dealt[generator(self.seed, Purpose.BLOCKS, epoch, part).permutation(len(dealt))]
        start, stop = (i * len(blocks) // self.chapters(part) for i in (chapter, chapter + 1))
        first = np.sort(blocks[start:stop]) * self.block
        index = (first[:, None] + np.arange(self.block)).reshape(-1)
        numbers: np.ndarray = self.sequences[index[index < len(self.sequences)]]
        return numbers

    def shuffled(self, part: int, epoch: int, chapter: int, items: int) -> Int64[np.ndarray, " items"]:
        """The order in which the items (rows or windows) of a chapter are delivered."""
        return generator(self.seed, Purpose.ITEMS, epoch, part, chapter).permutation(items)

    @cached_property
    def _dealt(self) -> list[np.ndarray]:
        blocks = generator(self.seed, Purpose.DEAL).permutation(self.blocks)
        return [blocks[part :: self.parts] for part in range(self.parts)]


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Random numbers of their own for every (seed, purpose, key), on every machine the same."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(purpose, *key))))


def runs(
    eligible_nT: Bool[np.ndarray, "n T"], document_nT: Int32[np.ndarray, "n T"]
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """First row (flat over [n, T]) and length of every longest run of eligible rows of one document in one sequence."""
    joined_nT = np.zeros_like(eligible_nT)
    joined_nT[:, 1:] = eligible_nT[:, 1:] & eligible_nT[:, :-1] & (document_nT[:, 1:] == document_nT[:, :-1])
    rows = np.flatnonzero(eligible_nT)
    begins = np.flatnonzero(~joined_nT.reshape(-1)[rows])
    return rows[begins], np.diff(begins, append=len(rows))


def tile(
    first_R: Int64[np.ndarray, " R"], length_R: Int64[np.ndarray, " R"], window: int, phase_R: UInt64[np.ndarray, " R"]
) -> Int64[np.ndarray, " w"]:
    """First rows of the length // W disjoint windows of each run, moved by a random share of what is left over.

    Args:
        first_R: first row of each run.
        length_R: rows of each run.
        window: W.
        phase_R: random numbers, one for each run.
    """
    count_R, left_R = np.divmod(length_R, window)
    start_R = first_R + (phase_R % (left_R + 1).astype(np.uint64)).astype(np.int64)
    within = np.arange(count_R.sum()) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    windows: np.ndarray = np.repeat(start_R, count_R) + within * window
    return windows


_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def phases(seed: int, epoch: int, row_R: Int64[np.ndarray, " R"]) -> UInt64[np.ndarray, " R"]:
    """A random number for each row of the cache and epoch, the same wherever and with whatever else it is asked for.

    Source: SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014), figure 17 with
    the mixing constants of Stafford's variant 13.
    """
    key = np.random.SeedSequence(seed, spawn_key=(Purpose.PHASES, epoch)).generate_state(1, np.uint64)
    z = row_R.astype(np.uint64) * _GOLDEN + key
    for shift, factor in _ROUNDS:
        z = (z ^ (z >> np.uint64(shift))) * factor
    return z ^ (z >> np.uint64(31))
