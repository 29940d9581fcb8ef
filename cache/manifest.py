"""`manifest.jsonl`: what has been committed, one line a shard, each line proof against a torn or edited byte.

A line is appended after the shard's files have been renamed into place; a file that no line names does not exist for
any reader. Every line ends with the crc32c of what stands before it, so a torn append is recognised as such.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt32, UInt64

from cache.checksum import canonical, crc32c
from cache.errors import CacheError
from cache.folder import Folder, parse_json
from cache.layout import MANIFEST, PARTIAL

MAX_CURSOR_BYTES: Final = 1 << 16
LAYER: Final = re.compile("layer_(0|[1-9][0-9]{0,3})")
_MAX_LINE: Final = 1 << 28
_GENEROUS: Final = 1 << 26
_END: Final = re.compile(rb',"crc32c":"([0-9a-f]{8})"\}')
_END_BYTES: Final = len(b',"crc32c":"01234567"}')


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How the sequences of a compressed shard lie on disk."""

    lengths: tuple[int, ...]
    crc32c: str
    """8 hex digits a sequence, of the stored bytes."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One shard's line; arrays that were added later come in lines of their own and are merged."""

    shard: int
    sequences: int
    crc32c: Mapping[str, str]
    """Array name → 8 hex digits: one checksum a sequence for `residuals` (of the decoded bytes), one a chunk else."""
    stored: Mapping[str, Stored] = field(default_factory=dict)
    cursor: Mapping[str, Any] = field(default_factory=dict)
    """Where the harvest's text stream stood after this shard; opaque to the cache."""

    def checksums(self, array: str) -> UInt32[np.ndarray, " n"]:
        """Checksums of an array's sequences (or of its one chunk)."""
        return from_hex(self.crc32c[array])

    def lengths(self, array: str, sequence_bytes: int) -> UInt64[np.ndarray, " n"]:
        """Stored bytes of each sequence of a `residuals` array."""
        if array in self.stored:
            return np.array(self.stored[array].lengths, np.uint64)
        return np.full(self.sequences, sequence_bytes, np.uint64)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All committed shards, and the checksums of the arrays written on completion."""

    commits: Mapping[int, Commit]
    static: Mapping[str, str]

    def has(self, shard: int, array: str) -> bool:
        """Whether a shard of an array has been committed."""
        return shard in self.commits and array in self.commits[shard].crc32c

    @property
    def layers(self) -> set[int]:
        """Layers of which something is committed, also those that were begun and set aside."""
        names = {name for commit in self.commits.values() for name in commit.crc32c}
        return {int(found[1]) for name in names if (found := LAYER.fullmatch(name))}

    def content(self) -> bytes:
        """The canonical file: shards in order, one line each, then the static arrays by name."""
        lines = [commit_line(self.commits[shard]) for shard in sorted(self.commits)]
        return b"".join(lines + [_line({"array": name, "value": self.static[name]}) for name in sorted(self.static)])


def to_hex(checksums: UInt32[np.ndarray, " n"]) -> str:
    """8 hex digits a checksum, one behind the other."""
    return checksums.astype(">u4").tobytes().hex()


def from_hex(digits: str) -> UInt32[np.ndarray, " n"]:
    """The inverse of `to_hex`."""
    return np.frombuffer(bytes.fromhex(digits), ">u4").astype(np.uint32)


def commit_line(commit: Commit) -> bytes:
    """The line of one commit.

    Raises:
        ValueError: a cursor that is no JSON or larger than 64 KiB; it is meant for a few integers.
    """
    body: dict[str, Any] = {"shard": commit.shard, "sequences": commit.sequences, "arrays": dict(commit.crc32c)}
    if commit.stored:
        body["stored"] = {name: {"lengths": s.lengths, "crc32c": s.crc32c} for name, s in commit.stored.items()}
    if commit.cursor:
        body["cursor"] = dict(commit.cursor)
        if not _is_cursor(body["cursor"]):
            raise ValueError(f"a cursor must be a JSON object of at most {MAX_CURSOR_BYTES} bytes")
    return _line(body)


def parse(content: bytes, where: str) -> tuple[Manifest, int]:
    """Read a manifest's bytes; also how many of them are whole lines (the rest is a torn append).

    Raises:
        CacheError: naming the line that is damaged or contradicts another.
    """
    whole = content.rfind(b"\n") + 1
    commits: dict[int, Commit] = {}
    static: dict[str, str] = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        place = f"{where} line {number}"
        body = _parse_line(line, place)
        if "shard" in body:
            commit = _commit(body, place)
            commits[commit.shard] = _joined(commits.get(commit.shard), commit, place)
        else:
            if body.keys() != {"array", "value"} or not isinstance(body["array"], str) or not _is_hex(body["value"], 1):
                raise CacheError(f"{place} has unknown content: damaged; delete the line and harvest again")
            static[body["array"]] = body["value"]
    return Manifest(commits=commits, static=static), whole


def load(folder: Folder, most: int) -> tuple[Manifest, int, bytes]:
    """The manifest of a cache: parsed, the number of bytes in whole lines, and its raw content.

    Raises:
        CacheError: missing or damaged.
    """
    if most > _GENEROUS:  # a stranger's metadata may speak of terabytes, and a read sets aside what it may get
        most = min(most, (folder.size(MANIFEST) or 0) + _GENEROUS)
    try:
        content = folder.read(MANIFEST, most)
    except FileNotFoundError:
        content = b""
    manifest, whole = parse(content, f"{folder.name}/{MANIFEST}")
    return manifest, whole, content


def append(root: Path, commit: Commit, *, sync: bool) -> None:
    """Add a line: the moment at which a shard begins to exist.

    Several processes may append: the file is locked for the time of the write, and a line torn by one that died is cut
    off first, so that no later line is glued to it.
    """
    descriptor = os.open(root / MANIFEST, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = _whole_bytes(descriptor)
        if end != os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
        line, done = commit_line(commit), 0
        while done < len(line):
            done += os.pwrite(descriptor, line[done:], end + done)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_partials(root: Path) -> list[Path]:
    """Remove files that a killed writer left unfinished; returns them."""
    found = [path for path in root.rglob(f"*{PARTIAL}") if path.is_file() or path.is_symlink()]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def without(manifest: Manifest, drop: Iterable[tuple[int, str]]) -> Manifest:
    """The manifest less some (shard, array) pairs, and without static arrays: they describe the whole."""
    gone = set(drop)
    commits: dict[int, Commit] = {}
    for shard, commit in manifest.commits.items():
        kept = {name: digits for name, digits in commit.crc32c.items() if (shard, name) not in gone}
        stored = {name: value for name, value in commit.stored.items() if name in kept}
        if kept:
            one = Commit(shard=shard, sequences=commit.sequences, crc32c=kept, stored=stored, cursor=commit.cursor)
            commits[shard] = one
    return Manifest(commits=commits, static={})


def _line(body: Mapping[str, Any]) -> bytes:
    text = canonical(body)[:-1]  # sorted keys would put the checksum first; it must close the line
    return text + b',"crc32c":"%08x"}\n' % crc32c(text)


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    remedy = "delete the line: the next harvest writes that shard again"
    end = _END.fullmatch(line[-_END_BYTES:])
    text = line[:-_END_BYTES]
    if len(line) > _MAX_LINE or end is None or b"%08x" % crc32c(text) != end[1]:
        raise CacheError(f"{place} does not match its own checksum: damaged or edited; {remedy}")
    body = parse_json(text + b"}", place)
    if not isinstance(body, dict):
        raise CacheError(f"{place} is no JSON object: damaged; {remedy}")
    return body


def _commit(body: dict[str, Any], place: str) -> Commit:
    shard, n, arrays = (body.get(name) for name in ("shard", "sequences", "arrays"))
    known = {"shard", "sequences", "arrays", "stored", "cursor"}
    good = (
        body.keys() <= known
        and all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**40 for x in (shard, n))
        and n != 0
        and isinstance(arrays, dict)
        and all(_is_hex(digits) for digits in arrays.values())
        and isinstance(body.get("stored", {}), dict)
        and _is_cursor(body.get("cursor", {}))
    )
    if not good or not isinstance(shard, int) or not isinstance(n, int) or not isinstance(arrays, dict):
        raise CacheError(f"{place} has unknown content: written by another version? upgrade silo-sae")
    stored = {name: _stored(value, arrays, name, place) for name, value in body.get("stored", {}).items()}
    return Commit(shard=shard, sequences=n, crc32c=arrays, stored=stored, cursor=body.get("cursor", {}))


def _stored(value: Any, arrays: dict[str, str], name: str, place: str) -> Stored:
    good = isinstance(value, dict) and value.keys() == {"lengths", "crc32c"} and isinstance(value["lengths"], list)
    if not good or name not in arrays or len(arrays[name]) != 8 * len(value["lengths"]):
        raise CacheError(f"{place}: stored lengths of {name!r} do not fit: damaged; delete the line and harvest again")
    lengths = value["lengths"]
    if not all(isinstance(x, int) and 0 <= x < 2**31 for x in lengths) or not _is_hex(value["crc32c"], len(lengths)):
        raise CacheError(f"{place}: stored lengths of {name!r} are impossible: damaged; delete the line")
    return Stored(lengths=tuple(lengths), crc32c=value["crc32c"])


def _joined(old: Commit | None, new: Commit, place: str) -> Commit:
    if old is None:
        return new
    clash = [name for name in new.crc32c if old.crc32c.get(name, new.crc32c[name]) != new.crc32c[name]]
    if clash or old.sequences != new.sequences:
        what = f"{clash[0]!r} of shard {new.shard}" if clash else f"the length of shard {new.shard}"
        raise CacheError(f"{place} contradicts an earlier line about {what}: verify the cache, delete the wrong line")
    return Commit(
        shard=new.shard,
        sequences=new.sequences,
        crc32c={**old.crc32c, **new.crc32c},
        stored={**old.stored, **new.stored},
        cursor=old.cursor or new.cursor,
    )


def _is_cursor(value: Any) -> bool:
    try:
        return isinstance(value, dict) and len(canonical(value)) <= MAX_CURSOR_BYTES
    except (TypeError, ValueError, RecursionError):  # no JSON; infinity, which 1e999 reads as; lists in lists in lists
        return False


def _is_hex(digits: Any, count: int | None = None) -> bool:
    good = isinstance(digits, str) and bool(digits) and len(digits) % 8 == 0
    return good and (count is None or len(digits) == 8 * count) and re.fullmatch("[0-9a-f]*", digits) is not None


def _whole_bytes(descriptor: int) -> int:
    """Bytes up to and with the last newline."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - (1 << 16))
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
