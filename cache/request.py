"""What a request for a cache means for the folder that is there, found without changing anything.

Create, resume, extend, add a layer, or nothing. A layer that was begun and that the request does not name is set aside
where it is behind: its shards keep their lines in the manifest, and the cache is complete without it.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cache import commits, manifest
from cache.errors import CacheError
from cache.folder import Folder
from cache.jobs import Job
from cache.layout import DOCUMENT, MANIFEST, ArraySpec, layer_arrays
from cache.manifest import Commit, Manifest
from cache.root import manifest_limit, read_root, refuse_foreign
from cache.schema import CacheMeta, CacheState, check_shards
from cache.shards import check_shard


class Request(NamedTuple):
    """What a request makes of a folder."""

    meta: CacheMeta
    """The metadata that will hold: of a cache that is there `created` and provenance are those of its first harvest."""
    state: CacheState
    """The state to work towards; `complete` where the request is met."""
    known: Manifest
    """What is committed and stays."""
    there: bool
    """Whether there is a cache already."""

    @property
    def owed(self) -> tuple[Job, ...]:
        """Shards that are to be written, in order."""
        return () if self.state.complete else tuple(_jobs(self.meta, self.state, self.known))


def look(path: str | os.PathLike[str], meta: CacheMeta, layers: tuple[int, ...], sequences: int) -> Request:
    """Find what a writer with the same arguments would do; nothing is written.

    Args:
        path: folder of the cache, which need not exist.
        meta: what the cache is to hold.
        layers: layers wanted.
        sequences: wanted length N.

    Raises:
        CacheError: a folder that holds something else; a cache that contradicts the request, with the fields named.
    """
    root = Path(path)
    if sequences < 1:
        raise CacheError(f"wanted a cache of at least 1 sequence of {meta.context} tokens, got {sequences}")
    check_shards(meta, sequences)
    if root.exists() and not root.is_dir():
        raise CacheError(f"{path} is no folder: choose another CACHE")
    folder = Folder(root)
    try:
        old_meta, old = read_root(folder)
    except FileNotFoundError:
        if root.exists():
            refuse_foreign(root, meta, layers)
        if folder.size(MANIFEST):
            raise CacheError(
                f"{root} has a manifest and no {DOCUMENT}: restore {DOCUMENT}, or remove the folder"
            ) from None
        state = CacheState(layers=tuple(sorted(set(layers))), sequences=sequences)
        return Request(meta, state, Manifest(commits={}, static={}), there=False)
    if found := old_meta.differences(meta):
        what = "; ".join(found)
        raise CacheError(f"{root} holds another cache than asked for ({what}): use another CACHE, or the same settings")
    known = manifest.load(folder, manifest_limit(old_meta, old))[0]
    state = replace(old, sequences=_length(old_meta, old, known, sequences))
    wanted = set(layers)
    if old.complete and state == old and wanted <= set(old.layers):
        return Request(old_meta, old, known, there=True)
    known = manifest.without(known, whole_units(known, set(_stale(folder, old_meta, state, known))))
    wanted |= set(old.layers) - (set() if old.complete else _behind(old_meta, known, wanted, old.layers))
    state = replace(state, layers=tuple(sorted(wanted)), complete=False, manifest_crc32c="")
    return Request(old_meta, state, known, there=True)


def whole_units(known: Manifest, lost: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Everything that must be written again with these: a layer with its statistics; rows with all layers."""
    units = {(shard, _unit(array)) for shard, array in lost}
    return {
        (shard, array)
        for shard, commit in known.commits.items()
        for array in commit.crc32c
        if (shard, "rows") in units or (shard, _unit(array)) in units
    }


def _jobs(meta: CacheMeta, state: CacheState, known: Manifest) -> Iterator[Job]:
    s = meta.shard_sequences
    for shard in range(state.shards(s)):
        missing = tuple(layer for layer in state.layers if not _has(meta, known, shard, layer))
        rows = not known.has(shard, "tokens")
        if missing or rows:
            layers = state.layers if rows else missing
            yield Job(
                shard=shard, start=shard * s, stop=min((shard + 1) * s, state.sequences), layers=layers, rows=rows
            )


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


def _behind(meta: CacheMeta, known: Manifest, wanted: set[int], layers: tuple[int, ...]) -> set[int]:
    """Layers of an unfinished cache that are not wanted and miss a shard which all of the wanted ones have.

    They were begun by another request, which need not be finished for this one to be met.
    """
    ready = [shard for shard in known.commits if all(_has(meta, known, shard, layer) for layer in wanted)]
    return {layer for layer in set(layers) - wanted if not all(_has(meta, known, shard, layer) for shard in ready)}


def _has(meta: CacheMeta, known: Manifest, shard: int, layer: int) -> bool:
    return all(known.has(shard, name) for name, spec in layer_arrays(meta, 1, layer).items() if spec.kind != "static")


def _stale(folder: Folder, meta: CacheMeta, state: CacheState, known: Manifest) -> Iterator[tuple[int, str]]:
    """Committed pairs that must be written again: last shards that are to grow, and files that are gone or torn."""
    s, shards = meta.shard_sequences, state.shards(meta.shard_sequences)
    specs = commits.committed_arrays(meta, state, known)
    for shard, commit in known.commits.items():
        grows = shard >= shards or commit.sequences != min(s, state.sequences - shard * s)
        for name in commit.crc32c:
            if grows or name not in specs or not _intact(folder, meta, commit, specs[name]):
                yield shard, name


def _unit(array: str) -> str:
    """The layer that an array belongs to, or `rows`."""
    layers = [part for part in array.split("/") if part.startswith("layer_")]
    return layers[0] if layers else "rows"


def _intact(folder: Folder, meta: CacheMeta, commit: Commit, spec: ArraySpec) -> bool:
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
