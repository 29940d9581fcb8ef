"""Open a cache and read it: committed, checked sequences, as views of the files where the codec allows.

    import cache

    residuals = cache.open("caches/gemma-2-2b").layer(12)
    x = residuals.sequences(0, 64)  # torch.bfloat16 [64, T, D]

Shapes: N sequences, T positions, D d_model, S sequences a shard.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int, Int32, UInt8, UInt16

from cache import bf16, commits, manifest, prepare
from cache.checksum import hex_digits
from cache.errors import CacheError
from cache.folder import Folder
from cache.layer_files import LayerFiles
from cache.layout import MANIFEST, all_arrays, merged_arrays, row_arrays
from cache.manifest import Commit, Manifest
from cache.schema import CacheMeta, CacheState
from cache.statistics import MERGED_FIELDS, LayerStatistics, merge

if TYPE_CHECKING:
    import torch

Verify = Literal["touch", "index"]


class CacheReader:
    """A cache opened for reading; nothing is read before it is asked for."""

    def __init__(self, folder: Folder, *, follow: bool = False, verify: Verify = "touch") -> None:
        """Read the metadata and the manifest; use `cache.open`, which also takes URLs.

        Raises:
            CacheError: no cache, incomplete (unless `follow`), damaged, or of a newer format.
        """
        self.folder, self.follow, self.verify = folder, follow, verify
        self.refresh()

    def refresh(self) -> None:
        """Look again at a cache that is still being written: more shards may have been committed.

        Raises:
            CacheError: as the constructor.
        """
        while True:
            self.meta, self.state = root = self._root()
            try:
                self.manifest = self._load()
                break
            except CacheError:
                if self._root() == root:  # else a writer stepped between the two files
                    raise
        self._chunk = lru_cache(maxsize=256)(self._read_chunk)

    def _root(self) -> tuple[CacheMeta, CacheState]:
        try:
            return prepare.read_root(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(
                f"{self.folder.name} is no cache (it has no zarr.json): check the path, or make one with"
                f" `make harvest LAYER=12 CACHE={self.folder.name}`"
            ) from None

    def _load(self) -> Manifest:
        known, _, content = manifest.load(self.folder, prepare.manifest_limit(self.meta, self.state))
        if self.state.complete:
            if hex_digits(content) != self.state.manifest_crc32c:
                raise CacheError(
                    f"{self.folder.name}/{MANIFEST} is not the one the cache was completed with: restore it"
                )
            commits.check_all_committed(self.folder.name, self.meta, self.state, known)
        elif not self.follow:
            commits.check_all_committed(self.folder.name, self.meta, self.state, known)
            raise CacheError(f"{self.folder.name} was not completed: run the same harvest again, it only has to finish")
        return commits.consistent(self.folder.name, self.meta, self.state, known)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers in the cache."""
        return self.state.layers

    @property
    def n_sequences(self) -> int:
        """N; of a cache that is being written, as planned."""
        return self.state.sequences

    @property
    def shards(self) -> tuple[int, ...]:
        """Shards that can be read: committed, with every layer."""
        names = [name for name, spec in all_arrays(self.meta, self.state).items() if spec.kind != "static"]
        return tuple(k for k in sorted(self.manifest.commits) if all(self.manifest.has(k, name) for name in names))

    def shard_range(self, shard: int) -> range:
        """Numbers of the sequences in a shard."""
        start = shard * self.meta.shard_sequences
        return range(start, min(start + self.meta.shard_sequences, self.n_sequences))

    def layer(self, layer: int) -> "LayerReader":
        """The vectors of one layer.

        Raises:
            CacheError: the cache has no such layer.
        """
        if layer not in self.layers:
            have = ", ".join(map(str, self.layers))
            raise CacheError(
                f"{self.folder.name} has no layer {layer}, only {have}: add it with `make harvest LAYER={layer}"
                f" MODEL={self.meta.model} CACHE={self.folder.name}`"
            )
        return LayerReader(self, layer)

    def tokens(self, start: int = 0, stop: int | None = None) -> Int32[np.ndarray, "n T"]:
        """Token ids of sequences [start, stop)."""
        return self._rows("tokens", start, stop)

    def document(self, start: int = 0, stop: int | None = None) -> Int32[np.ndarray, "n T"]:
        """Document of each position; −1 is padding."""
        return self._rows("document", start, stop)

    def split(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, " n"]:
        """0 train, 1 held-out."""
        return self._rows("split", start, stop)

    def domain(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, " n"]:
        """Index into `meta.domains`.

        Raises:
            CacheError: the cache was harvested without domains.
        """
        if not self.meta.domains:
            raise CacheError(
                f"{self.folder.name} has no domains: harvest sources with a domain each to tell them apart"
            )
        return self._rows("domain", start, stop)

    def statistics(self, layer: int) -> LayerStatistics:
        """Statistics of a layer; of a cache that is being written, over the committed shards.

        Raises:
            CacheError: no such layer, or a damaged file.
        """
        self.layer(layer)
        if not self.state.complete:
            partials = commits.read_partials(self.folder, self.meta, self.state, self.manifest, layer)
            return merge(partials, self.meta.context, self.meta.d_model)
        fields = {}
        for name, spec in merged_arrays(self.meta, layer).items():
            if name not in self.manifest.static:
                raise CacheError(f"{self.folder.name}/{MANIFEST} has no line for {name}: damaged; restore it")
            content = commits.read_chunk(self.folder, spec.file(), spec.chunk_bytes, self.manifest.static[name])
            fields[name.rsplit("/", 1)[1]] = np.frombuffer(content, "<f8").reshape(spec.shape)
        return LayerStatistics(**{name: fields[name] for name in MERGED_FIELDS})

    def locate(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut sequences [start, stop) at shard borders: (shard, first and last+1 within it).

        Raises:
            IndexError: outside the cache.
            CacheError: a shard that has not been committed yet.
        """
        if not 0 <= start <= stop <= self.n_sequences:
            raise IndexError(f"wanted sequences {start} to {stop}, the cache has {self.n_sequences}")
        s = self.meta.shard_sequences
        for shard in range(start // s, -(-stop // s)):
            self.commit(shard)
            yield shard, max(start - shard * s, 0), min(stop - shard * s, s)

    def commit(self, shard: int, array: str = "") -> Commit:
        """What the manifest says of a shard, and that it has this array.

        Raises:
            CacheError: not committed yet.
        """
        commit = self.manifest.commits.get(shard)
        if commit is None or (array and array not in commit.crc32c):
            what = f"shard {shard} of {array}" if array else f"shard {shard}"
            raise CacheError(f"{self.folder.name}: {what} is not committed yet; `refresh` and try again")
        return commit

    def _rows(self, name: str, start: int, stop: int | None) -> np.ndarray:
        spec = row_arrays(self.meta, self.n_sequences)[name]
        pieces = [
            self._chunk(name, k)[a:b] for k, a, b in self.locate(start, self.n_sequences if stop is None else stop)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, *spec.chunk[1:]), spec.dtype)

    def _read_chunk(self, name: str, shard: int) -> np.ndarray:
        spec = all_arrays(self.meta, self.state)[name]
        digits = self.commit(shard, name).crc32c[name]
        content = commits.read_chunk(self.folder, spec.file(shard), spec.chunk_bytes, digits)
        return np.frombuffer(content, spec.dtype).reshape(spec.chunk)

    def chunk(self, name: str, shard: int) -> np.ndarray:
        """One checked chunk of a `rows` array, padded to a whole shard."""
        return self._chunk(name, shard)


class LayerReader:
    """The vectors of one layer: zero-copy where the cache is uncompressed, decoded where it is not.

    Everything comes as torch.bfloat16; `bits` and `shard_bits` give the same as uint16 for numpy. No view can spoil the
    cache for another: torch knows no read-only tensors, so each of its views is a copy-on-write mapping of its own;
    numpy's share one mapping and are read-only.
    """

    def __init__(self, reader: CacheReader, layer: int) -> None:
        """Use `CacheReader.layer`."""
        self.reader, self.layer = reader, layer
        self.files = LayerFiles(
            reader.folder,
            reader.meta,
            reader.state,
            layer,
            verify=reader.verify == "touch",
            static=reader.manifest.static,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return self.reader.n_sequences, self.reader.meta.context, self.reader.meta.d_model

    def shard(self, shard: int) -> "torch.Tensor":
        """A whole shard, bfloat16 [n, T, D].

        Raises:
            CacheError: not committed, missing or damaged.
        """
        numbers = self._numbers(shard)
        return self.sequences(numbers.start, numbers.stop)

    def sequences(self, start: int, stop: int) -> "torch.Tensor":
        """Sequences [start, stop), bfloat16 [n, T, D]; a view where they lie in one shard.

        Raises:
            IndexError: outside the cache.
            CacheError: not committed, missing or damaged.
        """
        return bf16.torch_view(self._joined(start, stop, self._read))

    def rows(self, indices: Int[np.ndarray, " n"]) -> "torch.Tensor":
        """Single rows, bfloat16 [n, D]; row r is position r % T of sequence r // T.

        Raises:
            IndexError: outside the cache.
            CacheError: not committed, missing or damaged.
        """
        n, t, d = self.shape
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < n * t:
            raise IndexError(f"wanted rows {indices.min()} to {indices.max()}, the layer has {n * t}")
        out = np.empty((len(indices), d), np.uint16)
        shard_rows = self.reader.meta.shard_sequences * t
        shards = indices // shard_rows
        for shard in np.unique(shards):
            place = np.flatnonzero(shards == shard)
            local = indices[place] - shard * shard_rows
            out[place] = self._gather(int(shard), local)
        return bf16.torch_view(out)

    def windows(self, sequence: Int[np.ndarray, " n"], position: Int[np.ndarray, " n"], width: int) -> "torch.Tensor":
        """Runs of `width` consecutive positions of one document, bfloat16 [n, width, D].

        Args:
            sequence: number of the sequence of each window.
            position: first position of each window.
            width: W, at least 1.

        Raises:
            ValueError: a window that leaves its sequence or its document.
            CacheError: not committed, missing or damaged.
        """
        _, t, d = self.shape
        sequence, position = np.asarray(sequence, np.int64), np.asarray(position, np.int64)
        if width < 1 or (position < 0).any() or (position + width > t).any():
            raise ValueError(f"windows of {width} must lie within {t} positions")
        steps = position[:, None] + np.arange(width)
        for one, (number, at) in enumerate(zip(sequence, steps, strict=True)):
            documents = self.reader.document(int(number), int(number) + 1)[0, at]
            if documents[0] < 0 or (documents != documents[0]).any():
                raise ValueError(f"window {one} (sequence {number}, position {at[0]}) does not lie within one document")
        return self.rows((sequence[:, None] * t + steps).reshape(-1)).reshape(len(sequence), width, d)

    def bits(self, start: int, stop: int) -> UInt16[np.ndarray, "n T D"]:
        """As `sequences`, as uint16 bit patterns; a read-only view where they lie in one uncompressed shard."""
        return self._joined(start, stop, self._view)

    def read_into(self, out: UInt16[np.ndarray, "n T D"], start: int) -> None:
        """Fill a buffer of the caller with the bits of n sequences from `start` on; threads may do so side by side.

        Args:
            out: C-contiguous.
            start: number of the first sequence.

        Raises:
            ValueError: a buffer that is not C-contiguous, which would be filled through a copy and stay as it was.
            IndexError: outside the cache.
            CacheError: not committed, missing or damaged.
        """
        if not out.flags.c_contiguous:
            raise ValueError(f"wanted a C-contiguous buffer, got strides {out.strides}: read into a buffer of its own")
        at = 0
        for shard, a, b in self.reader.locate(start, start + len(out)):
            piece = out[at : at + b - a]
            if self.files.codec.quantised:
                piece[:] = self._read(shard, a, b)
            else:
                self.files.read_into(self.reader.commit(shard, self.files.spec.name), a, piece)
            at += b - a

    def shard_bits(self, shard: int) -> UInt16[np.ndarray, "n T D"]:
        """As `shard`, as uint16 bit patterns."""
        numbers = self._numbers(shard)
        return self.bits(numbers.start, numbers.stop)

    def _numbers(self, shard: int) -> range:
        numbers = self.reader.shard_range(shard)
        if not numbers:
            shards = self.reader.state.shards(self.reader.meta.shard_sequences)
            raise IndexError(f"wanted shard {shard}, the cache has {shards}")
        return numbers

    def _joined(self, start: int, stop: int, get: Callable[[int, int, int], np.ndarray]) -> np.ndarray:
        _, t, d = self.shape
        pieces = [get(shard, a, b) for shard, a, b in self.reader.locate(start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, t, d), np.uint16)

    def _view(self, shard: int, a: int, b: int) -> np.ndarray:
        if not self.files.codec.mapped or self.files.codec.quantised:
            return self._read(shard, a, b)
        commit = self.reader.commit(shard, self.files.spec.name)
        self.files.touch(commit, np.arange(a, b))
        return self.files.view(commit)[a:b]

    def _read(self, shard: int, a: int, b: int) -> np.ndarray:
        commit = self.reader.commit(shard, self.files.spec.name)
        if not self.files.codec.quantised:
            return self.files.read(commit, a, b)
        scale = self.reader.chunk(f"quantisation/layer_{self.layer}/scale", shard)[a:b]
        return self.files.quantiser.decode(self.files.read(commit, a, b), scale)

    def _gather(self, shard: int, local: np.ndarray) -> np.ndarray:
        t, d = self.reader.meta.context, self.reader.meta.d_model
        sequences, start = np.unique(local // t), shard * self.reader.meta.shard_sequences
        if self.files.codec.mapped and not self.files.codec.quantised:
            commit = self.reader.commit(shard, self.files.spec.name)
            self.files.touch(commit, sequences)
            rows = self.files.view(commit)
            # One memcpy a row: numpy moves opaque items whole.
            return rows.reshape(-1, d).view(f"V{2 * d}")[:, 0].take(local, mode="clip").view(np.uint16).reshape(-1, d)
        decoded = {int(i): self.bits(start + int(i), start + int(i) + 1)[0] for i in sequences}
        return np.stack([decoded[int(row // t)][row % t] for row in local])
