"""What has been committed, held against what the metadata says there must be; small chunks, held against both.

Shapes: P numbers of a shard's packed statistics.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.checksum import hex_digits
from cache.codecs import CODECS
from cache.errors import CacheError
from cache.folder import Folder
from cache.layout import MANIFEST, ArraySpec, all_arrays, layer_arrays
from cache.manifest import Manifest
from cache.schema import CacheMeta, CacheState


def committed_arrays(meta: CacheMeta, state: CacheState, known: Manifest) -> dict[str, ArraySpec]:
    """Every array of the cache, and those of layers that were begun and set aside."""
    arrays = all_arrays(meta, state)
    for layer in known.layers - set(state.layers):
        arrays |= layer_arrays(meta, state.sequences, layer)
    return arrays


def consistent(name: str, meta: CacheMeta, state: CacheState, known: Manifest) -> Manifest:
    """Only commits that fit the metadata: of an unfinished cache a last shard may be about to grow.

    Raises:
        CacheError: a line about a shard or array that the cache does not have.
    """
    arrays, s = committed_arrays(meta, state, known), meta.shard_sequences
    good = {}
    for shard, commit in known.commits.items():
        if commit.sequences != min(s, state.sequences - shard * s):
            continue
        for array, digits in commit.crc32c.items():
            many = commit.sequences if array in arrays and arrays[array].kind == "residuals" else 1
            fits = array in arrays and len(digits) == 8 * many
            if not fits or (array in commit.stored) != (
                CODECS[meta.codec].compressor is not None and many > 0 and array.startswith("layer_")
            ):
                raise CacheError(
                    f"{name}/{MANIFEST}: shard {shard} of {array!r} does not fit zarr.json: damaged; restore it"
                )
        good[shard] = commit
    return Manifest(commits=good, static=known.static)


def check_all_committed(root: Path | str, meta: CacheMeta, state: CacheState, known: Manifest) -> None:
    """Refuse to go on while a shard of any array is missing.

    Raises:
        CacheError: how many, which, and how to resume.
    """
    s, shards = meta.shard_sequences, state.shards(meta.shard_sequences)
    wanted = [name for name, spec in all_arrays(meta, state).items() if spec.kind != "static"]
    missing = [
        shard
        for shard in range(shards)
        if not all(known.has(shard, name) for name in wanted)
        or known.commits[shard].sequences != min(s, state.sequences - shard * s)
    ]
    if missing:
        layers = ",".join(map(str, state.layers))
        raise CacheError(
            f"{root} is incomplete: {shards - len(missing)} of {shards} shards, first missing {missing[0]};"
            f" resume with `make harvest LAYER={layers} CACHE={root}` and the settings it was begun with"
        )


def read_partials(
    folder: Folder, meta: CacheMeta, state: CacheState, known: Manifest, layer: int
) -> Iterator[np.ndarray]:
    """The packed statistics of each committed shard, in shard order, each checked.

    Raises:
        CacheError: a damaged file.
    """
    spec = all_arrays(meta, state)[f"statistics/layer_{layer}/shards"]
    for shard in sorted(known.commits):
        if known.has(shard, spec.name):
            yield np.frombuffer(
                read_chunk(folder, spec.file(shard), spec.chunk_bytes, known.commits[shard].crc32c[spec.name]), "<f8"
            )


def read_chunk(folder: Folder, file: str, size: int, digits: str | None) -> bytes:
    """A small chunk, held against its size and checksum (where the manifest has one already).

    Raises:
        CacheError: missing or damaged.
    """
    try:
        content = folder.read(file, size)
    except FileNotFoundError:
        content = b""
    if len(content) != size or (digits is not None and hex_digits(content) != digits):
        what = "is missing" if not content else "does not match the manifest: damaged"
        raise CacheError(f"{folder.name}/{file} {what}; restore it from a copy, or drop the shard and harvest again")
    return content
