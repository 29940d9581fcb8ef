"""The contract between the stages: what a cache is, and how to open one.

    import cache

    residuals = cache.open("caches/gemma-2-2b").layer(12)
    x = residuals.sequences(0, 64)  # torch.bfloat16 [64, T, D]

Importing this package also teaches zarr-python the data type `bfloat16`. The format is in `cache/FORMAT.md`.
"""

from cache import bf16
from cache.errors import CacheError
from cache.folder import Folder
from cache.reader import CacheReader, LayerReader, Verify
from cache.schema import CacheMeta, Source
from cache.shard_writer import Job, Rows
from cache.writer import CacheWriter

__all__ = ["CacheError", "CacheMeta", "CacheReader", "CacheWriter", "Job", "LayerReader", "Rows", "Source", "open"]

bf16.register()


def open(path: str, *, follow: bool = False, verify: Verify = "touch") -> CacheReader:
    """Open a cache for reading.

    Args:
        path: a local folder.
        follow: also accept a cache that is still being harvested, and read its committed shards.
        verify: `touch` holds every sequence against its checksum when it is first read; `index` trusts the payload.

    Raises:
        CacheError: no cache, incomplete, damaged, or of a newer format.
    """
    return CacheReader(Folder(path), follow=follow, verify=verify)
