"""The root of a cache: its metadata as they are read, and what follows from them before anything else is opened."""

import os
from pathlib import Path
from typing import Final

from cache import manifest
from cache.errors import CacheError
from cache.folder import Folder
from cache.layout import DOCUMENT, LOCK, MANIFEST, PARTIAL, row_arrays
from cache.schema import CacheMeta, CacheState, from_attributes

_SET_ASIDE: Final = 32  # layers beside those of the root that a manifest has room for at least


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


def manifest_limit(meta: CacheMeta, state: CacheState) -> int:
    """Bytes that the manifest of such a cache can have at most: digits and lengths of each sequence, and the names."""
    layers = len(state.layers) + _SET_ASIDE
    per_shard = layers * (meta.shard_sequences * 40 + 1024) + manifest.MAX_CURSOR_BYTES + 4096
    return (state.shards(meta.shard_sequences) + 64) * per_shard * 2
