"""One shard on its way to disk: streamed to temporary files, checked on the way, committed in one step.

Shapes: b sequences of a batch, T positions, D d_model, R row sets.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cache import atomic, bf16, checksum, manifest
from cache.codecs import CODECS
from cache.errors import CacheError
from cache.jobs import Job, Rows
from cache.layout import ArraySpec, layer_arrays, row_arrays
from cache.quantise import Quantiser
from cache.schema import CacheMeta
from cache.shards import index_bytes
from cache.statistics import Moments, ShardStatistics, moments, row_masks


@dataclass
class _Layer:
    """The open file of one layer's shard."""

    spec: ArraySpec
    temporary: Path
    descriptor: int
    statistics: ShardStatistics
    crc32c: list[int] = field(default_factory=list)
    stored_crc32c: list[np.ndarray] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    scales: list[np.ndarray] = field(default_factory=list)

    pending: Future[None] | None = None
    """The inspection of the last batch, which may still run beside the writing."""

    def settle(self) -> None:
        """Wait for it, and raise what it found."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()


class ShardWriter:
    """Writes one job: `add` batches in order until `commit`."""

    def __init__(
        self,
        root: Path,
        meta: CacheMeta,
        job: Job,
        *,
        pool: Executor,
        sync: bool,
        quantisers: Mapping[int, Quantiser],
    ) -> None:
        """Open a temporary file for each missing layer."""
        self.root, self.meta, self.job, self.pool, self.sync = root, meta, job, pool, sync
        self.quantisers = quantisers
        self.codec = CODECS[meta.codec]
        self.done = 0
        self.rows: list[Rows] = []
        self.cursor: Mapping[str, Any] = {}
        self.layers: dict[int, _Layer] = {}
        for layer in job.layers:
            spec = layer_arrays(meta, job.stop, layer)[f"layer_{layer}"]
            path = root / spec.file(job.shard)
            atomic.make_parents(root, path)
            temporary = atomic.partial_path(path)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            statistics = ShardStatistics(meta.context, meta.d_model)
            self.layers[layer] = _Layer(spec, temporary, descriptor, statistics)

    @property
    def full(self) -> bool:
        """Whether every sequence of the job has been added."""
        return self.done == self.job.stop - self.job.start

    def add(self, rows: Rows, residuals: Mapping[int, np.ndarray], given: Mapping[int, Moments], cursor: Any) -> None:
        """Write b sequences of every layer; checks run beside the writing.

        Raises:
            CacheError: a non-finite row; the disk is full.
        """
        first = self.job.start + self.done
        mask = row_masks(rows.tokens, rows.document, rows.split, self.meta.bos_token_id)
        for layer, bits in residuals.items():
            one = self.layers[layer]
            stored = bits
            if layer in self.quantisers:
                stored, scale = self.quantisers[layer].encode(bits)
                bits = self.quantisers[layer].decode(stored, scale)
                one.scales.append(scale)
            one.settle()
            one.pending = self.pool.submit(_inspect, one, bits, stored, rows, mask, given.get(layer), first)
            self._write(one, stored)
        self.rows.append(rows)
        self.done += len(rows.tokens)
        self.cursor = cursor  # only the one that stands at the end of the shard stays

    def commit(self) -> None:
        """Make the shard exist: everything on disk and renamed first, the manifest line last.

        Raises:
            CacheError: the disk is full.
        """
        renames: list[tuple[Path, Path]] = []
        files: dict[str, bytes] = {}
        crc32c: dict[str, str] = {}
        stored: dict[str, manifest.Stored] = {}
        specs = row_arrays(self.meta, self.job.stop)
        if self.job.rows:
            for name in specs:
                files[name] = _padded(specs[name], np.concatenate([getattr(rows, name) for rows in self.rows]))
        for layer, one in self.layers.items():
            one.settle()
            arrays = layer_arrays(self.meta, self.job.stop, layer)
            specs |= arrays
            partial = f"statistics/layer_{layer}/shards"
            files[partial] = one.statistics.packed().astype("<f8").tobytes()
            if one.scales:
                scale = f"quantisation/layer_{layer}/scale"
                files[scale] = _padded(arrays[scale], np.concatenate(one.scales))
            index = index_bytes(np.array(one.lengths, np.uint64), self.meta.shard_sequences)
            atomic.write_all(one.descriptor, index, sum(one.lengths))
            renames.append((one.temporary, self.root / one.spec.file(self.job.shard)))
            crc32c[one.spec.name] = manifest.to_hex(np.array(one.crc32c, np.uint32))
            if one.stored_crc32c:
                digits = manifest.to_hex(np.concatenate(one.stored_crc32c))
                stored[one.spec.name] = manifest.Stored(lengths=tuple(one.lengths), crc32c=digits)
        for name, content in files.items():
            renames.append(self._small_file(specs[name].file(self.job.shard), content))
            crc32c[name] = checksum.hex_digits(content)
        self._publish(renames)
        commit = manifest.Commit(
            shard=self.job.shard, sequences=self.done, crc32c=crc32c, stored=stored, cursor=self.cursor
        )
        manifest.append(self.root, commit, sync=self.sync)

    def abandon(self) -> None:
        """Close and remove what is unfinished."""
        for one in self.layers.values():
            os.close(one.descriptor)
            one.temporary.unlink(missing_ok=True)
        self.layers = {}

    def _write(self, one: _Layer, stored: np.ndarray) -> None:
        offset = sum(one.lengths)
        if self.codec.mapped:
            lengths = [stored[0].nbytes] * len(stored)
            atomic.write_all(one.descriptor, np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data, offset)
        else:
            encoded = list(self.pool.map(self.codec.encode, stored))
            lengths = [len(sequence) for sequence in encoded]
            one.stored_crc32c.append(np.array([checksum.crc32c(e) for e in encoded], np.uint32))
            atomic.write_all(one.descriptor, b"".join(encoded), offset)
        one.lengths += lengths

    def _small_file(self, file: str, content: bytes) -> tuple[Path, Path]:
        path = self.root / file
        atomic.make_parents(self.root, path)
        temporary = atomic.partial_path(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            atomic.write_all(descriptor, content, 0)
            if self.sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return temporary, path

    def _publish(self, renames: list[tuple[Path, Path]]) -> None:
        if self.sync:
            for one in self.layers.values():
                os.fsync(one.descriptor)
        while self.layers:  # one by one, so that `abandon` closes none of them again
            os.close(self.layers.popitem()[1].descriptor)
        for temporary, path in renames:
            os.rename(temporary, path)
        if self.sync:
            atomic.sync_folders(self.root, [path for _, path in renames])


def _inspect(
    one: _Layer,
    bits: np.ndarray,
    stored: np.ndarray,
    rows: Rows,
    mask: np.ndarray,
    given: Moments | None,
    first: int,
) -> None:
    """Checksums and statistics of a batch, in another thread than the one that writes it.

    Raises:
        CacheError: a row that is not finite, with its place: such a cache would poison every run that reads it.
    """
    parts = []
    for b, sequence in enumerate(bits):
        one.crc32c.append(checksum.crc32c(stored[b]))
        if bf16.has_nonfinite(sequence):
            bad = int(np.flatnonzero(~np.isfinite(bf16.to_float32(sequence)).all(-1))[0])
            layer = one.spec.name.replace("_", " ")
            what = f"document {rows.document[b, bad]}, token {rows.tokens[b, bad]}"
            raise CacheError(
                f"{layer} is NaN or infinite at sequence {first + b}, position {bad} ({what}): nothing of this shard is"
                " kept; look at that document, or run the model in a wider dtype"
            )
        if given is None:
            parts.append(
                moments(bf16.to_float32(sequence).astype(np.float64)[None], mask[b : b + 1].astype(np.float64))
            )
    part = given or Moments(*[np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
    one.statistics.add(first, part, mask, rows.tokens)


def _padded(spec: ArraySpec, values: np.ndarray) -> bytes:
    """A whole chunk: Zarr pads the last one with the fill value."""
    chunk = np.full(spec.chunk, np.nan if spec.fill == "NaN" else spec.fill, spec.dtype)
    chunk[: len(values)] = values
    return chunk.tobytes()
