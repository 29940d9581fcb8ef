"""Append whole sequences of every layer to a cache, in the background, so that a kill at any instant loses one shard.

    with CacheWriter(path, meta, layers=(12,), sequences=100_000) as writer:
        for job in writer.jobs():
            for start in range(job.start, job.stop, batch):
                writer.append(start, rows, {12: residuals})     # torch.bfloat16 [b, T, D], or their uint16 bits
        writer.finish()

Shapes: b sequences of a batch, T positions, D d_model.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from cache import atomic, bf16, finish, prepare
from cache.errors import CacheError
from cache.jobs import Job, Rows
from cache.layout import all_arrays
from cache.lock import WriterLock
from cache.quantise import Quantiser
from cache.root import refuse_foreign
from cache.schema import CacheMeta
from cache.shard_writer import ShardWriter
from cache.statistics import Moments


class _Batch(NamedTuple):
    rows: Rows
    residuals: dict[int, np.ndarray]
    moments: Mapping[int, Moments]
    cursor: Mapping[str, Any]
    nbytes: int


class CacheWriter:
    """Writes the shards of one process; several processes (ranks) write disjoint shards of one cache."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: CacheMeta,
        *,
        layers: tuple[int, ...],
        sequences: int,
        rank: int = 0,
        world_size: int = 1,
        session: str = "",
        sync: bool = True,
        queue_bytes: int | None = None,
        quantisers: Mapping[int, Quantiser] | None = None,
    ) -> None:
        """Create, resume or extend a cache; a request that is already met leaves nothing to do.

        Args:
            path: the cache's folder; created when missing.
            meta: what the cache is to hold. A cache that is there already keeps its own `created` and provenance.
            layers: layers wanted; layers that the cache has beside them are continued too, so that all stay aligned.
            sequences: wanted length N; more extends, less than is there is met by what is there.
            rank: this process, of `world_size` that write together. Rank 0 must have been constructed first.
            world_size: number of processes that write together.
            session: a name shared by these processes and by no others; needed when there are several.
            sync: fsync before a shard is committed. False only for measurements: a power loss may then corrupt.
            queue_bytes: most memory of batches that wait for the disk; `append` blocks beyond it. When not given: two
                shards, or 256 MiB if that is less.
            quantisers: one a layer, for codec `int8` alone.

        Raises:
            CacheError: the folder holds another cache or something else, or another harvest is writing it.
        """
        if world_size > 1 and not session:
            raise ValueError("several writers need a session name that they share")
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{path} cannot be made ({error.strerror}): choose another CACHE") from error
        with atomic.explaining(self.path):
            refuse_foreign(self.path, meta, tuple(layers))
            self._lock = WriterLock(self.path, session=session, rank=rank)
            try:
                self._open(meta, tuple(layers), sequences, rank, world_size, sync, dict(quantisers or {}))
            except BaseException:
                self._lock.close()
                raise
        self._queue: deque[_Batch] = deque()
        two_shards = 2 * self.meta.shard_sequences * self.meta.sequence_bytes * len(self.state.layers)
        self._queued_bytes, self._queue_bytes = 0, queue_bytes or min(256 << 20, two_shards)
        self._changed = threading.Condition()
        self._busy, self._closing = False, False
        self._error: BaseException | None = None
        self.waited_seconds = 0.0
        """Time that `append` and `flush` stood still because the disk was slower than the caller."""
        self._pool = ThreadPoolExecutor(
            max_workers=max(1, min(4, (os.cpu_count() or 1) - 1)), thread_name_prefix="cache"
        )
        self._thread = threading.Thread(target=self._work, name="cache-writer", daemon=True)
        self._thread.start()

    def _open(
        self,
        meta: CacheMeta,
        layers: tuple[int, ...],
        sequences: int,
        rank: int,
        world_size: int,
        sync: bool,
        quantisers: dict[int, Quantiser],
    ) -> None:
        if rank == 0:
            request = prepare.prepare(self.path, meta, layers, sequences, sync=sync)
        else:
            request = prepare.join(self.path, meta, layers, sequences)
        self.meta, self.state = request.meta, request.state
        self.rank, self._sync, self._quantisers = rank, sync, quantisers
        self.owed = request.owed
        """Every job that was owed when the cache was opened, of all processes."""
        self._planned = [job for job in self.owed if job.shard % world_size == rank]
        self._jobs = deque(self._planned)
        self._commits = request.known.commits
        self._expected = self._jobs[0].start if self._jobs else None
        self._current: ShardWriter | None = None
        if rank == 0:
            for layer, quantiser in quantisers.items():
                for name in ("mean", "std"):
                    spec = all_arrays(self.meta, self.state)[f"quantisation/layer_{layer}/{name}"]
                    atomic.write_file(
                        self.path, spec.file(), getattr(quantiser, name).astype("<f4").tobytes(), sync=sync
                    )

    def jobs(self) -> Iterator[Job]:
        """The shards that this process still owes, in order; `append` must follow them sequence by sequence."""
        yield from self._planned

    def cursor_before(self, shard: int) -> tuple[int, Mapping[str, Any]]:
        """Where to take up the text again: (sequence, cursor) of the nearest shard before this one that left a cursor.

        (0, {}) where none did: the text starts from the beginning.
        """
        for earlier in sorted((k for k in self._commits if k < shard), reverse=True):
            commit = self._commits[earlier]
            if commit.cursor:
                return earlier * self.meta.shard_sequences + commit.sequences, commit.cursor
        return 0, {}

    def append(
        self,
        start: int,
        rows: Rows,
        residuals: Mapping[int, Any],
        *,
        moments: Mapping[int, Moments] | None = None,
        cursor: Mapping[str, Any] | None = None,
    ) -> None:
        """Hand over b whole sequences; returns at once unless `queue_bytes` are already waiting.

        The arrays belong to the writer from here on: do not change them.

        Args:
            start: number of the first of these sequences in the cache. It must be the next one that the jobs want;
                saying it is what keeps a layer from being written one sequence off.
            rows: tokens, documents and splits; where the cache has them already they must be the same.
            residuals: layer → bfloat16 [b, T, D] (torch, or numpy uint16 bits), exactly the layers of the job.
            moments: per layer, where they were computed beside the forward pass; else they are computed here.
            cursor: where the text stream stands after these sequences (a small JSON object), kept with a shard that
                ends here.

        Raises:
            CacheError: a non-finite row, a full disk, or an earlier failure of the background thread.
            ValueError: wrong start, layers or shapes.
        """
        bits = {layer: bf16.bits_of(values) for layer, values in residuals.items()}
        self._check_batch(start, rows, bits)
        done, total = 0, len(rows.tokens)
        while done < total:
            job = self._jobs[0]
            take = min(total - done, job.stop - (start + done))
            part = slice(done, done + take)
            pieces = {layer: values[part] for layer, values in bits.items()}
            given = {layer: Moments(*(array[part] for array in one)) for layer, one in (moments or {}).items()}
            last = cursor if done + take == total else None
            self._put(_Batch(rows.part(part), pieces, given, last or {}, sum(x.nbytes for x in pieces.values())))
            done += take
            self._expected = start + done
            if self._expected == job.stop:
                self._jobs.popleft()
                self._expected = self._jobs[0].start if self._jobs else None

    def flush(self, *, end: int | None = None) -> None:
        """Wait until everything appended is on disk; whole shards are committed.

        Args:
            end: the source ended after this many sequences: commit a partial last shard too. Every rank says so.

        Raises:
            CacheError: what went wrong in the background; an `end` that is not where this writer stands.
        """
        begin = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._error or (not self._queue and not self._busy))
        self.waited_seconds += time.perf_counter() - begin
        self._raise()
        if end is not None and self._current is not None:
            at = self._current.job.start + self._current.done
            if at != end:
                raise CacheError(f"the source ended at sequence {end}, but {at} came before: not completed")
            with atomic.explaining(self.path):
                self._current.commit()
            self._current = None

    def finish(self, *, exhausted_at: int | None = None, audit: Mapping[str, float] | None = None) -> None:
        """Complete the cache: shapes, merged statistics, canonical manifest, and `complete` last. Rank 0 alone.

        Args:
            exhausted_at: the source ended after this many sequences; the last shard may be partial and what was
                planned beyond is given up. None: everything planned is there.
            audit: what storing cost, by name; kept in the attributes.

        Raises:
            CacheError: shards are missing (of other ranks, perhaps); the disk is full.
        """
        self.flush(end=exhausted_at)
        if self.state.complete:
            return
        with atomic.explaining(self.path):
            self.state = finish.complete(
                self.path, self.meta, self.state, exhausted_at=exhausted_at, audit=audit or {}, sync=self._sync
            )

    def close(self) -> None:
        """Stop the background thread and release the cache; what is not a whole shard is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.shutdown()
        if self._current is not None:
            self._current.abandon()
            self._current = None
        self._lock.close()

    def __enter__(self) -> "CacheWriter":
        """Nothing more to do: the constructor opened everything."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what was appended, unless an error is under way; then close."""
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def _check_batch(self, start: int, rows: Rows, bits: dict[int, np.ndarray]) -> None:
        self._raise()
        if self._expected is None or start != self._expected:
            wanted = (
                "nothing more: all its shards are there" if self._expected is None else f"sequence {self._expected}"
            )
            raise ValueError(f"the cache wants {wanted}, got a batch that starts at {start}")
        job, t, d = self._jobs[0], self.meta.context, self.meta.d_model
        if sorted(bits) != sorted(job.layers):
            raise ValueError(f"shard {job.shard} wants layers {list(job.layers)}, got {sorted(bits)}")
        self._check_span(start, start + len(rows.tokens))
        rows.check(self.meta)
        for layer, values in bits.items():
            if values.shape != (len(rows.tokens), t, d):
                raise ValueError(f"layer {layer} must be [{len(rows.tokens)}, {t}, {d}], got {list(values.shape)}")

    def _check_span(self, start: int, stop: int) -> None:
        """A batch may reach over several jobs where nothing lies between them and they want the same layers."""
        at, layers = start, self._jobs[0].layers
        for job in self._jobs:
            if at >= stop or max(job.start, start) != at or job.layers != layers:
                break
            at = job.stop
        if at < stop:
            raise ValueError(
                f"a batch that starts at {start} must end at {at}, where other shards or layers follow; got {stop}"
            )

    def _put(self, batch: _Batch) -> None:
        begin = time.perf_counter()
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._queue or self._queued_bytes + batch.nbytes <= self._queue_bytes
            )
            if not self._error:
                self._queue.append(batch)
                self._queued_bytes += batch.nbytes
                self._changed.notify_all()
        self.waited_seconds += time.perf_counter() - begin
        self._raise()

    def _work(self) -> None:
        pending = deque(self._planned)
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue or self._error:
                    return
                batch = self._queue.popleft()
                self._busy = True
            try:
                with atomic.explaining(self.path):
                    self._write(batch, pending)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, where it is raised
                with self._changed:
                    self._error = error
            with self._changed:
                self._queued_bytes -= batch.nbytes
                self._changed.notify_all()

    def _write(self, batch: _Batch, pending: deque[Job]) -> None:
        if self._current is None:
            self._current = self._shard(pending[0])
        job = self._current.job
        if not job.rows:
            prepare.check_rows(self.path, self.meta, job, self._current.done, batch.rows)
        self._current.add(batch.rows, batch.residuals, batch.moments, batch.cursor)
        if self._current.full:
            self._current.commit()
            self._current = None
            pending.popleft()

    def _shard(self, job: Job) -> ShardWriter:
        return ShardWriter(self.path, self.meta, job, pool=self._pool, sync=self._sync, quantisers=self._quantisers)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
