"""One shard file: payload ‖ index ‖ crc32c, its bytes made and checked, its payload mapped.

Source: Zarr v3 sharding-indexed codec 1.0. The index has 16 bytes a slot (offset, length as little-endian uint64,
both 2**64 - 1 where a slot is empty), then its own crc32c. Without an inner compressor the payload is one contiguous
[n, T, D] block from byte 0 on, because a shard is written in sequence order.
"""

import mmap
import os
import sys
from typing import Any, Final

import numpy as np
from jaxtyping import UInt64

from cache import residency
from cache.checksum import crc32c
from cache.errors import CacheError

_EMPTY: Final = 2**64 - 1
# A private mapping of a shard must not count as committed memory; Python 3.11 has no name for the flag.
_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0


def index_bytes(lengths: UInt64[np.ndarray, " n"], slots: int) -> bytes:
    """The index of a shard whose n sequences of these stored lengths lie one behind the other."""
    index = np.full((slots, 2), _EMPTY, "<u8")
    ends = np.cumsum(lengths, dtype=np.uint64)
    index[: len(lengths), 0] = ends - lengths
    index[: len(lengths), 1] = lengths
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(4, "little")


def check_shard(descriptor: int, lengths: UInt64[np.ndarray, " n"], slots: int, path: str) -> None:
    """Hold a shard file's size and index against what the manifest says it must be.

    Raises:
        CacheError: torn, of another size, or an index that is not this one (reordered, sparse or damaged).
    """
    payload, wanted = int(lengths.sum()), index_bytes(lengths, slots)
    size = os.fstat(descriptor).st_size
    if size != payload + len(wanted):
        raise CacheError(f"{path} has {size:,} bytes, wanted {payload + len(wanted):,}: torn or damaged")
    if os.pread(descriptor, len(wanted), payload) != wanted:
        raise CacheError(f"{path}: its index is not the dense one that the manifest describes: damaged")


def map_items(
    descriptor: int, start: int, count: int, dtype: np.dtype[Any], path: str, *, private: bool, populate: bool
) -> np.ndarray:
    """`count` items from byte `start` of a file, without a copy.

    Args:
        descriptor: the file.
        start: byte of the first item.
        count: number of items.
        dtype: type of the items.
        path: for messages.
        private: a copy-on-write mapping: writing to it changes neither the file nor any other view. Else the array is
            read-only, and numpy refuses to write to it.
        populate: everything will be read soon: fetch it in one go at the disk's full rate (faults one by one reach a
            third of it), rather than page by page as it is touched.

    Raises:
        CacheError: the operating system refuses another mapping.
    """
    if not count:
        return np.empty(0, dtype)
    base = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(
            descriptor,
            start - base + count * dtype.itemsize,
            flags=mmap.MAP_PRIVATE | _NORESERVE if private else mmap.MAP_SHARED,
            prot=mmap.PROT_READ | mmap.PROT_WRITE if private else mmap.PROT_READ,
            offset=base,
        )
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} cannot be mapped ({error}): too many live views? drop some, or copy them") from error
    if populate:
        residency.populate(mapping, 0, len(mapping))
    return np.frombuffer(mapping, dtype, count=count, offset=start - base)
