"""Small caches with every finite value that bfloat16 can trip over, for the tests of `cache/`."""

from pathlib import Path
from typing import Any

import numpy as np

import cache
from cache import bf16

T, D, S, N = 6, 16, 4, 11  # context, d_model, sequences a shard, sequences: the last shard is partial
BOS = 2


def make_meta(**changes: Any) -> cache.CacheMeta:
    """Metadata of a small cache."""
    values: dict[str, Any] = {
        "model": "planted",
        "model_revision": "0123456789" * 4,
        "tokenizer_hash": "ab" * 32,
        "sources": (cache.Source(dataset="planted", revision="1"),),
        "context": T,
        "packing": "pack",
        "bos_token_id": BOS,
        "special_token_ids": (0, 1, BOS),
        "d_model": D,
        "shard_sequences": S,
        "created": "2026-01-02T03:04:05Z",
        "provenance": {"commit": "planted"},
    }
    return cache.CacheMeta(**{**values, **changes})


def make_rows(n: int = N, *, domain: bool = False, seed: int = 0) -> cache.Rows:
    """Tokens with BOS first; two documents a sequence, the second ending in padding in every third sequence."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 100, (n, T)).astype(np.int32)
    tokens[:, 0] = BOS
    document = (2 * np.arange(n)[:, None] + (np.arange(T) >= T // 2)).astype(np.int32)
    document[::3, -1] = -1
    tokens[document < 0] = 0
    split = (np.arange(n) % 4 == 1).astype(np.uint8)
    tag = (np.arange(n) % 2).astype(np.uint8) if domain else None
    return cache.Rows(tokens, document, split, tag)


def make_bits(n: int = N, *, seed: int = 0, d: int = D) -> np.ndarray:
    """Residual bits [n, T, D] with a negative zero, a subnormal, the largest finite values and an all-zero sequence."""
    rng = np.random.default_rng(seed)
    bits = bf16.from_float32((rng.standard_normal((n, T, d)) * 5).astype(np.float32))
    bits[0, 0, :5] = [0x8000, 0x0001, 0x7F7F, 0xFF7F, 0x0000]
    if n > 2:
        bits[2] = 0
    return bits


def write(
    path: Path,
    meta: cache.CacheMeta,
    layers: dict[int, np.ndarray],
    rows: cache.Rows,
    *,
    batch: int = 3,
    finish: bool = True,
    **options: Any,
) -> None:
    """Write (or go on writing) a cache of these arrays the way a harvest does."""
    n = len(rows.tokens)
    with cache.CacheWriter(path, meta, layers=tuple(layers), sequences=n, sync=False, **options) as writer:
        for job in writer.jobs():
            for start in range(job.start, job.stop, batch):
                part = slice(start, min(start + batch, job.stop))
                some = cache.Rows(*(None if a is None else a[part] for a in rows))
                writer.append(
                    start, some, {layer: layers[layer][part] for layer in job.layers}, cursor={"at": part.stop}
                )
        if finish:
            writer.finish()


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
