"""Hold every byte of a cache against what it must be.

Nothing is left to chance: payloads and small chunks have checksums in the manifest, the manifest's own checksum stands
in the group's attributes, the attributes carry a checksum of themselves, shard indices and array metadata are functions
of what has been checked by then, and no other file may be there.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from cache import bf16, commits, finish, manifest
from cache.checksum import crc32c, hex_digits
from cache.errors import CacheError
from cache.folder import MAX_JSON_BYTES, Folder
from cache.layer_files import LayerFiles
from cache.layout import LOCK, MANIFEST, ArraySpec, all_arrays, documents
from cache.lock import WriterLock
from cache.manifest import Commit, Manifest
from cache.prepare import reopen
from cache.request import whole_units
from cache.root import manifest_limit, read_root
from cache.schema import CacheMeta, CacheState
from cache.statistics import merge

_BLOCK_BYTES: Final = 16 << 20  # what one thread maps at a time: enough to amortise, small enough to balance


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    file: str
    what: str
    shard: int | None = None
    """The shard to write again, where that is the remedy."""
    array: str = ""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.file}: {self.what}"


class Verification:
    """One run over a cache; `findings` fills while `run` goes on."""

    def __init__(self, folder: Folder) -> None:
        """Point at a cache; nothing is read yet."""
        self.folder = folder
        self.findings: list[Finding] = []
        self.total_bytes = 0
        """Payload to be read, known once `run` has begun."""

    def run(
        self, progress: Callable[[int], object] = lambda nbytes: None, begin: Callable[[int], object] | None = None
    ) -> list[Finding]:
        """Check everything.

        Args:
            progress: told the number of payload bytes after each block.
            begin: told the total before the first.
        """
        try:
            meta, state = read_root(self.folder)
            known, whole, content = manifest.load(self.folder, manifest_limit(meta, state))
        except FileNotFoundError:
            return self._found("zarr.json", "is missing: this is no cache, or it has lost its root; restore the file")
        except CacheError as error:
            return self._found("zarr.json or manifest.jsonl", str(error))
        self._metadata(meta, state, known, whole, content)
        try:
            known = commits.consistent(self.folder.name, meta, state, known)
        except CacheError as error:
            return self._found(MANIFEST, str(error))
        if begin:
            begin(sum(_payload_bytes(meta, commit) for commit in known.commits.values()))
        self._small_chunks(meta, state, known)
        self._payload(meta, state, known, progress)
        self._statistics(meta, state, known)
        self._extra_files(meta, state, known)
        return self.findings

    def _metadata(self, meta: CacheMeta, state: CacheState, known: Manifest, whole: int, content: bytes) -> None:
        if whole != len(content):
            self._found(MANIFEST, f"ends in a torn line of {len(content) - whole} bytes: the next harvest cuts it off")
        if state.complete and hex_digits(content) != state.manifest_crc32c:
            self._found(MANIFEST, "is not the one the cache was completed with: restore it from a copy")
        if not state.complete:
            self._found("zarr.json", "the cache is not complete: run the same harvest again")
        try:
            commits.check_all_committed(self.folder.name, meta, state, known)
        except CacheError as error:
            self._found(MANIFEST, str(error))
        for file, wanted in documents(meta, state):
            try:
                found = self.folder.read(file, MAX_JSON_BYTES)
            except FileNotFoundError:
                found = b""
            except CacheError as error:
                self._found(file, str(error))
                continue
            if found != wanted:
                self._found(
                    file, "is missing" if not found else "is not what the cache's own description demands: edited"
                )

    def _small_chunks(self, meta: CacheMeta, state: CacheState, known: Manifest) -> None:
        splits: dict[int, int] = {}
        arrays = commits.committed_arrays(meta, state, known)
        for shard, commit in known.commits.items():
            chunks: dict[str, np.ndarray] = {}
            for name, spec in arrays.items():
                if spec.kind in ("rows", "partial") and name in commit.crc32c:
                    content = self._chunk(spec, shard, commit.crc32c[name])
                    if content is not None:
                        chunks[name] = np.frombuffer(content, spec.dtype).reshape(spec.chunk)[: commit.sequences]
            if chunks.keys() >= {"tokens", "document", "split"}:
                for what in _contradictions(chunks, splits):
                    self._found(f"shard {shard}", what, shard, "document")
        for name, spec in all_arrays(meta, state).items():
            if spec.kind == "static" and name in known.static:
                self._chunk(spec, None, known.static[name])

    def _chunk(self, spec: ArraySpec, shard: int | None, digits: str) -> bytes | None:
        try:
            return commits.read_chunk(self.folder, spec.file(shard or 0), spec.chunk_bytes, digits)
        except CacheError as error:
            self._found(spec.file(shard or 0), str(error), shard, spec.name)
            return None

    def _payload(self, meta: CacheMeta, state: CacheState, known: Manifest, progress: Callable[[int], object]) -> None:
        step = max(1, _BLOCK_BYTES // meta.sequence_bytes)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            waiting: list[tuple[int, Future[list[Finding]]]] = []
            for layer in sorted({*state.layers, *known.layers}):
                files = LayerFiles(self.folder, meta, state, layer, verify=False)
                for shard in sorted(known.commits):
                    commit = known.commits[shard]
                    if files.spec.name not in commit.crc32c:
                        continue
                    if not self._opens(files, commit):
                        progress(commit.sequences * meta.sequence_bytes)
                        continue
                    for a in range(0, commit.sequences, step):
                        b = min(a + step, commit.sequences)
                        waiting.append(((b - a) * meta.sequence_bytes, pool.submit(_block, files, commit, a, b)))
                        if len(waiting) >= 16:
                            self._collect(waiting.pop(0), progress)
            for one in waiting:
                self._collect(one, progress)

    def _collect(self, one: tuple[int, Future[list[Finding]]], progress: Callable[[int], object]) -> None:
        nbytes, future = one
        self.findings += future.result()
        progress(nbytes)

    def _opens(self, files: LayerFiles, commit: Commit) -> bool:
        try:
            os.close(files.open(commit))
        except CacheError as error:
            self._found(files.spec.file(commit.shard), str(error), commit.shard, files.spec.name)
            return False
        return True

    def _statistics(self, meta: CacheMeta, state: CacheState, known: Manifest) -> None:
        if not state.complete or self.findings:
            return  # the merged statistics follow from chunks that must be whole first
        for layer in state.layers:
            partials = commits.read_partials(self.folder, meta, state, known, layer)
            merged = merge(partials, meta.context, meta.d_model)
            for name, content in finish.merged_files(meta, layer, merged):
                spec = all_arrays(meta, state)[name]
                if self.folder.read(spec.file(), spec.chunk_bytes) != content:
                    self._found(spec.file(), "is not the sum of the shards' statistics: run the same harvest again")

    def _extra_files(self, meta: CacheMeta, state: CacheState, known: Manifest) -> None:
        wanted = {file for file, _ in documents(meta, state)} | {MANIFEST, LOCK}
        for name, spec in commits.committed_arrays(meta, state, known).items():
            if spec.kind == "static":
                wanted.add(spec.file())
            else:
                wanted |= {spec.file(shard) for shard in known.commits if known.has(shard, name)}
        for file in self.folder.walk():
            if file not in wanted:
                self._found(file, "is not part of this cache: remove it")

    def _found(self, file: str, what: str, shard: int | None = None, array: str = "") -> list[Finding]:
        what = what.removeprefix(f"{self.folder.name}/{file} ").removeprefix(f"{self.folder.name}/{file}: ")
        self.findings.append(Finding(file=file, what=what, shard=shard, array=array))
        return self.findings


def drop_damaged(path: Path, findings: list[Finding]) -> list[int]:
    """Take damaged shards out of the manifest, so that the next harvest writes them again; returns their numbers.

    Raises:
        CacheError: a harvest is writing the cache; its metadata itself is damaged.
    """
    pairs = {(finding.shard, finding.array) for finding in findings if finding.shard is not None}
    if not pairs:
        return []
    lock = WriterLock(path)
    try:
        meta, state = read_root(Folder(path))
        known = manifest.load(Folder(path), manifest_limit(meta, state))[0]
        pairs_of_units = whole_units(known, {(shard, array) for shard, array in pairs if shard is not None})
        reopen(path, meta, replace(state, complete=False, manifest_crc32c=""), manifest.without(known, pairs_of_units))
    finally:
        lock.close()
    return sorted({shard for shard, _ in pairs_of_units})


def _payload_bytes(meta: CacheMeta, commit: Commit) -> int:
    return commit.sequences * meta.sequence_bytes * sum(name.startswith("layer_") for name in commit.crc32c)


def _block(files: LayerFiles, commit: Commit, a: int, b: int) -> list[Finding]:
    """Checksum and finiteness of sequences [a, b) of a shard."""
    file, name, wanted = files.spec.file(commit.shard), files.spec.name, commit.checksums(files.spec.name)
    found = []
    for number, sequence in _sequences(files, commit, a, b):
        if isinstance(sequence, CacheError):
            what = str(sequence)
        elif crc32c(sequence) != wanted[number]:
            what = f"sequence {number} of the shard does not match its checksum: damaged"
        elif sequence.dtype == np.uint16 and bf16.has_nonfinite(sequence):
            rows = np.flatnonzero(~np.isfinite(bf16.to_float32(sequence)).all(-1))
            what = f"sequence {number} of the shard is NaN or infinite at positions {rows.tolist()[:8]}"
        else:
            continue
        found.append(Finding(file=file, what=what, shard=commit.shard, array=name))
    return found


def _sequences(files: LayerFiles, commit: Commit, a: int, b: int) -> Iterator[tuple[int, np.ndarray | CacheError]]:
    if files.codec.mapped:
        # Read rather than mapped: one sequence fits into a core's cache, where both checks then find it.
        sequence = np.empty(files.spec.chunk[1:], files.spec.dtype)
        descriptor = files.open(commit)
        try:
            for number in range(a, b):
                found = os.preadv(descriptor, [sequence.reshape(-1).view(np.uint8).data], number * sequence.nbytes)
                yield number, sequence if found == sequence.nbytes else CacheError("ends too early: torn")
        finally:
            os.close(descriptor)
        return
    for number in range(a, b):
        try:
            yield number, files.read(commit, number, number + 1)[0]
        except CacheError as error:
            yield number, error


def _contradictions(chunks: dict[str, np.ndarray], splits: dict[int, int]) -> Iterator[str]:
    """What tokens, documents and splits of a shard say against each other, and against earlier shards."""
    document, split = chunks["document"], chunks["split"]
    if not np.isin(split, (0, 1)).all():
        yield "split has values other than 0 (train) and 1 (held-out)"
    if (chunks["tokens"][document >= 0] < 0).any():
        yield "tokens has negative ids inside a document"
    member = document >= 0
    keys = (document.astype(np.int64) * 2 + split[:, None])[member]
    keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]  # documents come in runs: few keys are left to sort
    leaked = sorted({key // 2 for key in np.unique(keys).tolist() if splits.setdefault(key // 2, key % 2) != key % 2})
    if leaked:
        yield f"documents {leaked[:8]} are in both the train and the held-out split"
