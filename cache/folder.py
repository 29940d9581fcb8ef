"""Files of a cache, opened without trusting what the folder holds.

Nothing outside the cache is ever opened (no `..`, no symlink that leaves), nothing that could block or lie about its
size is read (regular files only), and every metadata file has a greatest size.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from cache.errors import CacheError

MAX_JSON_BYTES: Final = 4 << 20
_REMEMBERED: Final = 1 << 16


class Folder:
    """A cache on a local disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Point at a folder; it is looked at when a file is asked for."""
        self.path = Path(path)
        self._real: dict[str, str] = {}  # looking at every part of a path again costs more than opening the file
        self.name = str(path)

    def open(self, file: str) -> int:
        """A read-only descriptor of a regular file inside the cache, to be closed by the caller.

        Raises:
            FileNotFoundError: there is none.
            CacheError: it is a link out of the cache, no regular file, or not readable.
        """
        path = self._inside(file)
        try:
            descriptor = os.open(
                path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            )  # non-blocking: a FIFO must not hang us
        except NotADirectoryError as error:  # part of the path is a file
            raise FileNotFoundError(error.errno, error.strerror, path) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            remedy = " raise the limit with `ulimit -n`" if error.errno == errno.EMFILE else " check its permissions"
            raise CacheError(f"{path} cannot be opened ({error.strerror}):{remedy}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CacheError(f"{path} is no regular file: not part of a cache; remove it")
        return descriptor

    def size(self, file: str) -> int | None:
        """Bytes of a file of the cache, None where there is none."""
        try:
            return os.stat(self._inside(file)).st_size
        except FileNotFoundError:
            return None

    def read(self, file: str, most: int) -> bytes:
        """A whole small file.

        Raises:
            FileNotFoundError: there is none.
            CacheError: as `open`, or it is larger than `most` bytes.
        """
        with os.fdopen(self.open(file), "rb") as stream:
            content = stream.read(min(most, os.fstat(stream.fileno()).st_size) + 1)  # `read` allocates all
        if len(content) > most:
            raise CacheError(f"{self.name}/{file} has more than the {most:,} bytes it may have: damaged; restore it")
        return content

    def read_json(self, file: str) -> Any:
        """A small JSON file, strictly: no NaN, no duplicate key.

        Raises:
            FileNotFoundError: there is none.
            CacheError: as `read`, or it is no such JSON.
        """
        return parse_json(self.read(file, MAX_JSON_BYTES), f"{self.name}/{file}")

    def walk(self) -> Iterator[str]:
        """Every file below the cache, sorted; links are listed and not followed."""
        for parent, folders, files in os.walk(self.path):
            folders.sort()
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in sorted(files + links):
                yield os.path.relpath(os.path.join(parent, name), self.path).replace(os.sep, "/")

    def prefetch(self, files: Iterable[str]) -> None:
        """Begin to bring files near that will be read soon; here they are near already."""

    def _inside(self, file: str) -> str:
        if file not in self._real:
            root = os.path.realpath(self.path)
            real = os.path.realpath(os.path.join(root, file))
            if not real.startswith(root.rstrip(os.sep) + os.sep):
                where = self.path / file
                raise CacheError(f"{where} leads out of the cache to {real}: refused; copy the data in instead")
            if len(self._real) >= _REMEMBERED or not os.path.exists(real):
                return real
            self._real[file] = real
        return self._real[file]


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON.

    Raises:
        CacheError: naming the place.
    """
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{where} is no valid JSON ({error}): damaged; restore it from a copy") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is beyond all numbers")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
