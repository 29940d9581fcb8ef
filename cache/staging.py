"""A local folder of bounded size that holds copies of remote files, shared by threads and processes.

    <staging>/.lock                              total of all sizes; locked while room is made
    <staging>/<cache>/<array>.<shard>.<digest>   a whole file; its name says what is in it, so it never gets stale
    <staging>/<cache>/….partial                  a file on its way, locked by the thread that fetches it

Locks are `flock`: the kernel releases them however their owner ends. Every file is opened before it is handed out, so
evicting or replacing it takes nothing from those who read it: POSIX keeps the bytes until the last descriptor and the
last mapping are gone.
"""

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cache.errors import CacheError
from cache.folder import Folder
from cache.layout import LOCK, PARTIAL

DEFAULT_BYTES: Final = 64 << 30
_POLL_SECONDS: Final = 0.02
_IN_USE: Final = 2**63  # later than any time: a file that is being fetched is never evicted
# Nothing else is ever removed, whatever folder somebody names as the staging folder.
_CACHE_NAME: Final = re.compile(r"[0-9a-f]{32}")
_FILE_NAME: Final = re.compile(r"[a-z0-9_.]+\.[0-9a-f]{16}(\.partial)?")

Action = Callable[[int], None]  # takes a descriptor


class Staging:
    """Hands out descriptors of local copies, fetching what is missing and evicting what was used longest ago."""

    def __init__(self, root: str | os.PathLike[str] | None = None, most: int | None = None) -> None:
        """Make the folder.

        Args:
            root: `$XDG_CACHE_HOME/silo/staging` or `~/.cache/silo/staging` when not given.
            most: bytes that the folder may hold, of all caches together; when not given 64 GiB, or half of what the
                disk could give it if that is less.

        Raises:
            CacheError: no such folder can be made, or an impossible size.
        """
        self.root = Path(root) if root is not None else _default_root()
        if most is not None and most < 1:
            raise CacheError(f"staging_bytes must be a positive number of bytes, got {most}")
        with self._explaining():
            self.root.mkdir(parents=True, exist_ok=True)
            if most is None:
                held = sum(size for _, size, _ in self._scan())
                most = min(DEFAULT_BYTES, (shutil.disk_usage(self.root).free + held) // 2)
        self.most = most
        self._good: dict[str, tuple[int, int, int]] = {}

    def open(self, name: str, size: int, *, fetch: Action, check: Action) -> int:
        """A read-only descriptor of a local copy, to be closed by the caller.

        Args:
            name: `<cache>/<file>` within the folder; equal names must mean equal contents.
            size: bytes of the file.
            fetch: fills a descriptor with the file's bytes, checked; whatever it raises is passed on.
            check: raises a CacheError for a copy that an earlier process left damaged; asked once a process.

        Raises:
            CacheError: larger than the whole folder may be, or the disk is full.
        """
        if size > self.most:
            raise CacheError(
                f"{name.rsplit('/', 1)[1]} has {size:,} bytes, but {self.root} may hold only {self.most:,}:"
                " raise staging_bytes, or `repack` the cache into smaller shards"
            )
        with self._explaining():
            while True:
                descriptor = self._staged(name, check)
                if descriptor is None:
                    descriptor = self._fetched(name, size, fetch)
                if descriptor is not None:
                    return descriptor

    def _staged(self, name: str, check: Action) -> int | None:
        """A copy that is there and good; one that is not good is dropped."""
        try:
            descriptor = Folder(self.root).open(name)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._good.get(name) != stamp:
                check(descriptor)
                self._good[name] = stamp
            with suppress(PermissionError):  # another user's file: only its owner may say when it was used
                # The time of modification stays: readers tell by it whether they have checked this very file.
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        except CacheError:
            os.close(descriptor)
            (self.root / name).unlink(missing_ok=True)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _fetched(self, name: str, size: int, fetch: Action) -> int | None:
        """Fetch a file, alone among all threads and processes; None when another has come first."""
        path = self.root / name
        with self._turn(path) as partial:
            if partial is None or path.exists():
                return None
            self._reserve(partial, size)
            fetch(partial)
            # Opened before it gets its name: from then on others may evict it.
            descriptor = os.open(_partial(path), os.O_RDONLY | os.O_CLOEXEC)
            with self._locked():  # whoever counts must see it under one name or the other
                os.rename(_partial(path), path)
            status = os.fstat(descriptor)
            self._good[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
            return descriptor

    @contextmanager
    def _turn(self, path: Path) -> Iterator[int | None]:
        """The file's empty partial, locked; None when the wait for it ended with the file fetched or given up."""
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(_partial(path), flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _same_file(descriptor, _partial(path)):
                yield None
                return
            os.ftruncate(descriptor, 0)  # what a killed process left; complete files have another name
            try:
                yield descriptor
            finally:
                if _same_file(descriptor, _partial(path)):
                    _partial(path).unlink()
        finally:
            _release(descriptor)

    def _reserve(self, partial: int, size: int) -> None:
        """Make room and take it, waiting while files that others are fetching fill the folder.

        Those others need no more room than they have, so they end, and then theirs can be evicted.
        """
        while True:
            with self._locked() as ledger:
                if self._has_room(ledger, size):
                    os.ftruncate(partial, size)
                    return
            time.sleep(_POLL_SECONDS)

    def _has_room(self, ledger: int, size: int) -> bool:
        """Whether `size` bytes more fit, perhaps by evicting; then they are counted.

        The count spares a scan of the folder for each small file. It only errs upwards (a fetch that failed, a file
        that somebody removed), and then a scan sets it right.
        """
        count = os.pread(ledger, 32, 0)
        used = int(count) if count.isdigit() else self.most
        if used + size > self.most:
            used = self._evict(self.most - size)
        fits = used + size <= self.most
        count = b"%d" % (used + size if fits else used)
        os.ftruncate(ledger, 0)
        os.pwrite(ledger, count, 0)
        return fits

    def _evict(self, target: int) -> int:
        """Remove what was used longest ago until at most `target` bytes are left; returns how many are."""
        files = sorted(self._scan())
        used = sum(size for _, size, _ in files)
        for last_use, size, path in files:
            if used > target and last_use != _IN_USE:
                path.unlink(missing_ok=True)
                used -= size
        return used

    def _scan(self) -> Iterator[tuple[int, int, Path]]:
        """Last use (ns), size and path of each copy; partials of dead processes are removed."""
        for folder in os.scandir(self.root):
            if not _CACHE_NAME.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder):
                if not _FILE_NAME.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                    continue
                with suppress(FileNotFoundError):  # fetched or dropped in between
                    status, path = os.stat(entry.path), Path(entry.path)
                    if not entry.name.endswith(PARTIAL):
                        yield status.st_atime_ns, status.st_size, path
                    elif not _remove_abandoned(path):
                        yield _IN_USE, status.st_size, path

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file with the total, locked."""
        ledger = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            yield ledger
        finally:
            _release(ledger)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free space, or lower staging_bytes" if full else "name another folder with staging="
            raise CacheError(f"staging folder {self.root}: {error.strerror or error}: {remedy}") from error


def _default_root() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative values ignored.
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "silo" / "staging"


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove_abandoned(partial: Path) -> bool:
    """Remove a partial whose owner has died; one that is being fetched is locked."""
    descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same_file(descriptor, partial):  # else it has just become a complete file
            partial.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        _release(descriptor)


def _release(descriptor: int) -> None:
    """Unlock and close; closing alone would leave the lock to a process forked in between."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
