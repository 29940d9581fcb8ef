"""What a request for a cache means for the folder that is there: create, resume, extend, add a layer, or nothing.

Every step leaves a folder that the next writer understands: metadata is replaced atomically, `complete` goes first
when a cache is opened again and comes last when it is closed, and the manifest never claims what is not there.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache import atomic, manifest
from cache.errors import CacheError
from cache.folder import Folder
from cache.jobs import Job, Rows
from cache.layout import (
    DOCUMENT,
    LOCK,
    MANIFEST,
    PARTIAL,
    ArraySpec,
    all_arrays,
    documents,
    layer_arrays,
    merged_arrays,
    row_arrays,
)
from cache.manifest import Manifest
from cache.schema import CacheMeta, CacheState, check_shards, from_attributes
from cache.shards import check_shard


def read_root(folder: Folder) -> tuple[CacheMeta, CacheState]:
    """Metadata of an existing cache.

    Raises:
        FileNotFoundError: there is no Zarr group.
        CacheError: it is no cache, or a damaged one.
    """
    document = folder.read_json(DOCUMENT)
    if not isinstance(document, dict) or document.get("zarr_format") != 3 or document.get("node_type") != "group":
        raise CacheError(f"{folder.name}/{DOCUMENT} describes no Zarr v3 group: this is no Silo cache")
    try:
        return from_attributes(document.get("attributes"))
    except CacheError as error:
        raise CacheError(f"{folder.name}: {error}") from error


def refuse_foreign(root: Path, meta: CacheMeta, layers: tuple[int, ...]) -> None:
    """Look, before anything is touched, whether a folder is a cache, the beginning of one, or empty.

    Raises:
        CacheError: it holds something else; or its metadata is damaged.
    """
    try:
        read_root(Folder(root))
    except FileNotFoundError:
        own = {*row_arrays(meta, 1), *(f"layer_{layer}" for layer in layers), "statistics", "quantisation"}
        own |= {LOCK, MANIFEST, DOCUMENT}
        found = sorted(os.listdir(root))
        foreign = [name for name in found if (name.rsplit(".", 2)[0] if name.endswith(PARTIAL) else name) not in own]
        if foreign:
            why = f"it holds {foreign[0]!r}"
            raise CacheError(f"{root} is no cache and not empty ({why}): use a new folder for CACHE") from None


def prepare(
    root: Path, meta: CacheMeta, layers: tuple[int, ...], sequences: int, *, sync: bool
) -> tuple[CacheMeta, CacheState, Manifest]:
    """Bring the folder to the state in which the missing shards can be written; the caller holds the lock.

    Returns:
        The metadata that now holds (`created` and provenance are those of the first harvest), the state, and what has
        been committed so far.

    Raises:
        CacheError: a folder that holds something else; a cache that contradicts the request, with the fields named.
    """
    if sequences < 1:
        raise CacheError(f"wanted a cache of at least 1 sequence of {meta.context} tokens, got {sequences}")
    check_shards(meta, sequences)
    folder = Folder(root)
    try:
        old_meta, old = read_root(folder)
    except FileNotFoundError:
        return _create(root, meta, CacheState(layers=tuple(sorted(set(layers))), sequences=sequences), sync=sync)
    if found := old_meta.differences(meta):
        what = "; ".join(found)
        raise CacheError(f"{root} holds another cache than asked for ({what}): use another CACHE, or the same settings")
    manifest.drop_partials(root)
    known = manifest.load(folder, manifest_limit(old_meta, old))[0]
    all_layers = tuple(sorted({*old.layers, *layers}))
    state = replace(old, layers=all_layers, sequences=_length(old_meta, old, known, sequences))
    if old.complete and state == old:
        return old_meta, old, known
    state = replace(state, complete=False, manifest_crc32c="")
    kept = manifest.without(known, whole_units(known, set(_stale(folder, old_meta, state, known))))
    reopen(root, old_meta, state, kept, sync=sync)
    return old_meta, state, kept


def reopen(root: Path, meta: CacheMeta, state: CacheState, kept: Manifest, *, sync: bool = True) -> None:
    """Make a cache incomplete with these shards committed; the caller holds the lock.

    The root goes first: from then on no reader takes the cache for complete, whatever happens next.
    """
    write_documents(root, meta, state, root_first=True, sync=sync)
    path = root / MANIFEST
    if not path.exists() or path.read_bytes() != kept.content():
        atomic.write_file(root, MANIFEST, kept.content(), sync=sync)
    for layer in state.layers:
        for name in merged_arrays(meta, layer):
            shutil.rmtree(root / name, ignore_errors=True)


def whole_units(known: Manifest, lost: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Everything that must be written again with these: a layer with its statistics; rows with all layers."""
    units = {(shard, _unit(array)) for shard, array in lost}
    return {
        (shard, array)
        for shard, commit in known.commits.items()
        for array in commit.crc32c
        if (shard, "rows") in units or (shard, _unit(array)) in units
    }


def jobs(meta: CacheMeta, state: CacheState, known: Manifest) -> Iterator[Job]:
    """Shards that are still owed, in order."""
    s, arrays = meta.shard_sequences, {layer: _shard_arrays(meta, layer) for layer in state.layers}
    for shard in range(state.shards(s)):
        missing = tuple(x for x in state.layers if not all(known.has(shard, a) for a in arrays[x]))
        rows = not known.has(shard, "tokens")
        if missing or rows:
            layers = state.layers if rows else missing
            yield Job(
                shard=shard, start=shard * s, stop=min((shard + 1) * s, state.sequences), layers=layers, rows=rows
            )


def write_documents(root: Path, meta: CacheMeta, state: CacheState, *, root_first: bool, sync: bool) -> None:
    """Write every zarr.json that differs from what it must be."""
    pending = list(documents(meta, state))
    for file, content in [pending[-1], *pending[:-1]] if root_first else pending:
        try:
            same = (root / file).read_bytes() == content
        except FileNotFoundError:
            same = False
        if not same:
            atomic.write_file(root, file, content, sync=sync)


def manifest_limit(meta: CacheMeta, state: CacheState) -> int:
    """Bytes that the manifest of such a cache can have at most: digits and lengths of each sequence, and the names."""
    per_shard = len(state.layers) * (meta.shard_sequences * 40 + 1024) + manifest.MAX_CURSOR_BYTES + 4096
    return (state.shards(meta.shard_sequences) + 64) * per_shard * 2


def _create(root: Path, meta: CacheMeta, state: CacheState, *, sync: bool) -> tuple[CacheMeta, CacheState, Manifest]:
    refuse_foreign(root, meta, state.layers)
    manifest.drop_partials(root)
    if Folder(root).size(MANIFEST):
        raise CacheError(f"{root} has a manifest and no {DOCUMENT}: restore {DOCUMENT}, or remove the folder")
    if sync:
        atomic.sync_folders(root.parent, [root])  # the new folder's own name
    empty = Manifest(commits={}, static={})
    atomic.write_file(root, MANIFEST, empty.content(), sync=sync)
    write_documents(root, meta, state, root_first=False, sync=sync)
    return meta, state, empty


def _length(meta: CacheMeta, old: CacheState, known: Manifest, asked: int) -> int:
    """Planned sequences: a complete cache only grows; an unfinished plan may shrink down to what is committed."""
    if old.exhausted:
        return old.sequences
    if old.complete:
        return max(old.sequences, asked)
    ends = [commit.shard * meta.shard_sequences + commit.sequences for commit in known.commits.values()]
    return max(
        [asked, *(end for end in ends if end <= old.sequences)]
    )  # what lies beyond the plan is no commit of ours


def _stale(folder: Folder, meta: CacheMeta, state: CacheState, known: Manifest) -> Iterator[tuple[int, str]]:
    """Committed pairs that must be written again: last shards that are to grow, and files that are gone or torn."""
    s, shards = meta.shard_sequences, state.shards(meta.shard_sequences)
    specs = all_arrays(meta, replace(state, complete=False))
    for shard, commit in known.commits.items():
        grows = shard >= shards or commit.sequences != min(s, state.sequences - shard * s)
        for name in commit.crc32c:
            if grows or name not in specs or not _intact(folder, meta, commit, specs[name]):
                yield shard, name


def _unit(array: str) -> str:
    """The layer that an array belongs to, or `rows`."""
    layers = [part for part in array.split("/") if part.startswith("layer_")]
    return layers[0] if layers else "rows"


def _intact(folder: Folder, meta: CacheMeta, commit: manifest.Commit, spec: ArraySpec) -> bool:
    file = spec.file(commit.shard)
    if spec.kind != "residuals":
        return folder.size(file) == spec.chunk_bytes
    try:
        descriptor = folder.open(file)
    except FileNotFoundError:
        return False
    try:
        check_shard(descriptor, commit.lengths(spec.name, spec.item_bytes), meta.shard_sequences, file)
    except CacheError:
        return False
    finally:
        os.close(descriptor)
    return True


def _shard_arrays(meta: CacheMeta, layer: int) -> list[str]:
    return [name for name, spec in layer_arrays(meta, 1, layer).items() if spec.kind != "static"]


def join(
    root: Path, meta: CacheMeta, layers: tuple[int, ...], sequences: int
) -> tuple[CacheMeta, CacheState, Manifest]:
    """What rank 0 has prepared, for the other ranks of its session.

    Raises:
        CacheError: it prepared something else, or nothing.
    """
    folder = Folder(root)
    try:
        found, state = read_root(folder)
    except FileNotFoundError:
        raise CacheError(f"{root} has not been prepared: rank 0 must open the cache before the other ranks") from None
    if differences := found.differences(meta):
        raise CacheError(f"{root}: rank 0 prepared another cache ({'; '.join(differences)})")
    if not set(layers) <= set(state.layers) or (sequences > state.sequences and not state.exhausted):
        raise CacheError(
            f"{root}: rank 0 prepared layers {state.layers} of {state.sequences} sequences, not this request"
        )
    return found, state, manifest.load(folder, manifest_limit(found, state))[0]


def check_rows(root: Path, meta: CacheMeta, job: Job, offset: int, rows: Rows) -> None:
    """Hold the rows given with a layer that is added later against those on disk.

    Raises:
        CacheError: they differ: the new layer would belong to other tokens.
    """
    for name, spec in row_arrays(meta, job.stop).items():
        content = Folder(root).read(spec.file(job.shard), spec.chunk_bytes)
        given = getattr(rows, name)
        stored = np.frombuffer(content, spec.dtype).reshape(spec.chunk)[offset : offset + len(given)]
        if not np.array_equal(stored, given):
            raise CacheError(
                f"{name} of shard {job.shard} differs from what the cache holds: a layer can only be added for the same"
                " tokens; use the same text, tokenizer and seed, or another CACHE"
            )
