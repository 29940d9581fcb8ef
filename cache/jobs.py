"""What is handed to a writer: which shard is owed, and the rows that describe its sequences.

Shapes: b sequences of a batch, T positions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cache.schema import CacheMeta


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard that a harvest still owes, and what of it is missing."""

    shard: int
    start: int
    """First sequence."""
    stop: int
    """One past the last sequence."""
    layers: tuple[int, ...]
    """Layers whose vectors are missing."""
    rows: bool
    """Whether tokens, documents and splits are missing too; else they are on disk and only layers are added."""


class Rows(NamedTuple):
    """What describes b sequences beside their vectors."""

    tokens: np.ndarray
    """[b, T] int32"""
    document: np.ndarray
    """[b, T] int32, −1 at padding"""
    split: np.ndarray
    """[b] uint8: 0 train, 1 held-out"""
    domain: np.ndarray | None = None
    """[b] uint8, index into the cache's domains; None in a cache without domains"""

    def part(self, part: slice) -> "Rows":
        """Some of the sequences."""
        domain = None if self.domain is None else self.domain[part]
        return Rows(self.tokens[part], self.document[part], self.split[part], domain)

    def check(self, meta: CacheMeta) -> None:
        """Refuse arrays that are not those of b sequences of this cache.

        Raises:
            ValueError: naming the array, what it must be and what came.
        """
        b, t = len(self.tokens), meta.context
        wanted = {"tokens": ((b, t), np.int32), "document": ((b, t), np.int32), "split": ((b,), np.uint8)}
        if meta.domains:
            wanted["domain"] = ((b,), np.uint8)
        for name, (shape, dtype) in wanted.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {came}")
