"""The GPU's pool, its arithmetic checked without a GPU: streams and events do nothing, tensors lie in host memory."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.planted_cache import make_cache, rows_of
from train.feed import Feed, FeedConfig
from train.feed import feed as feed_module
from train.feed.chapters import FILL_THREADS, most_sequences
from train.feed.pool import Shape
from train.feed.pool_cuda import CudaMemory


class Nothing:
    """A stream or event of a device that is always done; counts what is asked of it."""

    asked: dict[str, int]

    def __init__(self, *_: Any) -> None:
        self.asked = {}

    def __getattr__(self, name: str) -> Any:
        def ask(*_: Any) -> "Nothing":
            self.asked[name] = self.asked.get(name, 0) + 1
            return self

        return ask


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[CudaMemory]:
    """Every memory that a feed makes, of the kind that CUDA devices have."""
    made: list[CudaMemory] = []
    empty = torch.empty

    def on_the_host(shape: Shape, device: object) -> CudaMemory:
        staged = most_sequences(shape.sequence_bytes)
        made.append(CudaMemory(shape, torch.device("cpu"), staged=staged, buffers=FILL_THREADS + 1))
        return made[-1]

    for name in ("Stream", "Event"):
        monkeypatch.setattr(torch.cuda, name, Nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Nothing)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**34, 2**34))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **options: empty(*a, **options))
    monkeypatch.setattr(feed_module, "_memory", on_the_host)
    return made


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("layers", [[3], [5, 3]])
def test_batches_are_those_of_the_host(
    tmp_path: Path, memories: list[CudaMemory], monkeypatch: pytest.MonkeyPatch, window: int, layers: list[int]
) -> None:
    """Over two epochs of several chapters, two parts, and the short batches at the end."""
    reader = make_cache(tmp_path / "c")
    config = FeedConfig(batch=24, pool_sequences=12, block=2, window=window, parts=2)
    with Feed(reader, layers, config, epochs=2) as there:
        delivered = list(there)
    monkeypatch.undo()
    with Feed(reader, layers, config, epochs=2) as here:
        wanted = list(here)
    assert [rows_of(batch) for batch in delivered] == [rows_of(batch) for batch in wanted]
    assert all(torch.equal(a.x, b.x) for a, b in zip(delivered, wanted, strict=True))
    (memory,) = memories
    assert memory.copying.asked["wait_stream"] >= 12, "every filling of a pool waits for the gathers before it"
    assert memory.gathering.asked["wait_event"] >= len(wanted), "every gather waits for the copies into its pool"
    assert memory.gathering.asked["record_event"] == len(wanted)
    assert memory.staging.qsize() == FILL_THREADS + 1, "every pinned buffer came back"
