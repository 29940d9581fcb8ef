"""Bytes behind an fsspec URL: asked for again when the network fails, and with errors that name the remedy.

Any package may stand behind a URL and raise what it likes, so errors are told apart by what Python itself knows of
them: absent, not allowed, wrong request, or (everything else) worth another try.
"""

import errno
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import fsspec.core

from cache.errors import CacheError

PAUSES: Final = [0.25, 1.0, 4.0]  # seconds between attempts; s3fs and gcsfs have retried by themselves before
_GROWTH: Final = 1 << 16
_ABSENT: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_WRONG: Final = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError, MemoryError)

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Connection:
    """What one process has open; a fork needs its own."""

    process: int
    files: Any
    root: str
    turn: AbstractContextManager[Any]
    """Asynchronous file systems take calls from many threads; of the others nothing is known."""


class Store:
    """Reads the objects below one URL."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        """Find the file system; nothing is fetched.

        Args:
            url: without a name and password in the messages, should it have them.
            options: what the file system takes.

        Raises:
            CacheError: the package for the protocol is missing, an unknown protocol, or an impossible option.
        """
        self.url = url.rstrip("/")
        self.name = re.sub(r"//[^/@]*@", "//", self.url)
        self._options = dict(options)
        self._connection = self._connect()

    def read(self, file: str, most: int) -> bytes:
        """A whole small file as it is now.

        Raises:
            FileNotFoundError: there is none.
            CacheError: larger than `most` bytes, not allowed, or out of reach.
        """
        self._call(file, lambda files, path: files.invalidate_cache(path))
        found = self._call(file, lambda files, path: files.info(path))
        if found.get("type") == "directory":
            raise FileNotFoundError(f"{self.name}/{file} is a folder")
        size = most if found.get("size") is None else int(found["size"])  # some HTTP servers do not say
        if size == 0:
            return b""  # object stores refuse a range of nothing
        content = self.range(file, 0, min(size + _GROWTH, most + 1))  # it may have grown just now
        if len(content) > most:
            raise CacheError(f"{self.name}/{file} has more than the {most:,} bytes it may have: damaged; restore it")
        return content

    def range(self, file: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, fewer where it ends before.

        Raises:
            FileNotFoundError: there is none.
            CacheError: not allowed, or out of reach.
        """
        try:
            content: bytes = self._call(file, lambda files, path: files.cat_file(path, start=start, end=stop))
        except CacheError as error:
            if getattr(error.__cause__, "errno", None) != errno.EINVAL:
                raise
            self._call(file, lambda files, path: files.invalidate_cache(path))
            if (self.size(file) or 0) > start:
                raise
            return b""  # object stores refuse a range that begins at the end or later
        return content

    def size(self, file: str) -> int | None:
        """Bytes of a file, None where there is none; a listing that `walk` has just made spares the request.

        Raises:
            CacheError: not allowed, or out of reach.
        """
        try:
            found = self._call(file, lambda files, path: files.info(path))
        except FileNotFoundError:
            return None
        return None if found.get("type") == "directory" or found.get("size") is None else int(found["size"])

    def walk(self) -> Iterator[str]:
        """Every file below the URL, sorted.

        Raises:
            CacheError: not allowed, or out of reach.
        """

        def find(files: Any, path: str) -> list[str]:
            files.invalidate_cache(path)
            return list(files.find(path))

        try:
            names = self._call("", find)
        except FileNotFoundError:
            return
        root = self._connected().root.strip("/") + "/"
        for name in sorted(names):
            if name.lstrip("/").startswith(root):
                yield name.lstrip("/")[len(root) :]

    def _call(self, file: str, action: Callable[[Any, str], _T]) -> _T:
        """Do something with (file system, path), again after a pause when it fails for no lasting reason."""
        connection = self._connected()
        path = f"{connection.root}/{file}" if file else connection.root
        for pause in (*PAUSES, None):
            try:
                with connection.turn:
                    return action(connection.files, path)
            except _ABSENT as error:
                raise FileNotFoundError(f"{self.name}/{file}: {_line(error)}") from error
            except Exception as error:  # every package has errors of its own
                if pause is None or not _passing(error):
                    raise CacheError(f"{self.name}/{file} {_reason(error)}") from error
                time.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("the last attempt returns or raises")

    def _connected(self) -> _Connection:
        if self._connection.process != os.getpid():
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> _Connection:
        protocol = re.split("://|::", self.url)[0]
        try:
            files, root = fsspec.core.url_to_fs(self.url, **self._options)
        except ImportError as error:
            package = "'silo-sae[s3]'" if protocol in ("s3", "s3a") else f"the package for {protocol}://"
            raise CacheError(
                f"{self.name}: nothing here can read {protocol}:// ({_line(error)}): pip install {package}"
            ) from error
        except Exception as error:
            remedy = "check the address and storage_options"
            raise CacheError(f"{self.name} cannot be opened ({_line(error)}): {remedy}") from error
        turn = nullcontext() if files.async_impl else threading.Lock()
        return _Connection(os.getpid(), files, root.rstrip("/"), turn)


def _passing(error: Exception) -> bool:
    """Whether another try may help."""
    wrong = isinstance(error, _WRONG) or "Validation" in type(error).__name__  # botocore's have no class in common
    return not wrong and not _forbidden(error) and getattr(error, "errno", None) != errno.EINVAL


def _forbidden(error: Exception) -> bool:
    return isinstance(error, PermissionError) or "Credential" in type(error).__name__


def _reason(error: Exception) -> str:
    if _forbidden(error):
        remedy = "check the credentials (environment, profile or storage_options)"
        return f"may not be read ({_line(error)}): {remedy}"
    if _passing(error):
        remedy = "check the network, the endpoint and the address"
        return f"is out of reach, tried {len(PAUSES) + 1} times ({_line(error)}): {remedy}"
    remedy = "check the address and storage_options, and that the file is whole"
    return f"cannot be read ({_line(error)}): {remedy}"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
