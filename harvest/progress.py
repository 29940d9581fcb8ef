"""The progress line of a harvest."""

import time

from tqdm import tqdm

import cache
from harvest.ranks import Ranks


class Progress:
    """One line: tokens/s, GB/s, time left, share of the time that the model waited for the disk."""

    def __init__(self, total: int, writer: cache.CacheWriter, ranks: Ranks) -> None:
        """Show it, on a terminal, for `total` tokens of this process."""
        label = "harvest" if ranks.world_size == 1 else f"harvest, process 1 of {ranks.world_size}"
        self.bar = tqdm(total=total, unit="tok", unit_scale=True, desc=label, disable=True if ranks.rank else None)
        self.writer, self.begin, self.tokens, self.nbytes = writer, time.perf_counter(), 0, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, tokens: int, nbytes: int) -> None:
        """So much more has been handed to the writer."""
        self.tokens, self.nbytes = self.tokens + tokens, self.nbytes + nbytes
        self.bar.set_postfix_str(self._rate(), refresh=False)
        self.bar.update(tokens)

    def notes(self) -> list[str]:
        """The same for the whole run, when it is over."""
        if not self.tokens:
            return []
        seconds = time.perf_counter() - self.begin
        rate = f"{self.tokens / seconds:,.0f} tokens/s, {self._rate()}"
        return [f"harvested {self.tokens:,} tokens in {seconds:,.1f} s: {rate}"]

    def _rate(self) -> str:
        seconds = time.perf_counter() - self.begin
        return f"{self.nbytes / seconds / 1e9:.3f} GB/s, waited {self.writer.waited_seconds / seconds:.0%} for the disk"
