"""crc32c (Castagnoli), the checksum of Zarr's sharding codec, and the form of what it is taken of.

The package `crc32c` is as fast as any (one core: about the speed of memcpy) and lets other threads run meanwhile;
`google_crc32c` holds the interpreter's lock, which halved the rate of two threads.
"""

import json
from typing import Any

import crc32c as _crc32c
import numpy as np
from jaxtyping import UInt32

Buffer = bytes | bytearray | memoryview | np.ndarray


def crc32c(data: Buffer) -> int:
    """Of bytes, or of the bytes of a C-contiguous array."""
    return int(_crc32c.crc32c(data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data))


def hex_digits(data: Buffer) -> str:
    """As 8 hex digits."""
    return f"{crc32c(data):08x}"


def checksums(items: np.ndarray) -> UInt32[np.ndarray, " n"]:
    """Of each item along the first axis of a C-contiguous array."""
    return np.array([crc32c(item) for item in items], np.uint32)


def canonical(value: Any) -> bytes:
    """The one JSON form that checksums are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
