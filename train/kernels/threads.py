"""Worker threads for the CPU kernels: as many as torch has, each doing whole chunks with one thread.

OpenMP's threads keep spinning for milliseconds after each parallel region of torch, and so take cores from these.
torch's products therefore run inside our workers, on one thread each, and `OMP_WAIT_POLICY=passive`, set before torch
is loaded, ends the spinning after what is left outside: a step at d 512, F 4096, k 32, B 1024 then took 19 instead of
25 ms on two cores.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final

import torch

_lock: Final = threading.Lock()


def share(work: Callable[[int, int], None], total: int, chunk: int) -> None:
    """Run `work(start, stop)` over [0, total) in chunks, on as many threads as torch has.

    Which thread takes which chunk varies; results stay the same to the bit as long as no two chunks write to one place
    and no chunk reads what another writes. The first exception of a chunk is raised here. Not to be called inside
    `work`.
    """
    threads = min(torch.get_num_threads(), -(-total // chunk))
    if threads <= 1:
        for start in range(0, total, chunk):
            work(start, min(start + chunk, total))
        return
    starts = itertools.count(0, chunk)  # next() is atomic: it is one call into C

    def worker() -> None:
        for start in starts:
            if start >= total:
                return
            work(start, min(start + chunk, total))

    with _lock:
        pool = _pool(os.getpid(), torch.get_num_threads())
    futures = [pool.submit(worker) for _ in range(threads)]
    for future in futures:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process and thread count: threads do not survive a fork."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="kernels", initializer=_on_one_thread)
    all_there = threading.Barrier(threads)  # a worker that waits takes no second task, so all of them start
    for future in [pool.submit(all_there.wait) for _ in range(threads)]:
        future.result()
    torch.set_num_threads(threads)  # what the workers set would also hold for threads that start later
    return pool


def _on_one_thread() -> None:
    torch.get_num_threads()  # the first call in a thread takes over the process's count, so it must come first
    torch.set_num_threads(1)
