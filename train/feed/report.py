"""What a feed measures of itself."""

import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, kw_only=True)
class FeedReport:
    """What a feed has delivered, and how long the trainer waited for it."""

    rows: int
    """Rows handed out."""
    bytes: int
    """Bytes of their vectors."""
    seconds: float
    """Since the first batch was asked for."""
    waited_seconds: float
    """Of these, spent waiting for a batch."""
    epoch: float
    """Epochs delivered, with the fraction of the one under way; a mean over the parts served here."""
    documents_per_batch: float
    """Distinct documents in a batch, mean over every eighth batch."""
    eligible_share: float
    """Share of rows that pass the filters, of the chapters begun; padding counts as rows."""
    untiled_share: float
    """Share of eligible rows that were in no window, of the chapters begun."""

    @property
    def rows_per_second(self) -> float:
        """Rows handed out a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    @property
    def gigabytes_per_second(self) -> float:
        """10⁹ bytes of vectors handed out a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def waited_share(self) -> float:
        """Share of the time that the trainer waited for a batch."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """What a feed mixes at a time, and what kept it from mixing more."""

    sequences: int
    """Sequences that are mixed at a time, over all parts: an epoch is cut into equal chapters of at most `asked`."""
    asked: int
    """`FeedConfig.pool_sequences`."""
    split: int
    """Sequences of the wanted split."""
    bytes: int
    """Memory of the pools of this process; 0 where rows are gathered from the cache's own files, mapped."""
    budget: int
    """Bytes that all pools of a process may take, by which their size is chosen, mapped or not."""
    limited: bool
    """Whether memory is why fewer sequences are mixed than were asked for."""
    resumed: bool
    """Whether the size is that of a run that goes on."""

    def __str__(self) -> str:
        """One line."""
        what = "the whole split" if self.sequences >= self.split else f"of {self.split:,}"
        where = f"in {self.bytes / 1e9:.2g} GB of memory" if self.bytes else "from the cache's files, mapped"
        line = f"{self.sequences:,} sequences ({what}) are mixed at a time, {where}"
        if not self.limited:
            return line
        if self.resumed:
            return f"{line}: the size that the run began with"
        return f"{line}: {self.asked:,} would take more than {self.budget / 1e9:.2g} GB (feed.pool_bytes allows more)"


class Meter:
    """Counts what a feed hands out."""

    def __init__(self) -> None:
        """Start with nothing; the clock starts with the first batch asked for."""
        self.rows = self.nbytes = 0
        self._documents = self._counted = 0
        self.waited_seconds = 0.0
        self._begin: float | None = None

    def waiting(self) -> float:
        """A batch is asked for; returns the time."""
        now = time.perf_counter()
        self._begin = self._begin or now
        return now

    def arrived(self, since: float) -> None:
        """It is there, or will never be."""
        self.waited_seconds += time.perf_counter() - since

    def count(self, rows: int, nbytes: int, documents: int | None) -> None:
        """A batch is handed out; None where its documents were not counted."""
        self.rows, self.nbytes = self.rows + rows, self.nbytes + nbytes
        if documents is not None:
            self._documents, self._counted = self._documents + documents, self._counted + 1

    def report(self, epoch: float, seen: Int64[np.ndarray, "3"]) -> FeedReport:
        """Everything counted so far.

        Args:
            epoch: see `FeedReport.epoch`.
            seen: rows, eligible rows and rows in items of the chapters begun.
        """
        rows, eligible, tiled = seen.tolist()
        return FeedReport(
            rows=self.rows,
            bytes=self.nbytes,
            seconds=time.perf_counter() - self._begin if self._begin else 0.0,
            waited_seconds=self.waited_seconds,
            epoch=epoch,
            documents_per_batch=self._documents / self._counted if self._counted else 0.0,
            eligible_share=eligible / rows if rows else 0.0,
            untiled_share=1 - tiled / eligible if eligible else 0.0,
        )
