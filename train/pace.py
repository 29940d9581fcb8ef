"""How fast a training goes: rows a second, waiting for the feed, time left."""

import time
from collections.abc import Callable

from train.feed import Batch, Feed


class Pace:
    """Clocks of the whole run and of the time since the last report."""

    def __init__(self) -> None:
        """Start them."""
        self.begun, self.steps = time.perf_counter(), 0
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.since, self.waited, self.rows = time.perf_counter(), 0.0, 0

    def waiting(self, get: Callable[[], Batch]) -> Batch:
        """Take a batch and count the time it took."""
        start = time.perf_counter()
        batch = get()
        self.waited += time.perf_counter() - start
        return batch

    def stepped(self, rows: int) -> None:
        """Count one step of so many rows."""
        self.steps += 1
        self.rows += rows

    def report(self, feed: Feed) -> dict[str, float]:
        """Of the interval."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        return {"rows_per_s": self.rows / elapsed, "feed_wait": self.waited / elapsed, "epoch": feed.report().epoch}

    def left(self, steps: int) -> str:
        """Time that so many more steps will take at the pace so far."""
        seconds = round((time.perf_counter() - self.begun) / max(self.steps, 1) * steps)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
