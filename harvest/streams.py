"""Where a harvest's token sequences come from: text, random draws for speed measurements, or the cache itself.

Shapes: n sequences, T positions.
"""

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

import cache
from harvest.tokens import TokenBlock, TokenStream


class Sequences(ABC):
    """Sequences in order, from wherever the stream stands."""

    at: int
    """Number of the sequence that comes next."""

    def move(self, to: int) -> None:
        """Go on to a later sequence."""
        self.at = to

    @abstractmethod
    def take(self, n: int) -> TokenBlock:
        """The next n sequences; fewer only at the end of the source."""

    def cursor(self) -> dict[str, Any]:
        """Where the stream stands, for a cache's manifest; empty where any sequence can be had at once."""
        return {}

    def notes(self) -> list[str]:
        """What a person should know of the source, a line each."""
        return []

    def close(self) -> None:
        """Let go of threads and files."""
        return


class TextSequences(Sequences):
    """Packed sequences of a text stream."""

    def __init__(self, stream: TokenStream, at: int) -> None:
        """Wrap a stream that stands at sequence `at`."""
        self.stream, self.at = stream, at

    def move(self, to: int) -> None:
        """Go on to a later sequence, tokenising what lies between; where the text ends before, it stays there."""
        while self.at < to and len(self.take(min(to - self.at, 1024)).tokens):
            pass

    def take(self, n: int) -> TokenBlock:
        """The next n sequences; fewer only where the text ends."""
        block = self.stream.take(n)
        self.at += len(block.tokens)
        return block

    def cursor(self) -> dict[str, Any]:
        """State of the text stream."""
        return self.stream.state()

    def notes(self) -> list[str]:
        """What became of the documents."""
        r = self.stream.report()
        skipped = f"skipped {r.empty:,} empty, {r.binary:,} binary, {r.short:,} too short"
        waited = f"the model waited {r.waited:.0%} of the time for tokens"
        return [f"text: {r.documents:,} documents ({r.held_out:,} held out); {skipped}; {waited}"]

    def close(self) -> None:
        """End the tokeniser's thread."""
        self.stream.close()


class RandomSequences(Sequences):
    """Seeded uniform token ids, each sequence a document: text for models that cannot read."""

    def __init__(self, vocab_size: int, context: int, seed: int, start: int, held_out_fraction: float) -> None:
        """Stand at sequence `start`."""
        self.vocab_size, self.context, self.seed, self.at = vocab_size, context, seed, start
        self.held_out_fraction = held_out_fraction

    @staticmethod
    def hash(vocab_size: int) -> str:
        """What stands for the tokenizer's hash."""
        return hashlib.sha256(f"uniform token ids below {vocab_size}".encode()).hexdigest()

    def take(self, n: int) -> TokenBlock:
        """The next n sequences, a pure function of seed and number."""
        draws = [np.random.default_rng([self.seed, number]) for number in range(self.at, self.at + n)]
        tokens = np.stack([draw.integers(0, self.vocab_size, self.context, np.int32) for draw in draws])
        split = np.array([draw.random() < self.held_out_fraction for draw in draws], np.uint8)
        numbers = np.arange(self.at, self.at + n, dtype=np.int32)
        self.at += n
        document = np.repeat(numbers[:, None], self.context, axis=1)
        return TokenBlock(tokens, document, split, np.zeros(n, np.uint8))


class CachedSequences(Sequences):
    """The sequences that a cache holds already: a layer added later sees exactly the same tokens."""

    def __init__(self, reader: cache.CacheReader, start: int) -> None:
        """Stand at sequence `start`."""
        self.reader, self.at = reader, start

    def take(self, n: int) -> TokenBlock:
        """The next n sequences."""
        start, stop = self.at, min(self.at + n, self.reader.n_sequences)
        self.at = stop
        domain = self.reader.domain(start, stop) if self.reader.meta.domains else np.zeros(stop - start, np.uint8)
        return TokenBlock(
            self.reader.tokens(start, stop), self.reader.document(start, stop), self.reader.split(start, stop), domain
        )
