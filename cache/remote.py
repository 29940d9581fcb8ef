"""A cache behind any fsspec URL: whole files are staged into a local folder, checked, then mapped like local ones.

    residuals = cache.open("s3://bucket/gemma-2-2b", staging="/scratch/silo", staging_bytes=200 << 30).layer(12)

`zarr.json` and the manifest are fetched whenever the cache is opened or refreshed. Every other file is one that the
manifest names with its size and checksums: it is staged once, and no byte of it is used before all of it matched. The
staged name carries a digest of those checksums, so a cache that has changed behind its URL never meets stale files.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from cache import atomic, manifest
from cache.checksum import crc32c
from cache.errors import CacheError
from cache.folder import MAX_JSON_BYTES, Folder, parse_json
from cache.layout import DOCUMENT, MANIFEST, all_arrays
from cache.manifest import Commit, Manifest, from_hex
from cache.root import manifest_limit
from cache.schema import CacheMeta, CacheState, from_attributes
from cache.shards import check_shard
from cache.staging import Staging
from cache.store import Store

_PIECE_BYTES: Final = 8 << 20
_PIECES_AT_ONCE: Final = 8  # one connection to an object store gives some 100 MB/s; s3fs keeps ten open
_FILES_AHEAD: Final = 2


class RemoteFolder(Folder):
    """Reads as `Folder` does, from a URL. May be shared by threads, and used after a fork."""

    def __init__(
        self,
        url: str,
        *,
        staging: str | os.PathLike[str] | None = None,
        staging_bytes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Find the file system behind the URL; nothing is fetched yet.

        Args:
            url: where the cache lies, as fsspec spells it.
            staging: local folder of the copies; `~/.cache/silo/staging` (or under `$XDG_CACHE_HOME`) when not given.
            staging_bytes: most that this folder may hold, all caches together; files that are mapped may be evicted
                and then keep their disk space until the last view is gone. 64 GiB, or half of what the disk could
                give if that is less, when not given.
            storage_options: what the file system's package takes: `endpoint_url`, `anon`, `profile`, …

        Raises:
            CacheError: the package for the protocol is missing, an impossible option, or no staging folder.
        """
        self._store = Store(url, storage_options or {})
        self._staging = Staging(staging, staging_bytes)
        self.name, self.path = self._store.name, self._staging.root
        self._root = b""
        self._expected: _Expected | None = None
        self._ahead = _Ahead(os.getpid(), threading.BoundedSemaphore(_FILES_AHEAD))

    def open(self, file: str) -> int:
        """A read-only descriptor of the checked local copy of a file that the manifest names.

        Raises:
            FileNotFoundError: the manifest names no such file.
            CacheError: gone, damaged (fetched twice), not allowed, out of reach, or no room to stage it.
        """
        expected = self._expectations()
        contents = expected.contents(file)
        if contents is None:
            raise FileNotFoundError(f"{self.name}/{file} is no file that {MANIFEST} names")
        where = f"{self.name}/{file}"
        return self._staging.open(
            f"{expected.identity}/{file.replace('/c/', '.').replace('/', '.')}.{contents.digest}",
            contents.size,
            fetch=lambda descriptor: self._fetch(file, contents, descriptor),
            check=lambda descriptor: contents.check(descriptor, where),
        )

    def size(self, file: str) -> int | None:
        """Bytes of a file, None where there is none; after `walk`, as of then.

        Raises:
            CacheError: not allowed, or out of reach.
        """
        return self._store.size(_checked_name(file))

    def read(self, file: str, most: int) -> bytes:
        """A whole small file: metadata from the URL as it is now, the rest from its checked local copy.

        Raises:
            FileNotFoundError: there is none.
            CacheError: as `open`; or there is no cache here, or the file is larger than `most` bytes.
        """
        if not file.endswith(DOCUMENT) and file != MANIFEST and self._expectations().contents(file) is not None:
            return super().read(file, most)
        try:
            content = self._store.read(_checked_name(file), most)
        except FileNotFoundError as error:
            if file == DOCUMENT:
                remedy = "check the bucket, the prefix and the endpoint"
                raise CacheError(f"{self.name} is no cache, it has no {DOCUMENT} ({error}): {remedy}") from error
            if file != MANIFEST:
                raise
            self._expect(b"")
            raise
        if file == DOCUMENT:
            self._root = content
        elif file == MANIFEST:  # always read after zarr.json, so that what is expected changes with both
            self._expect(content)
        return content

    def walk(self) -> Iterator[str]:
        """Every file below the cache, sorted.

        Raises:
            CacheError: not allowed, or out of reach.
        """
        yield from self._store.walk()

    def prefetch(self, files: Iterable[str]) -> None:
        """Begin to stage files in the background, in this order; what goes wrong is told when a file is opened.

        The caller sees to it that they fit into the staging folder together with what is being read.
        """
        if self._ahead.process != os.getpid():  # a fork inherits the count, but not the threads that would lower it
            self._ahead = _Ahead(os.getpid(), threading.BoundedSemaphore(_FILES_AHEAD))
        threading.Thread(target=self._stage_ahead, args=(list(files),), name="cache-prefetch", daemon=True).start()

    def _stage_ahead(self, files: list[str]) -> None:
        for file in files:
            # RuntimeError: no thread can be started any more because the interpreter is going down.
            with self._ahead.slots, suppress(CacheError, FileNotFoundError, RuntimeError):
                os.close(self.open(file))

    def _expect(self, content: bytes) -> None:
        """What a reader has just been given is what files are held against from now on."""
        meta, state = self._described()
        known = manifest.parse(content, f"{self.name}/{MANIFEST}")[0]
        self._expected = _Expected(self.name, meta, state, known)

    def _described(self) -> tuple[CacheMeta, CacheState]:
        if not self._root:
            self.read(DOCUMENT, MAX_JSON_BYTES)
        document = parse_json(self._root, f"{self.name}/{DOCUMENT}")
        return from_attributes(document.get("attributes") if isinstance(document, dict) else None)

    def _expectations(self) -> "_Expected":
        if self._expected is None:
            with suppress(FileNotFoundError):
                self.read(MANIFEST, manifest_limit(*self._described()))
        assert self._expected is not None
        return self._expected

    def _fetch(self, file: str, contents: "_Contents", descriptor: int) -> None:
        """Fill a descriptor with a file; what arrives damaged is fetched once more."""
        where = f"{self.name}/{file}"
        for last in (False, True):
            try:
                self._download(file, contents.size, descriptor)
                contents.check(descriptor, where)
                return
            except FileNotFoundError as error:
                raise CacheError(f"{where} is missing, though {MANIFEST} names it: upload the cache again") from error
            except _DamagedError as error:
                if last:
                    remedy = "upload the file again; if the cache was rewritten, open it again"
                    raise CacheError(f"{error} (fetched twice): {remedy}") from error

    def _download(self, file: str, size: int, descriptor: int) -> None:
        """Pieces in parallel, each asked for again on its own when the network fails."""

        def piece(start: int) -> None:
            stop = min(start + _PIECE_BYTES, size)
            # One byte beyond the end: a longer object must not pass for this one.
            content = self._store.range(file, start, stop + (stop == size))
            if len(content) != stop - start:
                raise _DamagedError(f"{self.name}/{file} has not the {size:,} bytes that the manifest says")
            atomic.write_all(descriptor, content, start)

        if size <= _PIECE_BYTES:
            piece(0)
            return
        with ThreadPoolExecutor(max_workers=_PIECES_AT_ONCE, thread_name_prefix="cache-stage") as pool:
            pieces = [pool.submit(piece, start) for start in range(0, size, _PIECE_BYTES)]
            try:
                for one in pieces:
                    one.result()
            finally:
                for one in pieces:
                    one.cancel()
                wait(pieces)  # none may write to the descriptor once it is closed


def folder_at(
    path: str,
    *,
    staging: str | os.PathLike[str] | None = None,
    staging_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Folder:
    """The files of a cache, wherever it lies; the options are those of `RemoteFolder` and mean nothing to a local one.

    Raises:
        CacheError: a URL that cannot be read here.
    """
    if "://" not in path:
        return Folder(path)
    return RemoteFolder(path, staging=staging, staging_bytes=staging_bytes, storage_options=storage_options)


class _Ahead(NamedTuple):
    """How many files one process stages ahead at a time."""

    process: int
    slots: threading.BoundedSemaphore


class _DamagedError(CacheError):
    """What arrived is not what the manifest says."""


@dataclass(frozen=True)
class _Contents:
    """What one file must be: pieces one behind the other, each with its checksum, then perhaps the index of a shard."""

    lengths: np.ndarray
    crc32c: np.ndarray
    slots: int
    """Slots of the index; 0: there is none."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.lengths.sum()) + (16 * self.slots + 4 if self.slots else 0)

    @cached_property
    def digest(self) -> str:
        """16 hex digits; equal for equal contents."""
        described = (self.lengths.astype("<u8"), self.crc32c.astype("<u4"), np.array([self.slots], "<u8"))
        return hashlib.sha256(b"".join(array.tobytes() for array in described)).hexdigest()[:16]

    def check(self, descriptor: int, where: str) -> None:
        """Hold a whole file against this.

        Raises:
            _DamagedError: size, index or a checksum differ.
        """
        try:
            if self.slots:
                check_shard(descriptor, self.lengths, self.slots, where)
            elif (size := os.fstat(descriptor).st_size) != self.size:
                raise CacheError(f"{where} has {size:,} bytes, wanted {self.size:,}")
        except CacheError as error:
            raise _DamagedError(str(error)) from error
        start = 0
        for number, (length, wanted) in enumerate(zip(self.lengths.tolist(), self.crc32c.tolist(), strict=True)):
            if crc32c(os.pread(descriptor, length, start)) != wanted:
                raise _DamagedError(f"{where}: item {number} does not match its checksum")
            start += length


class _Expected:
    """What the manifest says of every file."""

    def __init__(self, name: str, meta: CacheMeta, state: CacheState, known: Manifest) -> None:
        self.meta, self.known = meta, known
        # The address is part of it: checksums are no proof against a stranger who forges a file for another's cache.
        self.identity = hashlib.sha256(f"{name}\n{meta.fingerprint}".encode()).hexdigest()[:32]
        self.arrays = all_arrays(meta, state)
        self.contents = lru_cache(maxsize=1024)(self._contents)

    def _contents(self, file: str) -> _Contents | None:
        """None for a file that the manifest does not name."""
        name, _, place = file.partition("/c/")
        shard = place.partition("/")[0]
        if name not in self.arrays or not shard.isdecimal() or self.arrays[name].file(int(shard)) != file:
            return None
        spec = self.arrays[name]
        if spec.kind == "static":
            digits = self.known.static.get(name)
            return None if digits is None else _Contents(np.array([spec.chunk_bytes]), from_hex(digits), 0)
        commit = self.known.commits.get(int(shard))
        if commit is None or name not in commit.crc32c:
            return None
        if spec.kind != "residuals":
            return _Contents(np.array([spec.chunk_bytes]), commit.checksums(name), 0)
        lengths, checksums = commit.lengths(name, spec.item_bytes), _stored_checksums(commit, name)
        if len(lengths) != len(checksums) or len(lengths) > self.meta.shard_sequences:
            raise CacheError(f"{MANIFEST}: shard {shard} of {name} does not fit zarr.json: damaged; restore it")
        return _Contents(lengths, checksums, self.meta.shard_sequences)


def _stored_checksums(commit: Commit, name: str) -> np.ndarray:
    """Of the bytes as they lie in the file: a compressed shard has checksums of both."""
    return from_hex(commit.stored[name].crc32c) if name in commit.stored else commit.checksums(name)


def _checked_name(file: str) -> str:
    """A name that cannot leave the cache; local names are made of nothing but array names and numbers of shards."""
    if {"", ".", ".."} & set(file.split("/")):
        raise CacheError(f"{file!r} is no name of a file in a cache: refused")
    return file
