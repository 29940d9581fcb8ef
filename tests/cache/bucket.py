"""What the tests of remote caches share: where the planted cache lies, and what has been staged of it."""

from pathlib import Path

from tests.cache.planted import D, S, T

URL = "memory://bucket/small"
SHARD = "/bucket/small/layer_3/c/{}/0/0"
SHARD_BYTES = S * T * D * 2 + 16 * S + 4  # payload, index, its checksum


def staged(staging: Path) -> list[str]:
    """`layer_3.0.0.0` and the like: what is staged, without digests."""
    return sorted(path.name.rsplit(".", 1)[0] for path in staging.glob("*/*"))


def flipped(content: bytes, at: int) -> bytes:
    """The content with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
