"""Open a cache and read it: committed, checked sequences, as views of the files where the codec allows.

    import cache

    residuals = cache.open("caches/gemma-2-2b").layer(12)
    x = residuals.sequences(0, 64)  # torch.bfloat16 [64, T, D]

Shapes: N sequences, T positions, D d_model, S sequences a shard.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from cache import commits, manifest
from cache.checksum import hex_digits
from cache.errors import CacheError
from cache.folder import Folder
from cache.layer_reader import LayerReader
from cache.layout import MANIFEST, all_arrays, merged_arrays, row_arrays
from cache.manifest import Commit, Manifest
from cache.root import manifest_limit, read_root
from cache.schema import CacheMeta, CacheState
from cache.statistics import MERGED_FIELDS, LayerStatistics, merge

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
            return read_root(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise CacheError(
                f"{self.folder.name} is no cache (it has no zarr.json): check the path, or make one with"
                f" `make harvest LAYER=12 CACHE={self.folder.name}`"
            ) from None

    def _load(self) -> Manifest:
        known, _, content = manifest.load(self.folder, manifest_limit(self.meta, self.state))
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
    def set_aside(self) -> dict[int, int]:
        """Layers that were begun and are no part of the cache: how many shards of each are kept for whoever goes on."""
        committed = self.manifest.commits.values()
        aside = sorted(self.manifest.layers - set(self.layers))
        return {layer: sum(f"layer_{layer}" in commit.crc32c for commit in committed) for layer in aside}

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

    def layer(self, layer: int) -> LayerReader:
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
