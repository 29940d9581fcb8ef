"""The last step of a harvest: shapes, merged statistics, canonical manifest, and `complete` at the very end.

Each step can be repeated: a kill between any two leaves an incomplete cache whose next writer does them again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cache import atomic, commits, manifest
from cache.checksum import hex_digits
from cache.errors import CacheError
from cache.folder import Folder
from cache.layout import MANIFEST, all_arrays, merged_arrays
from cache.manifest import Manifest
from cache.prepare import write_documents
from cache.root import manifest_limit
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
    commits.check_all_committed(root, meta, state, known)
    state = replace(state, complete=True, audit={**state.audit, **audit}, manifest_crc32c="0" * 8)
    static = dict(_quantisation(folder, meta, state))
    for layer in state.layers:
        merged = merge(commits.read_partials(folder, meta, state, known, layer), meta.context, meta.d_model)
        for name, content in merged_files(meta, layer, merged):
            atomic.write_file(root, merged_arrays(meta, layer)[name].file(), content, sync=sync)
            static[name] = hex_digits(content)
    known = Manifest(commits=known.commits, static=static)
    atomic.write_file(root, MANIFEST, known.content(), sync=sync)
    state = replace(state, manifest_crc32c=hex_digits(known.content()))
    write_documents(root, meta, replace(state, complete=True), root_first=False, sync=sync)
    return state


def merged_files(meta: CacheMeta, layer: int, merged: LayerStatistics) -> Iterator[tuple[str, bytes]]:
    """Bytes of each merged array of a layer."""
    for name in merged_arrays(meta, layer):
        yield name, getattr(merged, name.rsplit("/", 1)[1]).astype("<f8").tobytes()


def _quantisation(folder: Folder, meta: CacheMeta, state: CacheState) -> Iterator[tuple[str, str]]:
    for name, spec in all_arrays(meta, replace(state, complete=False)).items():
        if spec.kind == "static":
            yield name, hex_digits(folder.read(spec.file(), spec.chunk_bytes))
