"""Chapters: the sequences that are mixed at a time, read from the cache into a pool, and their items in random order.

Shapes: L layers, n sequences, T positions, m items.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8, UInt16

from cache import CacheReader
from train.feed.channel import Closed
from train.feed.config import FeedConfig
from train.feed.eligible import Filter
from train.feed.order import Order, Position, phases, runs, tile
from train.feed.pool import Memory, Pool
from train.feed.pool_mapped import mapped_pool

FILL_THREADS: Final = max(1, min(8, (os.cpu_count() or 1) // 2))
_TASK_BYTES: Final = 8 << 20  # one read: large enough for a disk's full rate, small enough to share among threads
_Piece = TypeVar("_Piece")


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """The sequences of a chapter."""

    pool: Pool
    number_n: Int64[np.ndarray, " n"]
    """Numbers of the sequences, ascending, in the order of their places in the pool."""
    tokens_nT: Int32[np.ndarray, "n T"]
    document_nT: Int32[np.ndarray, "n T"]
    domain_n: UInt8[np.ndarray, " _"]
    """Empty where the cache has no domains."""
    eligible_nT: Bool[np.ndarray, "n T"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chapter:
    """Contents and the order in which their items are delivered."""

    contents: Contents
    epoch: int
    number: int
    item_m: Int64[np.ndarray, " m"]
    """First row of each item, in the pool: place · T + position."""
    uploaded: Any
    """The same where batches are gathered."""
    eligible: int
    """Eligible rows; those that are in no window are left out this epoch."""


class Chapters:
    """Reads the chapters of a feed's parts."""

    def __init__(
        self, reader: CacheReader, layers: Sequence[int], config: FeedConfig, order: Order, memory: Memory
    ) -> None:
        """Start the threads that read; nothing is read yet."""
        self.reader, self.config, self.order, self.memory = reader, config, order, memory
        self.layers = [reader.layer(layer) for layer in layers]
        self.filter = Filter(reader, layers, config)
        self._stopping = threading.Event()
        self.mapped = mapped_pool(self.layers, memory)
        self._threads = ThreadPoolExecutor(FILL_THREADS, thread_name_prefix="feed-fill")

    def pool(self, sequences: int) -> Pool:
        """A pool for so many sequences."""
        return self.mapped or self.memory.pool(sequences)

    def contents(self, part: int, at: Position, pool: Pool) -> Contents:
        """Fill a pool with a chapter.

        Raises:
            CacheError: a sequence that is missing or damaged.
            Closed: the feed was closed meanwhile.
        """
        number_n = self.order.chapter(part, at.epoch, at.chapter)
        size = (len(number_n), self.reader.meta.context)
        contents = Contents(
            pool=pool,
            number_n=number_n,
            tokens_nT=np.empty(size, np.int32),
            document_nT=np.empty(size, np.int32),
            domain_n=np.empty(len(number_n) if self.reader.meta.domains else 0, np.uint8),
            eligible_nT=np.empty(size, bool),
        )
        pool.begin()
        shards = by_shard(number_n, self.reader.meta.shard_sequences)
        self._each(lambda piece: self._read_origin(contents, *piece), shards)
        reads = [(at, min(at + self.most, end)) for _, begin, end in shards for at in range(begin, end, self.most)]
        self._each(lambda piece: self._read_vectors(contents, *piece), reads)
        pool.settle()
        return contents

    def chapter(self, part: int, at: Position, contents: Contents) -> Chapter:
        """The items of a chapter in the order of this epoch."""
        config, context = self.config, self.reader.meta.context
        if config.window == 1:
            item_m = np.flatnonzero(contents.eligible_nT)
        else:
            first_R, length_R = runs(contents.eligible_nT, contents.document_nT)
            in_cache_R = contents.number_n[first_R // context] * context + first_R % context
            item_m = tile(first_R, length_R, config.window, phases(config.seed, at.epoch, in_cache_R))
        item_m = item_m[self.order.shuffled(part, at.epoch, at.chapter, len(item_m))]
        return Chapter(
            contents=contents,
            epoch=at.epoch,
            number=at.chapter,
            item_m=item_m,
            uploaded=self.memory.upload(contents.pool.rows(contents.number_n, item_m)),
            eligible=int(np.count_nonzero(contents.eligible_nT)),
        )

    @property
    def most(self) -> int:
        """Most sequences that are read in one go."""
        return most_sequences(self.memory.shape.sequence_bytes)

    def stop(self) -> None:
        """Whoever is filling a pool gives up."""
        self._stopping.set()

    def close(self) -> None:
        """Let the threads go."""
        self.stop()
        self._threads.shutdown()

    def _each(self, read: Callable[[_Piece], None], pieces: list[_Piece]) -> None:
        """Read all pieces, side by side; the first error ends it."""

        def unless_stopping(piece: _Piece) -> None:
            if self._stopping.is_set():
                raise Closed
            read(piece)

        for _ in self._threads.map(unless_stopping, pieces):
            pass

    def _read_origin(self, contents: Contents, shard: int, begin: int, end: int) -> None:
        """Everything but the vectors of the sequences in places [begin, end), which lie in one shard."""
        places = slice(begin, end)
        local = contents.number_n[places] - shard * self.reader.meta.shard_sequences
        tokens_nT, document_nT = (self.reader.chunk(name, shard)[local] for name in ("tokens", "document"))
        contents.tokens_nT[places], contents.document_nT[places] = tokens_nT, document_nT
        contents.eligible_nT[places] = self.filter.mask(tokens_nT, document_nT)
        if len(contents.domain_n):
            contents.domain_n[places] = self.reader.chunk("domain", shard)[local]

    def _read_vectors(self, contents: Contents, begin: int, end: int) -> None:
        """The vectors of the sequences in places [begin, end), which lie in one shard."""

        def look(bits_LnTD: UInt16[np.ndarray, "L n T D"]) -> None:
            contents.eligible_nT[begin:end] &= self.filter.within_norm(bits_LnTD)

        numbers = contents.number_n[begin:end]
        contents.pool.fill(begin, self.layers, numbers, look if self.filter.limits_norms else None)


def most_sequences(sequence_bytes: int) -> int:
    """Most sequences that are read in one go."""
    return max(1, _TASK_BYTES // sequence_bytes)


def by_shard(number_n: Int64[np.ndarray, " n"], shard_sequences: int) -> list[tuple[int, int, int]]:
    """Cut ascending numbers at shard borders: (shard, first place, one past the last)."""
    shard_n = number_n // shard_sequences
    begins = np.flatnonzero(np.diff(shard_n, prepend=-1))
    ends = np.append(begins[1:], len(number_n))
    return [(int(shard_n[a]), int(a), int(b)) for a, b in zip(begins, ends, strict=True)]
