"""The contract between the stages: what a cache is, and how to open one.

    import cache

    residuals = cache.open("caches/gemma-2-2b").layer(12)
    x = residuals.sequences(0, 64)  # torch.bfloat16 [64, T, D]

Importing this package also teaches zarr-python the data type `bfloat16`. The format is in `cache/FORMAT.md`.
"""

import os
from collections.abc import Mapping
from typing import Any

from cache import bf16
from cache.errors import CacheError
from cache.jobs import Job, Rows
from cache.layer_reader import LayerReader
from cache.reader import CacheReader, Verify
from cache.remote import folder_at
from cache.request import Request, look
from cache.schema import CacheMeta, Source
from cache.writer import CacheWriter

__all__ = [
    "CacheError",
    "CacheMeta",
    "CacheReader",
    "CacheWriter",
    "Job",
    "LayerReader",
    "Request",
    "Rows",
    "Source",
    "look",
    "open",
]

bf16.register()


def open(
    path: str,
    *,
    follow: bool = False,
    verify: Verify = "touch",
    staging: str | os.PathLike[str] | None = None,
    staging_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CacheReader:
    """Open a cache for reading.

    Args:
        path: a local folder, or a URL that fsspec knows (`s3://bucket/prefix`): its shards are staged locally.
        follow: also accept a cache that is still being harvested, and read its committed shards.
        verify: `touch` holds every sequence against its checksum when it is first read; `index` trusts the payload.
        staging: of a URL, the local folder for copies; `~/.cache/silo/staging` when not given.
        staging_bytes: of a URL, the most that this folder may hold; 64 GiB or half the free disk when not given.
        storage_options: of a URL, what its file system takes, such as `{"endpoint_url": …}`.

    Raises:
        CacheError: no cache, incomplete, damaged, or of a newer format; of a URL also not allowed, or out of reach.
    """
    folder = folder_at(path, staging=staging, staging_bytes=staging_bytes, storage_options=storage_options)
    return CacheReader(folder, follow=follow, verify=verify)
