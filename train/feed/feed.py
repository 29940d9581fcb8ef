"""The feed: rows or windows of a cache in random order, for ever or for so many epochs.

    with Feed(cache.open("caches/gemma-2-2b"), [12], FeedConfig(batch=4096)) as feed:
        for batch in feed:
            ...  # batch.x is bfloat16 [4096, D]

Which row comes when is a pure function of the configuration and the cache's contents (see `order`). Reading, mixing and
gathering run in threads ahead of the caller; memory is bounded by the pools whatever the size of the cache.
Shapes: B rows, n windows, W window, L layers, D d_model.
"""

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from cache import CacheReader
from train.errors import TrainError
from train.feed import state as feed_state
from train.feed.batch import Batch, Origin, origin
from train.feed.channel import Channel, Closed
from train.feed.chapters import FILL_THREADS, Chapters, most_sequences
from train.feed.config import FeedConfig
from train.feed.eligible import wanted_sequences
from train.feed.order import Order, Position
from train.feed.pool import Gathered, HostMemory, Memory, Shape
from train.feed.pool_cuda import cuda_memory
from train.feed.report import FeedReport, Meter, PoolReport
from train.feed.stream import Stream

_AHEAD: Final = 2  # batches gathered before they are asked for
_COUNTED: Final = 8  # of so many batches one has its documents counted, which takes a tenth of its gathering


class _Prepared(NamedTuple):
    """A batch on its way to the caller, and where the feed stands once it has been handed out."""

    gathered: Gathered
    origin: Origin
    documents: int | None
    """Distinct ones, counted in some batches."""
    at: dict[int, Position]
    epoch: float
    seen: np.ndarray


class _Works:
    """Everything that runs behind a feed; knows nothing of it, so that a feed that is forgotten is cleaned up."""

    def __init__(self, chapters: Chapters, streams: list[Stream], memory: Memory, config: FeedConfig) -> None:
        self.chapters, self.streams, self.memory, self.config = chapters, streams, memory, config
        self.ready: Channel[_Prepared] = Channel(_AHEAD)
        self._made = 0
        self._thread = threading.Thread(target=self._work, name="feed-gather", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every thread."""
        self.ready.close()
        self.chapters.stop()
        for stream in self.streams:
            stream.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.chapters.close()
        self.memory.close()

    def _work(self) -> None:
        try:
            while (prepared := self._prepare()) is not None:
                self.ready.put(prepared)
            self.ready.end()
        except Closed:  # as in `Stream`
            self.ready.end()
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self.ready.end(error)

    def _prepare(self) -> _Prepared | None:
        window = self.config.window
        room = self.memory.room(self.config.items * window * len(self.streams))
        rows, taken = 0, []
        for stream in self.streams:
            for one in stream.take(self.config.items):
                self.memory.gather(room, rows, one.chapter.contents.pool, one.chapter.uploaded[one.start : one.stop])
                rows += len(one.item_n) * window
                taken.append(one)
        if not taken:
            return None
        whence = origin(taken, window)
        self._made += 1
        return _Prepared(
            self.memory.finish(room, rows),
            whence,
            len(np.unique(whence.document.numpy())) if self._made % _COUNTED == 1 else None,
            {stream.part: stream.at for stream in self.streams},
            float(np.mean([stream.progress for stream in self.streams])),
            np.sum([stream.seen for stream in self.streams], axis=0),
        )


class Feed(Iterator[Batch]):
    """Iterator of batches; a context manager, and closed when it is forgotten.

    A global batch is made of equal shares of `config.parts` parts, each a stream of its own. Process `rank` of
    `world_size` serves the parts p with p % world_size == rank, so a batch has the same rows whether two processes
    serve one part each or one process serves both. Every eligible row (of windows: every row that is in one) is
    delivered exactly once an epoch; batches run on from one epoch into the next.

    A batch is the caller's for as long as anything refers to it; its memory is used again afterwards.
    """

    def __init__(
        self,
        reader: CacheReader,
        layers: Sequence[int],
        config: FeedConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        epochs: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Check everything and begin to read ahead.

        Args:
            reader: the cache, complete.
            layers: whose vectors; one gives batches without the layer axis.
            config: which rows, in which order.
            rank: this process.
            world_size: processes that share the parts.
            device: where the pools and batches lie; `cpu` or a CUDA device.
            epochs: end after so many, with a last batch that may be short; 0 is never.
            state: of a feed with the same settings; the next batch is the one after its last. At most the pool is read
                again.

        Raises:
            TrainError: settings that the cache cannot meet, or a state of other settings.
            CacheError: no such layer, or a damaged cache.
        """
        _check(reader, layers, config, rank, world_size, epochs)
        served = range(rank, config.parts, world_size)
        self.config, self.layers = config, tuple(layers)
        self._identity = feed_state.identity(reader, layers, config)
        if state is not None:
            self._at, self._batches = feed_state.check(state, self._identity, served), state["batches"]
        else:
            self._at, self._batches = dict.fromkeys(served, Position(0, 0, 0)), 0
        meta = reader.meta
        shape = Shape(layers=len(layers), context=meta.context, d_model=meta.d_model, window=config.window)
        memory = _memory(shape, device)
        order = Order(
            sequences=wanted_sequences(reader, config.split),
            seed=config.seed,
            parts=config.parts,
            block=config.block,
            pool_sequences=state["pool"] if state is not None else config.pool_sequences,
        )
        self._budget, self._resumed = _budget(config, memory, served), state is not None
        self.order = order if state is not None else _fitting(order, self._budget, memory, served)
        _check_places(self._at, self.order)
        chapters = Chapters(reader, layers, config, self.order, memory)
        streams = [Stream(chapters, part, at, epochs) for part, at in self._at.items()]
        self._works = _Works(chapters, streams, memory, config)
        self._meter, self._epoch, self._seen = Meter(), 0.0, np.zeros(3, np.int64)
        self._close = weakref.finalize(self, self._works.close)

    def __iter__(self) -> "Feed":
        return self

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            CacheError: a sequence of it is missing or damaged; the batches before it have been delivered.
            TrainError: no row is eligible.
        """
        asked = self._meter.waiting()
        try:
            prepared = self._works.ready.get()
        except Closed:
            self.close()
            raise StopIteration from None
        except Exception:
            self.close()
            raise
        finally:
            self._meter.arrived(asked)
        batch = Batch(self._works.memory.deliver(prepared.gathered), *prepared.origin)
        self._at, self._epoch, self._seen = prepared.at, prepared.epoch, prepared.seen
        self._batches += 1
        self._meter.count(batch.tokens.numel(), batch.x.nbytes, prepared.documents)
        return batch

    def close(self) -> None:
        """End all threads and let the memory go; done by leaving a `with` block, the last batch, and an error."""
        self._close()

    def state(self) -> dict[str, Any]:
        """Where the feed stands after the last batch it handed out: a small JSON object.

        It speaks of the parts served here; `feed_state.merge_states` joins those of several processes.
        """
        return feed_state.make(self._identity, self.order.pool_sequences, self._batches, self._at)

    def pool(self) -> PoolReport:
        """What is mixed at a time."""
        chapters, split, parts = self._works.chapters, len(self.order.sequences), range(self.config.parts)
        return PoolReport(
            sequences=min(sum(self.order.chapter_sequences(part) for part in parts), split),
            asked=self.config.pool_sequences,
            split=split,
            bytes=0 if chapters.mapped else _pool_bytes(self.order, self._works.memory, self._at),
            budget=self._budget,
            limited=self.order.pool_sequences < min(self.config.pool_sequences, split),
            resumed=self._resumed,
        )

    def report(self) -> FeedReport:
        """What has been delivered, how fast, and how long the caller waited for it."""
        return self._meter.report(self._epoch, self._seen)


def _check(
    reader: CacheReader, layers: Sequence[int], config: FeedConfig, rank: int, world_size: int, epochs: int
) -> None:
    if not layers or len(set(layers)) != len(layers):
        raise TrainError(f"layers must be one or more, each once, got {list(layers)}: name some of {reader.layers}")
    if not 0 <= rank < world_size:
        raise TrainError(f"rank must be from 0 to below world_size={world_size}, got {rank}")
    if config.parts % world_size:
        raise TrainError(
            f"parts must be a multiple of the number of processes, {world_size}, got {config.parts}: take"
            f" {max(1, round(config.parts / world_size)) * world_size}"
        )
    if config.window > reader.meta.context:
        raise TrainError(
            f"window must be at most the cache's context of {reader.meta.context} positions, got {config.window}"
        )
    if epochs < 0:
        raise TrainError(f"epochs must be a number of epochs, or 0 for no end, got {epochs}")


def _check_places(at: Mapping[int, Position], order: Order) -> None:
    for part, place in at.items():
        if place.chapter >= order.chapters(part):
            raise TrainError(
                f"the state stands in chapter {place.chapter} of an epoch of {order.chapters(part)}: it is damaged;"
                " start anew"
            )


def _memory(shape: Shape, device: str | torch.device) -> Memory:
    kind = torch.device(device).type
    if kind == "cpu":
        return HostMemory(shape)
    if kind != "cuda" or not torch.cuda.is_available():
        raise TrainError(f"device must be 'cpu' or a CUDA device that torch can use, got {str(device)!r}")
    return cuda_memory(shape, device, staged=most_sequences(shape.sequence_bytes), buffers=FILL_THREADS + 1)


def _budget(config: FeedConfig, memory: Memory, served: range) -> int:
    share = len(served) / config.parts if isinstance(memory, HostMemory) else 1.0  # processes share their host's memory
    return config.pool_bytes or int(memory.total_bytes() / 4 * share)


def _pool_bytes(order: Order, memory: Memory, served: Iterable[int]) -> int:
    """Two pools a part; where one chapter is the whole epoch, one."""
    pools = {part: 1 if order.chapters(part) == 1 else 2 for part in served}
    return sum(order.chapter_sequences(part) * count for part, count in pools.items()) * memory.shape.sequence_bytes


def _fitting(order: Order, budget: int, memory: Memory, served: range) -> Order:
    """The order with the largest pools, halved as often as it takes, that fit into their memory.

    Going by the memory's size (not by what is free of it), in halves, makes equal settings give equal orders on one
    machine, always, and on machines of somewhat different memory.
    """
    while (needed := _pool_bytes(order, memory, served)) > budget:
        half = order.pool_sequences // 2
        if half < order.block * order.parts:
            raise TrainError(
                f"the smallest pools need {needed:,} bytes, pool_bytes (or a quarter of the memory) is {budget:,}: set"
                " a larger pool_bytes, or smaller block or parts"
            )
        order = replace(order, pool_sequences=half)
    return order
