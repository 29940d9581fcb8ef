"""One layer as a plain file: `.npy` for anything that reads numpy, `.safetensors` with bfloat16 kept as it is.

Both are written in blocks, so that a layer larger than memory can be exported.
Shapes: n sequences, T positions, D d_model.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from cache import bf16
from cache.errors import CacheError
from cache.layout import PARTIAL
from cache.reader import CacheReader

DTYPES: Final = {"float32": np.float32, "float16": np.float16, "bits": np.uint16}
_BLOCK_BYTES: Final = 64 << 20


def export(
    reader: CacheReader,
    layer: int,
    target: str | os.PathLike[str],
    *,
    start: int = 0,
    stop: int | None = None,
    dtype: str = "float32",
    progress: Callable[[int], object] = lambda nbytes: None,
) -> None:
    """Write sequences [start, stop) of a layer to one file, whole or not at all.

    Args:
        reader: the cache.
        layer: which layer.
        target: a path that ends in `.npy` ([n, T, D] of `dtype`) or `.safetensors` (`residuals` bfloat16 [n, T, D],
            `tokens` and `document` int32 [n, T], `split` uint8 [n]).
        start: first sequence.
        stop: one past the last; None: all.
        dtype: of a `.npy` file, `float32`, `float16` (refused where values overflow) or `bits` (the uint16 patterns).
        progress: told the number of bfloat16 bytes after each block.

    Raises:
        CacheError: an unknown ending or dtype; values that float16 cannot hold; a damaged cache.
    """
    path = Path(target)
    stop = reader.n_sequences if stop is None else stop
    if not 0 <= start < stop <= reader.n_sequences:
        raise CacheError(f"wanted sequences {start}:{stop} of a cache that has 0:{reader.n_sequences}")
    if path.suffix not in (".npy", ".safetensors"):
        raise CacheError(f"{path} must end in .npy or .safetensors")
    if dtype not in DTYPES:
        raise CacheError(f"DTYPE must be one of {', '.join(DTYPES)}, got {dtype!r}")
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    blocks = _blocks(reader, layer, start, stop, progress)
    try:
        with temporary.open("wb") as stream:
            if path.suffix == ".npy":
                _npy(stream, blocks, (stop - start, *reader.layer(layer).shape[1:]), dtype)
            else:
                _safetensors(stream, blocks, reader, layer, start, stop)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(
    reader: CacheReader, layer: int, start: int, stop: int, progress: Callable[[int], object]
) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK_BYTES // reader.meta.sequence_bytes)
    view = reader.layer(layer)
    for a in range(start, stop, step):
        bits = view.bits(a, min(a + step, stop))
        yield bits
        progress(bits.nbytes)


def _npy(stream: IO[bytes], blocks: Iterator[np.ndarray], shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": np.dtype(DTYPES[dtype]).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for bits in blocks:
        values: np.ndarray = bits if dtype == "bits" else bf16.to_float32(bits)
        if dtype == "float16":
            if np.abs(values).max() > np.finfo(np.float16).max:
                raise CacheError(f"values up to {np.abs(values).max():.3g} overflow float16 (65504): export float32")
            values = values.astype(np.float16)
        stream.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _safetensors(
    stream: IO[bytes], blocks: Iterator[np.ndarray], reader: CacheReader, layer: int, start: int, stop: int
) -> None:
    n, (_, t, d) = stop - start, reader.layer(layer).shape
    tensors = {"residuals": ("BF16", (n, t, d), 2), "tokens": ("I32", (n, t), 4), "document": ("I32", (n, t), 4)}
    tensors["split"] = ("U8", (n,), 1)
    note = {
        "model": reader.meta.model,
        "layer": str(layer),
        "fingerprint": reader.meta.fingerprint,
        "start": str(start),
    }
    header: dict[str, object] = {"__metadata__": note}
    end = 0
    for name, (dtype, shape, itemsize) in tensors.items():
        begin, end = end, end + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the payload to 8 bytes
    stream.write(len(text).to_bytes(8, "little") + text)
    for bits in blocks:
        stream.write(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)
    for part in (reader.tokens(start, stop), reader.document(start, stop), reader.split(start, stop)):
        stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
