"""One harvest at a time: a lock that dies with its owner.

The lock is `flock` on `<cache>/.lock`, which the kernel releases however the owner ends. The processes of one harvest
share it: rank 0 takes it exclusively (so nobody else is alive), writes the name of its session and keeps a shared
lock; other ranks take shared locks and must find that name.
"""

import fcntl
import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.layout import LOCK


class WriterLock:
    """Held while a process writes to a cache."""

    def __init__(self, root: Path, *, session: str = "", rank: int = 0) -> None:
        """Take the lock, or say who has it.

        Args:
            root: the cache's folder, which must exist.
            session: a name that all ranks of one harvest share and no other harvest has.
            rank: 0 begins a session, the others join it.

        Raises:
            CacheError: another harvest is writing this cache.
        """
        self.path = root / LOCK
        self._descriptor = _open(self.path)
        try:
            self._begin(session) if rank == 0 else self._join(session)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _begin(self, session: str) -> None:
        self._flock(fcntl.LOCK_EX)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "session": session,
            "since": time.strftime("%FT%TZ", time.gmtime()),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)
        if session:
            self._flock(fcntl.LOCK_SH)

    def _join(self, session: str) -> None:
        self._flock(fcntl.LOCK_SH)
        if self._owner().get("session") != session:
            self._refuse()

    def _flock(self, kind: int) -> None:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse()

    def _owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(os.pread(self._descriptor, 4096, 0))
        except (ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _refuse(self) -> None:
        owner = self._owner()
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"
        raise CacheError(f"{self.path.parent} is being written by {who}: wait for it to end, or use another CACHE")

    def close(self) -> None:
        """Release the lock; the file stays, empty, so that nobody can lock a deleted one."""
        if self._descriptor < 0:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
        except BlockingIOError:
            pass  # other ranks of this session are still writing: the name must stay for them
        os.close(self._descriptor)
        self._descriptor = -1


def _open(path: Path) -> int:
    """A descriptor of the lock file, whatever a stranger may have put in its place.

    Raises:
        CacheError: a link (what is written would land outside of the cache), a folder, a pipe, or no permission.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise CacheError(f"{path} cannot be locked ({error.strerror}): check its permissions, or remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CacheError(f"{path} is no regular file and cannot be locked: remove it")
    return descriptor
