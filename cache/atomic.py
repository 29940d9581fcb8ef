"""Files that appear whole or not at all, and stay after a power loss.

Order: temporary file → fsync → rename → fsync of every folder whose entries changed. Without the first fsync a rename
can survive a power loss that the bytes did not.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.errors import CacheError
from cache.layout import PARTIAL


def partial_path(path: Path) -> Path:
    """A temporary name beside a file, of this process alone."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def write_file(root: Path, file: str, content: bytes, *, sync: bool) -> None:
    """Write or replace a small file of a cache, atomically."""
    path = root / file
    make_parents(root, path)
    temporary = partial_path(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, content, 0)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, path)
    if sync:
        sync_folders(root, [path])


def make_parents(root: Path, path: Path) -> None:
    """Make the folders that a file of the cache lies in.

    Raises:
        CacheError: one of them is a link out of the cache: nothing is written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    inside, real = os.path.realpath(root), os.path.realpath(path.parent)
    if os.path.commonpath([inside, real]) != inside:
        raise CacheError(f"{path.parent} leads out of the cache to {real}: refused; remove the link")


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """`pwrite` until everything is written; one call may write less than asked."""
    view = memoryview(content).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def sync_folders(root: Path, paths: Iterable[Path]) -> None:
    """fsync every folder between these files and the cache's own, so that the names survive."""
    folders: set[Path] = set()
    for path in paths:
        folder = path.parent
        while folder not in folders and (folder == root or root in folder.parents):
            folders.add(folder)
            folder = folder.parent
    for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn a full or failing disk into the error that says so."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free space (or raise the quota)" if full else "check the disk and its permissions"
        why = f"{path}: {error.strerror or error} while writing; everything committed is safe"
        raise CacheError(f"{why}: {remedy} and run the same command again") from error
