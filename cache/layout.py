"""Which Zarr arrays a cache consists of, their metadata documents and the files that hold them.

Every document is a pure function of `CacheMeta` and `CacheState`, serialised in one way: that is what lets `verify`
hold each metadata file against the bytes it must have, and what makes two caches comparable byte by byte.
Shapes: N sequences, T positions, D d_model, S sequences a shard, K shards.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from cache.codecs import CODECS
from cache.schema import CacheMeta, CacheState, to_attributes
from cache.statistics import MERGED_FIELDS, packed_length

MANIFEST: Final = "manifest.jsonl"
LOCK: Final = ".lock"
PARTIAL: Final = ".partial"  # suffix of files that are being written
DOCUMENT: Final = "zarr.json"
_LITTLE: Final = {"name": "bytes", "configuration": {"endian": "little"}}
_ONE_BYTE: Final = {"name": "bytes"}
_NUMPY: Final[dict[str, np.dtype[Any]]] = {"bfloat16": np.dtype("<u2"), "int8": np.dtype("i1"), "uint8": np.dtype("u1")}

Kind = Literal["rows", "residuals", "partial", "static"]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One Zarr array of a cache.

    `rows` describe sequences (a chunk a shard), `residuals` hold the vectors (a shard file a shard), `partial` are the
    statistics of each shard, `static` are written once, on completion.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    """Shape of what one file holds."""
    data_type: str
    fill: Any
    dimensions: tuple[str, ...]
    codec: str = "raw"
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """In-memory element type; bfloat16 as its uint16 bits."""
        if self.data_type in _NUMPY:
            return _NUMPY[self.data_type]
        return np.dtype(self.data_type).newbyteorder("<")

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without encoding."""
        return math.prod(self.chunk) * self.dtype.itemsize

    @property
    def item_bytes(self) -> int:
        """Bytes of one step along the first axis (one sequence, for rows and residuals)."""
        return math.prod(self.chunk[1:]) * self.dtype.itemsize

    def file(self, shard: int = 0) -> str:
        """Path of chunk `shard` along the first axis, relative to the cache."""
        return "/".join([self.name, "c", str(shard), *["0"] * (len(self.shape) - 1)])

    def document(self) -> dict[str, Any]:
        """The array's zarr.json (Zarr v3 core specification; sharding-indexed codec 1.0)."""
        little = _LITTLE if self.dtype.itemsize > 1 else _ONE_BYTE
        codecs: list[dict[str, Any]] = [little]
        if self.kind == "residuals":
            inner = {
                "chunk_shape": [1, *self.chunk[1:]],
                "codecs": [little, *CODECS[self.codec].zarr],
                "index_codecs": [_LITTLE, {"name": "crc32c"}],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.data_type,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill,
            "codecs": codecs,
            "attributes": dict(self.attributes),
            "dimension_names": list(self.dimensions),
        }


def row_arrays(meta: CacheMeta, n: int) -> dict[str, ArraySpec]:
    """What is known of each sequence beside its vectors; all aligned with the layers."""
    t, s = meta.context, meta.shard_sequences
    per_position = {"shape": (n, t), "chunk": (s, t), "data_type": "int32", "dimensions": ("sequence", "position")}
    per_sequence = {"shape": (n,), "chunk": (s,), "data_type": "uint8", "dimensions": ("sequence",)}
    specs = [
        ArraySpec(name="tokens", kind="rows", fill=-1, **per_position),  # type: ignore[arg-type]
        ArraySpec(name="document", kind="rows", fill=-1, **per_position),  # type: ignore[arg-type]
        ArraySpec(name="split", kind="rows", fill=255, **per_sequence),  # type: ignore[arg-type]
    ]
    if meta.domains:
        names = (("names", list(meta.domains)),)
        specs.append(ArraySpec(name="domain", kind="rows", fill=255, attributes=names, **per_sequence))  # type: ignore[arg-type]
    return {spec.name: spec for spec in specs}


def layer_arrays(meta: CacheMeta, n: int, layer: int) -> dict[str, ArraySpec]:
    """The vectors of one layer, the statistics of each shard, and what undoes a quantisation."""
    t, d, s = meta.context, meta.d_model, meta.shard_sequences
    data_type = CODECS[meta.codec].data_type
    shards = -(-n // s)
    specs = [
        ArraySpec(
            name=f"layer_{layer}",
            kind="residuals",
            shape=(n, t, d),
            chunk=(s, t, d),
            data_type=data_type,
            fill="NaN" if data_type == "bfloat16" else -128,  # never a plausible value, so that a gap is loud
            dimensions=("sequence", "position", "d_model"),
            codec=meta.codec,
            attributes=(("hook", f"blocks.{layer}.hook_{meta.hook}"),),
        ),
        ArraySpec(
            name=f"statistics/layer_{layer}/shards",
            kind="partial",
            shape=(shards, packed_length(t, d)),
            chunk=(1, packed_length(t, d)),
            data_type="float64",
            fill="NaN",
            dimensions=("shard", "packed"),
        ),
    ]
    if CODECS[meta.codec].quantised:
        specs.append(
            ArraySpec(
                name=f"quantisation/layer_{layer}/scale",
                kind="rows",
                shape=(n, t),
                chunk=(s, t),
                data_type="float32",
                fill="NaN",
                dimensions=("sequence", "position"),
            )
        )
        specs += [
            _static(f"quantisation/layer_{layer}/{name}", (d,), ("d_model",), "float32") for name in ("mean", "std")
        ]
    return {spec.name: spec for spec in specs}


def merged_arrays(meta: CacheMeta, layer: int) -> dict[str, ArraySpec]:
    """The statistics of a whole layer, written on completion."""
    sizes = {"T": meta.context, "D": meta.d_model}
    specs = []
    for name, (sketch, dimensions) in MERGED_FIELDS.items():
        shape = tuple(sizes[x] if isinstance(x, str) else x for x in sketch)
        specs.append(_static(f"statistics/layer_{layer}/{name}", shape, dimensions, "float64"))
    return {spec.name: spec for spec in specs}


def all_arrays(meta: CacheMeta, state: CacheState) -> dict[str, ArraySpec]:
    """Every array that the cache has now; the merged statistics only once it is complete."""
    arrays = row_arrays(meta, state.sequences)
    for layer in state.layers:
        arrays |= layer_arrays(meta, state.sequences, layer)
        if state.complete:
            arrays |= merged_arrays(meta, layer)
    return arrays


def documents(meta: CacheMeta, state: CacheState) -> Iterator[tuple[str, bytes]]:
    """Every zarr.json of the cache with its exact bytes, the root group last: it is what makes a folder a cache."""
    arrays = all_arrays(meta, state)
    for name, spec in arrays.items():
        yield f"{name}/{DOCUMENT}", serialise(spec.document())
    groups = sorted({"/".join(name.split("/")[:depth]) for name in arrays for depth in range(1, name.count("/") + 1)})
    for group in groups:
        yield f"{group}/{DOCUMENT}", serialise({"zarr_format": 3, "node_type": "group", "attributes": {}})
    yield DOCUMENT, root_document(meta, state)


def root_document(meta: CacheMeta, state: CacheState) -> bytes:
    """The root group's zarr.json."""
    return serialise({"zarr_format": 3, "node_type": "group", "attributes": to_attributes(meta, state)})


def serialise(document: dict[str, Any]) -> bytes:
    """The one form of a metadata file: indented, keys in order of the specification, one newline at the end."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("ascii")


def _static(name: str, shape: tuple[int, ...], dims: tuple[str, ...], data_type: str) -> ArraySpec:
    fill = "NaN"
    return ArraySpec(
        name=name, kind="static", shape=shape, chunk=shape, data_type=data_type, fill=fill, dimensions=dims
    )
