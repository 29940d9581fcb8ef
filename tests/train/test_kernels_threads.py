"""What the CPU kernels stand on: chunks shared by threads, and arrays used again."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from train.kernels import buffers
from train.kernels.threads import share


@pytest.fixture(params=[1, 2, 5], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("total", [0, 1, 7, 100])
@pytest.mark.parametrize("chunk", [1, 8, 200])
def test_every_piece_of_work_is_done_once(threads: int, total: int, chunk: int) -> None:
    lock, done = threading.Lock(), []

    def work(start: int, stop: int) -> None:
        with lock:
            done.extend(range(start, stop))

    share(work, total, chunk)
    assert sorted(done) == list(range(total))
    assert torch.get_num_threads() == threads


def test_an_error_in_a_chunk_reaches_the_caller_and_the_next_call_works() -> None:
    def work(start: int, stop: int) -> None:
        if start == 6:
            raise ValueError("chunk 6")

    with pytest.raises(ValueError, match="chunk 6"):
        share(work, 10, 1)
    share(lambda start, stop: None, 10, 1)


def test_a_worker_has_one_thread_for_torch(threads: int) -> None:
    if threads == 1:
        pytest.skip("the caller does the work itself")
    counts = []
    share(lambda start, stop: counts.append(torch.get_num_threads()), 20, 1)
    assert set(counts) == {1}


def test_an_array_comes_back_only_when_nobody_holds_it() -> None:
    shape, single = (3, 41), np.dtype(np.float32)
    first = buffers.take(shape, single)
    place = first.ctypes.data
    assert buffers.take(shape, single).ctypes.data != place
    tensor = torch.from_numpy(first).T
    del first
    others = [buffers.take(shape, single) for _ in range(3)]
    assert place not in [one.ctypes.data for one in others]
    view = tensor[2:].detach()
    del tensor
    others.append(buffers.take(shape, single))
    assert place not in [one.ctypes.data for one in others]
    del view
    assert buffers.take(shape, single).ctypes.data == place


def test_not_more_than_a_few_arrays_are_kept() -> None:
    for size in range(100):
        buffers.take((size + 1,), np.dtype(np.uint8))
    assert len(buffers._arrays) <= 16
