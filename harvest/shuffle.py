"""Document order as a pure function of the seed, with a position from which reading goes on.

A corpus of single documents is permuted whole. Any other is shuffled twice: its units (files, row groups) are permuted,
then the stream is cut into blocks of bounded size and each block is permuted, so a position is three integers.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harvest.corpora import Corpus

BLOCK_DOCUMENTS: Final = 10_000
BLOCK_CHARACTERS: Final = 2**26
"""A block ends with whichever of the two comes first: 64 Mi characters are 64 to 256 MiB of memory."""


class Position(NamedTuple):
    """A place in the shuffled order: the block that starts at document `offset` of the `unit`-th unit, `within` it."""

    unit: int = 0
    offset: int = 0
    within: int = 0

    def next(self) -> "Position":
        """The place after this document; past the end of a block it means the start of the next one."""
        return self._replace(within=self.within + 1)


def permutation(n: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on the key alone, not on a library's random stream.

    Sorts by SplitMix64 of the index (Steele et al. 2014, doi:10.1145/2660193.2660195).
    """
    start = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    golden, first, second = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    z = np.arange(1, n + 1, dtype=np.uint64) * golden + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * first
    z = (z ^ (z >> np.uint64(27))) * second
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


class ShuffledCorpus:
    """A corpus in the order of a seed."""

    def __init__(
        self,
        corpus: Corpus,
        seed: int,
        block_documents: int = BLOCK_DOCUMENTS,
        block_characters: int = BLOCK_CHARACTERS,
    ) -> None:
        """Draw the order of the units: 8 bytes of memory each, unless the corpus is random already."""
        self.corpus = corpus
        self.seed = seed
        self.block_documents = block_documents
        self.block_characters = block_characters
        self._order = None if corpus.shuffled else permutation(corpus.units, seed)

    def read(self, start: Position) -> Iterator[tuple[Position, str | None]]:
        """Every document from a position on, each with its own position."""
        if self.corpus.indexed:
            for within in range(start.within, self.corpus.units):
                for text in self.corpus.read(self._unit(within), 0):
                    yield Position(within=within), text
            return
        stream = self._stream(start.unit, start.offset)
        skip = start.within
        while block := self._block(stream):
            unit, offset, _ = block[0]
            order = permutation(len(block), self.seed, unit, offset)
            for within in range(skip, len(block)):
                yield Position(unit, offset, within), block[order[within]][2]
            skip = max(0, skip - len(block))

    def _unit(self, rank: int) -> int:
        return rank if self._order is None else int(self._order[rank])

    def _stream(self, unit: int, offset: int) -> Iterator[tuple[int, int, str | None]]:
        for rank in range(unit, self.corpus.units):
            for number, text in enumerate(self.corpus.read(self._unit(rank), offset), start=offset):
                yield rank, number, text
            offset = 0

    def _block(self, stream: Iterator[tuple[int, int, str | None]]) -> list[tuple[int, int, str | None]]:
        block: list[tuple[int, int, str | None]] = []
        characters = 0
        for item in stream:
            block.append(item)
            characters += len(item[2] or "")
            if len(block) >= self.block_documents or characters >= self.block_characters:
                break
        return block
