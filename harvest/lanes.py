"""Forward passes of several batches at once on a CPU, each in a thread of its own with its share of torch's threads.

Threads that work on one batch together wait for each other after every operation; threads with a batch each do not. On
a GPU the batches of one process queue up by themselves, so one lane, the calling thread, is all there is.
"""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar

import torch

MOST_LANES: Final = 4
"""Each lane holds a batch and what the model makes of it on the way, so many cores do not mean many batches."""
AHEAD_ON_GPU: Final = 2
"""Batches whose vectors are on their way to the host while the next one is computed."""
_ARENA_MAX: Final = -8
"""`M_ARENA_MAX` of malloc.h."""
WIDE: Final = 512
"""d_model above which one batch at a time keeps a CPU's threads busy; nothing is measured between 128 and 2304."""
_TIDY: Final = 16
"""Pieces of work between two times that freed memory goes back to the system."""
Result = TypeVar("Result")


def few_arenas() -> None:
    """Let the allocator keep no more arenas than there may be lanes. To be called early.

    By default every thread gets one, and memory that one pass freed is of no use to the next in another: a harvest of
    2M tokens of the miniature in two lanes then peaked 90 to 150 MB above its model. With this, and with what `Lanes`
    gives back now and then, it is about half, at the same speed.
    """
    _glibc("mallopt", _ARENA_MAX, max(2, min(torch.get_num_threads(), MOST_LANES)))


def _glibc(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator; where there is none, nothing."""
    with suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), function)(*numbers)


def lanes_for(d_model: int) -> int | None:
    """How many lanes for a model of this width: as many as there may be, or one.

    Wide products keep all threads busy by themselves: with Gemma-2-2B's shapes (d 2304) two lanes gave 1,867 tokens/s,
    one with two threads 2,132. Narrow ones wait between operations: a harvest of the miniature (d 128) was 1.2 times as
    fast in two lanes (benchmarks/results/harvest.md).
    """
    return 1 if d_model > WIDE else None


class Lanes:
    """Runs pieces of work, several at once; use it in a `with` block, which ends its threads."""

    def __init__(self, device: torch.device, lanes: int | None = None) -> None:
        """Start the threads, if there are to be any.

        Args:
            device: where the work runs.
            lanes: number of lanes; by default one a thread of torch's on a CPU, at most `MOST_LANES`, and one on a GPU.
        """
        on_gpu, threads = device.type == "cuda", torch.get_num_threads()
        self.n = lanes or (1 if on_gpu else min(threads, MOST_LANES))
        """Lanes that run at once; a single one is the calling thread."""
        self.ahead = AHEAD_ON_GPU if on_gpu else self.n if self.n > 1 else 0
        """Pieces to keep under way: while the caller takes over one result, every lane has work."""
        self._pool = _started(self.n, threads) if self.n > 1 else None
        self._started = 0

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Begin a piece of work; its result, or what it raised, is in the future.

        The first piece runs alone: what a model sets up in its first pass (rotary tables that grow) is set up once.
        """
        if self._pool is None:
            future: Future[Result] = Future()
            future.set_result(work())
            return future
        future = self._pool.submit(work)
        if not self._started:
            future.exception()
        self._started += 1
        if self._started % _TIDY == 0:
            _glibc("malloc_trim", 0)
        return future

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _started(lanes: int, threads: int) -> ThreadPoolExecutor:
    """Threads that share out torch's threads among them; the caller's own count stays."""
    shares = [threads // lanes + (lane < threads % lanes) for lane in range(lanes)]
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane", initializer=_take, initargs=(shares,))
    all_there = threading.Barrier(lanes)  # a thread that waits takes no second task, so all of them start
    for future in [pool.submit(all_there.wait) for _ in range(lanes)]:
        future.result()
    torch.set_num_threads(threads)  # what a lane sets would also hold for threads that start later
    return pool


def _take(shares: list[int]) -> None:
    torch.get_num_threads()  # the first call in a thread takes over the process's count, so it must come first
    torch.set_num_threads(max(1, shares.pop()))
