"""Seeded draws that give the same text on every Python, for ever.

`random.Random` promises a stable stream for `random()` and for seeding from a string, not for `choice`, `shuffle` or
`sample`. Everything the generator draws is therefore built on `random()` alone.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of draws named by its key, so that item i of a sequence is a pure function of (seed, i)."""

    def __init__(self, *key: object) -> None:
        self._random = random.Random("/".join(str(part) for part in key))

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._random.random() * n)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in a random order (Fisher-Yates)."""
        out, random = list(items), self._random.random
        for i in range(len(out) - 1, 0, -1):
            j = int(random() * (i + 1))  # `below`, written out: half of the generator's time is spent here
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """n different items in a random order."""
        if n > len(items):
            raise ValueError(f"cannot draw {n} different items out of {len(items)}")
        return self.shuffled(items)[:n]
