"""What a process runs the model on: the batches of its jobs, in order, wherever their tokens come from."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import cache
from cache.checksum import canonical
from cache.manifest import MAX_CURSOR_BYTES
from harvest.streams import CachedSequences, Sequences
from harvest.tokens import TokenBlock


class Batch(NamedTuple):
    """Sequences for one forward pass; a batch never reaches over a shard's end."""

    start: int
    """Number of its first sequence."""
    block: TokenBlock
    layers: tuple[int, ...]
    cursor: dict[str, Any]
    """Where the text stands after this batch; empty but where a shard ends."""


class Batches:
    """Reads them; use it in a `with` block, which ends the tokeniser's thread."""

    def __init__(
        self,
        writer: cache.CacheWriter,
        jobs: Sequence[cache.Job],
        size: int,
        open_at: Callable[[cache.Job], Sequences],
    ) -> None:
        """Read nothing yet.

        Args:
            writer: knows where earlier shards left the text.
            jobs: shards, in ascending order.
            size: sequences of a batch, B.
            open_at: gives a stream that stands at the first sequence of a job.
        """
        self._writer, self._jobs, self._size, self._open_at = writer, jobs, size, open_at
        self._stream: Sequences | None = None
        self._unkept = 0
        self.end: int | None = None
        """The sequence at which the source ended, if it did before the jobs were done."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches, until the jobs are done or the source ends."""
        for job in self._jobs:
            stream = self._stream_at(job)
            while stream.at < job.stop:
                at = stream.at
                block = stream.take(min(self._size, job.stop - at)) if at >= job.start else None
                if block is None or not len(block.tokens):
                    self.end = at
                    return
                yield Batch(at, block, job.layers, self._cursor(stream) if stream.at == job.stop else {})

    def notes(self) -> list[str]:
        """What a person should know of the source, a line each."""
        found = self._stream.notes() if self._stream is not None else []
        if self._unkept:
            what = f"the place in the text was too long to keep after {self._unkept:,} shards"
            found.append(f"{what}: going on from there tokenises from further back")
        return found

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def _stream_at(self, job: cache.Job) -> Sequences:
        """The stream at hand where it can go on to the job, a new one where that begins nearer to it."""
        stream = self._stream
        nearest = self._writer.cursor_before(job.shard)[0] if job.rows else job.start
        if stream is not None and isinstance(stream, CachedSequences) != job.rows and nearest <= stream.at:
            stream.move(job.start)
            return stream
        if stream is not None:
            stream.close()
        self._stream = self._open_at(job)
        return self._stream

    def _cursor(self, stream: Sequences) -> dict[str, Any]:
        """Where the stream stands, or nothing where that takes more than a cache keeps: rows of very long contexts."""
        cursor = stream.cursor()
        if len(canonical(cursor)) <= MAX_CURSOR_BYTES:
            return cursor
        self._unkept += 1
        return {}
