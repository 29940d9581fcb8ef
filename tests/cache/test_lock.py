"""One harvest at a time, however the last one ended."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cache
from cache.lock import WriterLock
from tests.cache.planted import N, make_bits, make_meta, make_rows, tree, write

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from cache.lock import WriterLock
from pathlib import Path
lock = WriterLock(Path(sys.argv[1]), session=sys.argv[2], rank=int(sys.argv[3]))
print("held", flush=True)
sys.stdin.readline()
lock.close()
"""


@contextmanager
def owner(path: Path, *, session: str = "", rank: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until it is told to go."""
    command = [sys.executable, "-c", OWNER, str(path), session, str(rank)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_writer_is_refused_while_the_first_lives_and_nothing_changes(small: Path) -> None:
    with owner(small) as process:
        before = tree(small)
        with pytest.raises(cache.CacheError) as caught:
            cache.CacheWriter(small, make_meta(), layers=(3, 5, 7), sequences=N)
        message = str(caught.value)
        assert f"is being written by process {process.pid} on " in message
        assert "wait for it to end, or use another CACHE" in message
        assert "\n" not in message
        assert tree(small) == before
        process.communicate("\n")
    write(small, make_meta(), {3: make_bits(seed=3), 5: make_bits(seed=5)}, make_rows())


def test_a_second_writer_of_the_same_process_is_refused(tmp_path: Path) -> None:
    first = cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N)
    with first, pytest.raises(cache.CacheError, match=f"is being written by process {os.getpid()} on "):
        cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=N)


def test_a_reader_needs_no_lock(small: Path) -> None:
    with owner(small):
        assert cache.open(str(small)).n_sequences == N


def test_the_lock_dies_with_a_killed_owner(small: Path) -> None:
    with owner(small) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (small / ".lock").read_bytes() != b"", "its owner could not clean up"
    with cache.CacheWriter(small, make_meta(), layers=(3, 5), sequences=N) as writer:
        writer.finish()
    assert (small / ".lock").read_bytes() == b""


def test_ranks_of_one_session_share_the_lock_and_others_stay_out(small: Path) -> None:
    first = WriterLock(small, session="one", rank=0)
    second = WriterLock(small, session="one", rank=1)
    third = WriterLock(small, session="one", rank=2)
    for session, rank in [("two", 1), ("", 1), ("two", 0), ("one", 0), ("", 0)]:
        with pytest.raises(cache.CacheError, match="is being written by process"):
            WriterLock(small, session=session, rank=rank)
    second.close()
    with pytest.raises(cache.CacheError, match="is being written by process"):
        WriterLock(small, session="two", rank=0)
    third.close()
    first.close()
    WriterLock(small, session="two", rank=0).close()
    assert (small / ".lock").read_bytes() == b""


def test_a_rank_that_outlives_its_session_keeps_the_next_one_out(small: Path) -> None:
    with owner(small, session="one") as zero, owner(small, session="one", rank=1) as one:
        os.kill(zero.pid, signal.SIGKILL)
        zero.wait()
        with pytest.raises(cache.CacheError, match="is being written by process"):
            WriterLock(small, session="two", rank=0)
        os.kill(one.pid, signal.SIGKILL)
        one.wait()
        WriterLock(small, session="two", rank=0).close()


def test_a_rank_cannot_begin_a_session(small: Path) -> None:
    with pytest.raises(cache.CacheError, match="is being written by"):
        WriterLock(small, session="one", rank=1)
    WriterLock(small, session="one", rank=0).close()


def test_closing_twice_is_closing_once(small: Path) -> None:
    lock = WriterLock(small)
    lock.close()
    lock.close()
    with owner(small):
        lock.close()  # and does not touch what has become of its descriptor's number
        with pytest.raises(cache.CacheError, match="is being written by process"):
            WriterLock(small)


@pytest.mark.parametrize("junk", [b"", b"\x00\xff\xfe", b"[" * 4096, b'{"pid": 1', b"[1, 2]", b"7", b'"' * 9000])
def test_whatever_an_old_lock_file_holds_the_lock_works(small: Path, junk: bytes) -> None:
    (small / ".lock").write_bytes(junk)
    with pytest.raises(cache.CacheError, match=r"is being written by process \? on \?"):
        WriterLock(small, session="one", rank=1)
    WriterLock(small).close()
    assert (small / ".lock").read_bytes() == b""


def test_a_lock_that_is_a_link_is_refused_and_its_target_untouched(small: Path, tmp_path: Path) -> None:
    """Taking the lock writes to the file: a link in a stranger's cache must not choose where."""
    victim = tmp_path / "precious"
    victim.write_bytes(b"precious")
    (small / ".lock").unlink()
    (small / ".lock").symlink_to(victim)
    with pytest.raises(cache.CacheError, match=r"\.lock cannot be locked .* remove it"):
        cache.CacheWriter(small, make_meta(), layers=(3, 5, 7), sequences=N)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused(small: Path, kind: str) -> None:
    (small / ".lock").unlink()
    os.mkfifo(small / ".lock") if kind == "pipe" else (small / ".lock").mkdir()
    with pytest.raises(cache.CacheError, match=r"\.lock .*(cannot be|is no regular file).* remove it"):
        cache.CacheWriter(small, make_meta(), layers=(3, 5, 7), sequences=N)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_says_so(small: Path) -> None:
    (small / ".lock").unlink()
    small.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(cache.CacheError, match=r"cannot be locked .* check its permissions"):
        cache.CacheWriter(small, make_meta(), layers=(3, 5, 7), sequences=N)
    small.chmod(0o755)
