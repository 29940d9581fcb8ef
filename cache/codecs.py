"""How one sequence is encoded inside a shard: the literal table of codecs and their Zarr form.

Every codec is one that zarr-python, tensorstore and zarrs decode without code of ours. `raw` alone can be
memory-mapped; the others are for cold storage. `int8` is raw too, but of standardised, rounded values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numcodecs import Blosc, Zstd

from cache.errors import CacheError

Bytes = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One way to store a sequence."""

    data_type: str = "bfloat16"
    """Zarr name of the stored element."""
    quantised: bool = False
    """Whether values are rounded to 8 bits (see `quantise.py`)."""
    compressor: Callable[[], Any] | None = None
    """Makes the numcodecs object; None stores the bytes as they are, so that shards can be memory-mapped."""
    zarr: tuple[dict[str, Any], ...] = ()
    """Zarr codecs that follow `bytes`."""

    @property
    def mapped(self) -> bool:
        """Whether a shard is one contiguous block of its elements."""
        return self.compressor is None

    def encode(self, sequence: np.ndarray) -> Bytes:
        """Stored bytes of one contiguous sequence [T, D]."""
        if self.compressor is None:
            return sequence.reshape(-1).view(np.uint8).data
        return bytes(self.compressor().encode(sequence))

    def decode(self, stored: Bytes, out: np.ndarray) -> None:
        """Fill `out` [T, D] from stored bytes.

        Raises:
            CacheError: the bytes are no such sequence.
        """
        target = out.reshape(-1).view(np.uint8).data
        if self.compressor is None:
            target[:] = stored
            return
        try:
            # Into a buffer of the right size: what a frame claims to hold is never set aside on its word. A frame that
            # holds less leaves the rest as it was, which no checksum survives.
            self.compressor().decode(bytes(stored), target)
        except (RuntimeError, ValueError) as error:
            raise CacheError(f"a sequence does not decode ({error})") from error


def _blosc(cname: str, clevel: int, shuffle: str) -> Codec:
    filters = {"shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
    configuration = {"typesize": 2, "cname": cname, "clevel": clevel, "shuffle": shuffle, "blocksize": 0}
    return Codec(
        compressor=lambda: Blosc(cname=cname, clevel=clevel, shuffle=filters[shuffle], blocksize=0),
        zarr=({"name": "blosc", "configuration": configuration},),
    )


CODECS: Final[dict[str, Codec]] = {
    "raw": Codec(),
    # Levels by measurement on simulated residuals (ratio, encode, decode GB/s of one core): bitshuffled lz4 1.16, 1.9,
    # 3.2; shuffled zstd-3 1.31, 0.18, 0.87; plain zstd-1 1.26, 1.0, 1.25.
    "blosc-lz4": _blosc("lz4", 5, "bitshuffle"),
    "blosc-zstd": _blosc("zstd", 3, "shuffle"),
    "zstd": Codec(
        compressor=lambda: Zstd(level=1, checksum=False),
        zarr=({"name": "zstd", "configuration": {"level": 1, "checksum": False}},),
    ),
    "int8": Codec(data_type="int8", quantised=True),
}
