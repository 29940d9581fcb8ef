"""The last step of a harvest: shapes, merged statistics, canonical manifest, and `complete` at the very end.

Each step can be repeated: a kill between any two leaves an incomplete cache whose next writer does them again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache import atomic, manifest
from cache.checksum import hex_digits
from cache.errors import CacheError
from cache.folder import Folder
from cache.layout import MANIFEST, all_arrays, merged_arrays
from cache.manifest import Manifest
from cache.prepare import manifest_limit, write_documents
from cache.schema import CacheMeta, CacheState
from cache.statistics import LayerStatistics, merge


def complete(
    root: Path,
    meta: CacheMeta,
    state: CacheState,
    *,
    exhausted_at: int | None,
    audit: Mapping[str, float],
    sync: bool,
) -> CacheState:
    """Turn a cache whose shards are all committed into a complete one; returns its final state.

    Raises:
        CacheError: shards are missing, with their numbers.
    """
    if exhausted_at is not None:
        state = replace(state, sequences=exhausted_at, exhausted=True)
    if state.sequences == 0:
        raise CacheError(f"{root}: the source held not even one sequence of {meta.context} tokens: nothing to complete")
    folder = Folder(root)
    known = manifest.load(folder, manifest_limit(meta, state))[0]
    check_all_committed(root, meta, state, known)
    state = replace(state, complete=True, audit={**state.audit, **audit}, manifest_crc32c="0" * 8)
    static = dict(_quantisation(folder, meta, state))
    for layer in state.layers:
        merged = merge(read_partials(folder, meta, state, known, layer), meta.context, meta.d_model)
        for name, content in merged_files(meta, layer, merged):
            atomic.write_file(root, merged_arrays(meta, layer)[name].file(), content, sync=sync)
            static[name] = hex_digits(content)
    known = Manifest(commits=known.commits, static=static)
    atomic.write_file(root, MANIFEST, known.content(), sync=sync)
    state = replace(state, manifest_crc32c=hex_digits(known.content()))
    write_documents(root, meta, replace(state, complete=True), root_first=False, sync=sync)
    return state


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


def merged_files(meta: CacheMeta, layer: int, merged: LayerStatistics) -> Iterator[tuple[str, bytes]]:
    """Bytes of each merged array of a layer."""
    for name in merged_arrays(meta, layer):
        yield name, getattr(merged, name.rsplit("/", 1)[1]).astype("<f8").tobytes()


def _quantisation(folder: Folder, meta: CacheMeta, state: CacheState) -> Iterator[tuple[str, str]]:
    for name, spec in all_arrays(meta, replace(state, complete=False)).items():
        if spec.kind == "static":
            yield name, hex_digits(folder.read(spec.file(), spec.chunk_bytes))
