"""How well a feed mixes, computed from sequence numbers alone: no vector is read.

A cache is simulated whose rows depend strongly on where they stand: the variance of a row's value is shared among its
shard, its document (a run of consecutive sequences), its sequence and the token itself. Of a feed that mixes perfectly,
the mean of a batch has the variance of independent draws.
The shares are assumed, and rather larger than one expects of text, so that bad mixing shows.
"""

from dataclasses import dataclass

import numpy as np

from train.feed.order import Order


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How well batches are mixed."""

    variance: float
    """Variance of batch means over that of independent draws; 1 is perfect."""
    documents: float
    """Distinct documents in a batch."""


@dataclass(frozen=True, kw_only=True)
class Correlated:
    """A cache of strongly correlated rows."""

    sequences: int = 131_072
    context: int = 128
    shard_sequences: int = 512
    document_sequences: int = 4
    shares: tuple[float, float, float] = (0.02, 0.18, 0.10)
    """Of the variance: shard, document, sequence; the token has the rest."""

    def values(self, rng: np.random.Generator) -> np.ndarray:
        """What the rows of each sequence have in common, [sequences]."""
        numbers = np.arange(self.sequences)
        total = np.zeros(self.sequences)
        for share, size in zip(self.shares, (self.shard_sequences, self.document_sequences, 1), strict=True):
            group = numbers // size
            total += np.sqrt(share) * rng.standard_normal(group[-1] + 1)[group]
        return total

    @property
    def token_share(self) -> float:
        """Share of the variance that is each token's own."""
        return 1 - sum(self.shares)


def of_order(cache: Correlated, order: Order, batch: int, *, draws: int, seed: int = 0) -> Mixing:
    """Mixing of an order's batches over one epoch, over several draws of the cache's values.

    Args:
        cache: the correlation.
        order: of all its sequences.
        batch: rows of a global batch.
        draws: how often values are drawn for the same order.
        seed: of the values.
    """
    share = batch // order.parts
    streams = []
    for part in range(order.parts):
        stream = []
        for chapter in range(order.chapters(part)):
            numbers = order.chapter(part, 0, chapter)
            rows = order.shuffled(part, 0, chapter, len(numbers) * cache.context)
            stream.append(numbers[rows // cache.context].astype(np.int32))
        streams.append(np.concatenate(stream))
    whole = min(len(stream) for stream in streams) // share
    sequence = np.concatenate([stream[: whole * share].reshape(whole, share) for stream in streams], axis=1)
    return of_batches(cache, sequence, draws=draws, seed=seed)


def of_batches(cache: Correlated, sequence_bB: np.ndarray, *, draws: int, seed: int = 0) -> Mixing:
    """Mixing of batches, given the sequence of each of their rows."""
    rng = np.random.default_rng(seed)
    batch = sequence_bB.shape[1]
    variances = [cache.values(rng)[sequence_bB].mean(1).var() for _ in range(draws)]
    document_bB = np.sort(sequence_bB // cache.document_sequences, axis=1)
    distinct = 1 + (np.diff(document_bB, axis=1) != 0).sum(1)
    # The tokens' own part is independent whatever the order: its share is known and need not be drawn.
    return Mixing(variance=float(np.mean(variances)) * batch + cache.token_share, documents=float(distinct.mean()))
