"""Bring a folder to the state in which a request can be written: create, reopen, or join what rank 0 has prepared.

Every step leaves a folder that the next writer understands: metadata is replaced atomically, `complete` goes first
when a cache is opened again and comes last when it is closed, and the manifest never claims what is not there.
"""

import shutil
from pathlib import Path

import numpy as np

from cache import atomic, manifest
from cache.errors import CacheError
from cache.folder import Folder
from cache.jobs import Job, Rows
from cache.layout import MANIFEST, documents, layer_arrays, merged_arrays, row_arrays
from cache.manifest import LAYER, Manifest
from cache.request import Request, look
from cache.root import manifest_limit, read_root
from cache.schema import CacheMeta, CacheState


def prepare(root: Path, meta: CacheMeta, layers: tuple[int, ...], sequences: int, *, sync: bool) -> Request:
    """Make the folder ready for the missing shards; the caller holds the lock.

    Raises:
        CacheError: as `look`, before anything is written.
    """
    request = look(root, meta, layers, sequences)
    manifest.drop_partials(root)
    if not request.there:
        _create(root, request, sync=sync)
    elif not request.state.complete:
        reopen(root, request.meta, request.state, request.known, sync=sync)
    return request


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
    _clear(root, meta, state, kept)


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


def _create(root: Path, request: Request, *, sync: bool) -> None:
    if sync:
        atomic.sync_folders(root.parent, [root])  # the new folder's own name
    atomic.write_file(root, MANIFEST, request.known.content(), sync=sync)
    write_documents(root, request.meta, request.state, root_first=False, sync=sync)


def _clear(root: Path, meta: CacheMeta, state: CacheState, kept: Manifest) -> None:
    """Leave of layers that are not in the root only the files that the manifest names, and no metadata.

    So no reader takes them for arrays of the cache.
    """
    named = {
        spec.file(shard)
        for layer in kept.layers
        for name, spec in layer_arrays(meta, state.sequences, layer).items()
        for shard in kept.commits
        if spec.kind == "static" or kept.has(shard, name)
    }
    own = {f"layer_{layer}" for layer in state.layers}
    for parent in (root, root / "statistics", root / "quantisation"):
        for folder in parent.glob("layer_*"):
            if folder.name in own or folder.is_symlink() or not LAYER.fullmatch(folder.name):
                continue
            for path in [*sorted(folder.rglob("*"), reverse=True), folder]:  # what a folder holds comes before it
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.relative_to(root).as_posix() not in named:
                    path.unlink()


def join(root: Path, meta: CacheMeta, layers: tuple[int, ...], sequences: int) -> Request:
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
    return Request(found, state, manifest.load(folder, manifest_limit(found, state))[0], there=True)


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
