"""How fast a training goes: rows and bytes a second, waiting for the feed, time left."""

import time
from collections.abc import Callable

import torch

from train.feed import Batch, Feed


class Pace:
    """Clocks of the whole run and of the time since the last report."""

    def __init__(self) -> None:
        """Start them."""
        self.begun = self.ended = time.perf_counter()
        self.steps = self.rows = self.nbytes = 0
        self.waited = 0.0
        self._batch: Batch | None = None
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._since = (time.perf_counter(), self.waited, self.rows, self.nbytes)

    def waiting(self, get: Callable[[], Batch]) -> Batch:
        """Take a batch and count the time it took."""
        start = time.perf_counter()
        self._batch = get()
        self.waited += time.perf_counter() - start
        return self._batch

    def stepped(self, rows: int) -> None:
        """Count one step of so many rows, of which this process had the last batch."""
        self.steps += 1
        self.rows += rows
        if self._batch is not None:
            self.nbytes += self._batch.x.nbytes * rows // max(self._batch.tokens.numel(), 1)
        self.ended = time.perf_counter()

    def report(self, feed: Feed) -> dict[str, float]:
        """Of the interval; documents of the last batch alone, so that a run that was cut reports what it would have."""
        since, waited, rows, nbytes = self._since
        elapsed = max(time.perf_counter() - since, 1e-9)
        documents = 0.0 if self._batch is None else float(len(torch.unique(self._batch.document)))
        return {
            "rows_per_s": (self.rows - rows) / elapsed,
            "gb_per_s": (self.nbytes - nbytes) / elapsed / 1e9,
            "feed_wait": (self.waited - waited) / elapsed,
            "documents_per_batch": documents,
            "epoch": feed.report().epoch,
        }

    def left(self, steps: int) -> str:
        """Time that so many more steps will take at the pace so far."""
        return f"{_clock((time.perf_counter() - self.begun) / max(self.steps, 1) * steps)} left"

    def __str__(self) -> str:
        """The whole run, up to its last step."""
        seconds = max(self.ended - self.begun, 1e-9)
        rate = f"{self.rows / seconds:,.0f} rows/s, {self.nbytes / seconds / 1e9:.2g} GB/s from the feed"
        return f"{self.rows:,} rows in {_clock(seconds)}: {rate}, waited {self.waited / seconds:.1%} of the time for it"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
