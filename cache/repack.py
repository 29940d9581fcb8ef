"""The same sequences laid out differently: another shard size, compressed for cold storage, 8-bit rows, or raw again.

Lossless codecs give back identical bits; repacked to its first layout, a cache is byte-identical to what it was.
`int8` is lossy: the fraction of variance that it loses is measured on every row and kept in the cache's attributes.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from cache import bf16
from cache.codecs import CODECS
from cache.errors import CacheError
from cache.jobs import Job, Rows
from cache.quantise import Quantiser
from cache.reader import CacheReader
from cache.schema import with_layout
from cache.writer import CacheWriter

_BATCH_BYTES: Final = 32 << 20


def repack(
    reader: CacheReader,
    target: str | os.PathLike[str],
    *,
    codec: str,
    shard_sequences: int,
    progress: Callable[[int], object] = lambda nbytes: None,
) -> dict[str, float]:
    """Write a complete cache anew; a killed repack goes on where it stopped.

    Args:
        reader: the source, complete.
        target: another folder.
        codec: a name in `codecs.CODECS`.
        shard_sequences: S of the target.
        progress: told the number of bfloat16 bytes after each batch.

    Returns:
        `layer_12/int8_fvu` and the like: fraction of variance unexplained by the 8-bit rows, 0 is lossless.

    Raises:
        CacheError: source and target are one; the source is int8 and the target too; the source is damaged.
    """
    if codec not in CODECS:
        raise CacheError(f"CODEC must be one of {', '.join(CODECS)}, got {codec!r}")
    if Path(target).resolve() == Path(reader.folder.name).resolve():
        raise CacheError(f"{target} is the cache itself: repack to another folder, verify it, then remove the first")
    if CODECS[codec].quantised and CODECS[reader.meta.codec].quantised:
        raise CacheError(f"{reader.folder.name} has 8-bit rows already: rounding them again would lose more")
    meta = with_layout(reader.meta, shard_sequences=shard_sequences, codec=codec)
    quantisers = {}
    if CODECS[codec].quantised:
        quantisers = {layer: Quantiser.of(reader.statistics(layer)) for layer in reader.layers}
    losses = {layer: _Loss(quantiser) for layer, quantiser in quantisers.items()}
    with CacheWriter(target, meta, layers=reader.layers, sequences=reader.n_sequences, quantisers=quantisers) as writer:
        for job in writer.jobs():
            _copy(reader, writer, job, losses, progress)
        audit = {f"layer_{layer}/int8_fvu": loss.fvu for layer, loss in losses.items() if loss.total}
        exhausted_at = reader.n_sequences if reader.state.exhausted else None
        writer.finish(exhausted_at=exhausted_at, audit={**reader.state.audit, **audit})
        return {name: value for name, value in writer.state.audit.items() if name.endswith("int8_fvu")}


class _Loss:
    """Accumulates what 8 bits lose, over rows without BOS."""

    def __init__(self, quantiser: Quantiser) -> None:
        self.quantiser, self.lost, self.total = quantiser, 0.0, 0.0

    @property
    def fvu(self) -> float:
        """Σ|x − x̂|² / Σ|x − mean|²."""
        return self.lost / self.total

    def add(self, bits: np.ndarray, member_BT: np.ndarray) -> None:
        """Add a batch."""
        x = bf16.to_float32(bits)[member_BT]
        restored = bf16.to_float32(self.quantiser.decode(*self.quantiser.encode(bits)))[member_BT]
        self.lost += float(np.square(x - restored, dtype=np.float64).sum())
        self.total += float(np.square(x - self.quantiser.mean, dtype=np.float64).sum())


def _copy(
    reader: CacheReader,
    writer: CacheWriter,
    job: Job,
    losses: dict[int, _Loss],
    progress: Callable[[int], object],
) -> None:
    step = max(1, _BATCH_BYTES // reader.meta.sequence_bytes)
    for start in range(job.start, job.stop, step):
        stop = min(start + step, job.stop)
        rows = Rows(
            reader.tokens(start, stop),
            reader.document(start, stop),
            reader.split(start, stop),
            reader.domain(start, stop) if reader.meta.domains else None,
        )
        bits = {layer: reader.layer(layer).bits(start, stop) for layer in job.layers}
        for layer, loss in losses.items():
            if layer in bits:
                loss.add(bits[layer], (rows.document >= 0) & (rows.tokens != reader.meta.bos_token_id))
        writer.append(start, rows, bits, cursor=_cursor(reader, stop))
        progress(sum(one.nbytes for one in bits.values()))


def _cursor(reader: CacheReader, stop: int) -> Mapping[str, Any]:
    """Where the text stream stood after sequence `stop`, known where a source shard ends: keeps a cache extensible."""
    shard, beyond = divmod(stop, reader.meta.shard_sequences)
    ends_shard = not beyond or stop == reader.n_sequences
    return reader.manifest.commits[shard - (not beyond)].cursor if ends_shard else {}
