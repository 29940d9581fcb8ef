"""An interpolated Kneser-Ney trigram model: the bar that the miniature's cross-entropy is held against.

Chen & Goodman 1999, equation 15 with one discount an order, D = n1 / (n1 + 2 n2). The lower orders count in how many
contexts a token was seen instead of how often; the last order is mixed with the uniform distribution.
Counts are sorted integer keys (context * V + token), looked up by binary search. Shapes: N rows of T token ids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """Counts of one order: keys = context * V + token, with the totals of each context."""

    vocab_size: int
    keys: Ints
    counts: Ints
    contexts: Ints
    totals: Ints  # sum of the counts after a context
    kinds: Ints  # number of different tokens after a context
    discount: float

    @classmethod
    def of(cls, keys: Ints, counts: Ints, vocab_size: int) -> "_Order":
        contexts, first = np.unique(keys // vocab_size, return_index=True)
        n1, n2 = int((counts == 1).sum()), int((counts == 2).sum())
        return cls(
            vocab_size=vocab_size,
            keys=keys,
            counts=counts,
            contexts=contexts,
            totals=np.add.reduceat(counts, first),
            kinds=np.diff(np.append(first, len(keys))),
            discount=n1 / (n1 + 2 * n2) if n1 else 0.5,
        )

    def mix(self, context: Ints, token: Ints, lower: Floats) -> Floats:
        """Discounted relative frequency plus the freed mass times the lower order; the lower order if unseen."""
        at = np.minimum(np.searchsorted(self.contexts, context), len(self.contexts) - 1)
        known = self.contexts[at] == context
        count = _lookup(self.keys, self.counts, context * self.vocab_size + token)
        seen = np.maximum(count - self.discount, 0.0) / self.totals[at]
        freed = self.discount * self.kinds[at] / self.totals[at]
        return np.where(known, seen + freed * lower, lower)


class Trigram:
    """p(token | two tokens before it), trained on rows; a row's first token counts as its own predecessor."""

    def __init__(self, rows_NT: Ints, vocab_size: int) -> None:
        v = self.vocab_size = vocab_size
        a, b, c = _triples(rows_NT)
        trigram_keys, trigram_counts = np.unique((a * v + b) * v + c, return_counts=True)
        bigram_keys, bigram_kinds = np.unique(trigram_keys % (v * v), return_counts=True)
        unigram_keys, unigram_kinds = np.unique(bigram_keys % v, return_counts=True)
        self._trigrams = _Order.of(trigram_keys, trigram_counts, v)
        self._bigrams = _Order.of(bigram_keys, bigram_kinds, v)
        self._unigrams = _Order.of(unigram_keys, unigram_kinds, v)

    def cross_entropy(self, rows_NT: Ints) -> float:
        """Mean -log p in nats over every token of the rows except the first of each."""
        return float(-np.log(self.probability(*_triples(rows_NT))).mean())

    def probability(self, a: Ints, b: Ints, c: Ints) -> Floats:
        """p(c | a b), elementwise."""
        uniform = np.full(c.shape, 1.0 / self.vocab_size)
        unigram = self._unigrams.mix(np.zeros_like(c), c, uniform)
        bigram = self._bigrams.mix(b, c, unigram)
        return self._trigrams.mix(a * self.vocab_size + b, c, bigram)


def _triples(rows_NT: Ints) -> tuple[Ints, Ints, Ints]:
    padded = np.concatenate([rows_NT[:, :1], rows_NT], axis=1).astype(np.int64)
    return padded[:, :-2].ravel(), padded[:, 1:-1].ravel(), padded[:, 2:].ravel()


def _lookup(keys: Ints, counts: Ints, wanted: Ints) -> Ints:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, counts[at], 0)
