"""A process that forks cache writers, kills them, and looks at what they leave.

    python -m tests.cache.torture_writer torture FOLDER SEED KILLS
    python -m tests.cache.torture_writer ranks FOLDER SEED KILLS
    python -m tests.cache.torture_writer crash FOLDER SCENARIO
    python -m tests.cache.torture_writer trace FOLDER

It imports `cache` once and has no threads when it forks: pytest's own process has torch's, and forking those can hang.
It prints one line of JSON; a failed check ends it with a traceback.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cache
from cache import commits, manifest
from cache.folder import Folder
from cache.layout import documents
from cache.root import read_root
from tests.cache.planted import S, make_bits, make_meta, make_rows, tree

CRASHED = 9
Mark = Callable[[str], None]


class Plan(NamedTuple):
    """What a harvest writes; `held` of the `asked` sequences are all that the source has."""

    layers: tuple[int, ...]
    asked: int
    held: int
    d_model: int = 16

    def residuals(self, layer: int) -> np.ndarray:
        """Planted bits; a shorter plan has the beginning of a longer one."""
        return make_bits(32, seed=layer, d=self.d_model)[: self.held]

    def rows(self) -> cache.Rows:
        """Planted rows."""
        rows = make_rows(32)
        return cache.Rows(*(None if array is None else array[: self.held] for array in rows))


def plan(layers: tuple[int, ...], asked: int, *, held: int = 0, d_model: int = 16) -> Plan:
    return Plan(layers, asked, held or asked, d_model)


TORTURE = plan((3, 5, 8), 14, d_model=1024)  # three layers, four shards, the last one partial
# Before → after: every step that a cache can take.
SCENARIOS = {
    "create": (None, plan((3,), 6)),
    "extend": (plan((3,), 6), plan((3,), 9)),
    "layer": (plan((3,), 6), plan((3, 5), 6)),
    "exhausted": (None, plan((3,), 20, held=6)),
    "both": (plan((3,), 6), plan((3, 5), 9)),
    "given up": (plan((3,), 6), plan((3,), 6)),
}
GIVEN_UP = plan((3, 5), 6)  # begun between the two, and not finished


def harvest(
    path: Path,
    plan: Plan,
    *,
    mark: Mark = lambda phase: None,
    sync: bool = False,
    rank: int = 0,
    world_size: int = 1,
    session: str = "",
    batch: int = 3,
) -> None:
    """Go on writing a cache until it is complete (rank 0) or this rank's shards are there."""
    rows, bits = plan.rows(), {layer: plan.residuals(layer) for layer in plan.layers}
    ranks: dict[str, Any] = {"rank": rank, "world_size": world_size, "session": session}
    mark("create")
    meta = make_meta(d_model=plan.d_model)
    with cache.CacheWriter(path, meta, layers=plan.layers, sequences=plan.asked, sync=sync, **ranks) as writer:
        mark("append")
        for job in writer.jobs():
            for start in range(job.start, min(job.stop, plan.held), batch):
                part = slice(start, min(start + batch, job.stop, plan.held))
                some = cache.Rows(*(None if array is None else array[part] for array in rows))
                writer.append(start, some, {x: bits[x][part] for x in job.layers}, cursor={"at": part.stop})
        writer.flush()
        mark("finish")
        if rank == 0:
            writer.finish(exhausted_at=plan.held if plan.held < plan.asked else None)


def begin(path: Path, plan: Plan, *, shards: int) -> None:
    """Write so many of the shards that are owed, and stop."""
    rows, bits = plan.rows(), {layer: plan.residuals(layer) for layer in plan.layers}
    with cache.CacheWriter(path, make_meta(d_model=plan.d_model), layers=plan.layers, sequences=plan.asked) as writer:
        for job in list(writer.jobs())[:shards]:
            part = slice(job.start, job.stop)
            some = cache.Rows(*(None if array is None else array[part] for array in rows))
            writer.append(job.start, some, {x: bits[x][part] for x in job.layers})


def forked(work: Callable[[], None]) -> int:
    """Run in a child process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - told on stderr, and by the exit status
        sys.stderr.write(f"writer: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid: int, *, allowed: tuple[int, ...] = (0, -signal.SIGKILL)) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in allowed, f"the writer ended with {code}"
    return code


class Committed(NamedTuple):
    """Files that the manifest names, with the identity of each; a later writer may touch none of them."""

    files: dict[str, tuple[int, int, int]]

    @classmethod
    def of(cls, path: Path, *, whole: bool = False) -> "Committed":
        """Look at a cache, whatever state it is in; `whole`: less the last shard, which is to grow."""
        try:
            meta, state = read_root(Folder(path))
            content = (path / "manifest.jsonl").read_bytes()
        except FileNotFoundError:
            return cls({})
        known = manifest.parse(content, "manifest")[0]
        arrays, files = commits.committed_arrays(meta, state, known), {}
        for shard, commit in known.commits.items():
            for name in commit.crc32c if commit.sequences == S or not whole else ():
                status = (path / arrays[name].file(shard)).stat()
                files[arrays[name].file(shard)] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return cls(files)

    def check_kept_in(self, later: "Committed") -> None:
        """Everything committed stays committed, and no file of it has been written again."""
        changed = [file for file, identity in self.files.items() if later.files.get(file) != identity]
        assert not changed, f"committed files were lost or written again: {changed}"


def examine(path: Path, *wanted: Plan) -> bool:
    """A reader of these remains sees committed shards with the planted bits or a CacheError; whether it is complete."""
    if not (path / "zarr.json").exists():
        return False
    reader = cache.open(str(path), follow=True)
    rows = wanted[-1].rows()
    for layer in reader.layers:
        planted = wanted[-1].residuals(layer)
        for shard in range(reader.state.shards(S)):
            numbers = reader.shard_range(shard)
            try:
                bits = reader.layer(layer).shard_bits(shard)
            except cache.CacheError:
                assert shard not in reader.shards
                continue
            assert np.array_equal(bits, planted[numbers.start : numbers.stop]), f"layer {layer} shard {shard} is wrong"
            assert np.array_equal(reader.tokens(numbers.start, numbers.stop), rows.tokens[numbers.start : numbers.stop])
        reader.statistics(layer)
    if not reader.state.complete:
        try:
            cache.open(str(path))
        except cache.CacheError:
            return False
        raise AssertionError("an incomplete cache opened without follow")
    assert reader.shards == tuple(range(reader.state.shards(S)))
    for file, content in documents(reader.meta, reader.state):
        assert (path / file).read_bytes() == content, f"{file} is not that of a complete cache"
    return True


def same(path: Path, reference: dict[str, bytes]) -> None:
    """Byte for byte, file for file."""
    found = tree(path)
    assert found.keys() == reference.keys(), f"files differ: {sorted(found.keys() ^ reference.keys())}"
    differing = [name for name in found if found[name] != reference[name]]
    assert not differing, f"bytes differ: {differing}"


def finished(path: Path, plan: Plan) -> dict[str, bytes]:
    """The files of an uninterrupted harvest."""
    harvest(path, plan)
    assert examine(path, plan)
    files = tree(path)
    assert files[".lock"] == b"", "the lock of a finished harvest is not empty"
    return files


class Writer:
    """A forked harvest whose phases this process can wait for."""

    def __init__(self, path: Path, plan: Plan, **options: Any) -> None:
        """Start it."""
        self._marks, marking = os.pipe()
        go, self._go = os.pipe()

        def mark(phase: str) -> None:
            os.write(marking, phase[:1].encode())
            if phase == "finish" and options.get("world_size", 1) > 1 and options["rank"] == 0:
                os.close(self._go)
                os.read(go, 1)  # rank 0 completes when the others have written theirs

        self.pid = forked(lambda: harvest(path, plan, mark=mark, **options))
        os.close(marking)
        os.close(go)

    def wait_for(self, phase: str) -> bool:
        """Whether it got there."""
        while found := os.read(self._marks, 1):
            if found == phase[:1].encode():
                return True
        return False

    def let_finish(self) -> None:
        """The other ranks are done."""
        os.write(self._go, b"g")

    def kill(self) -> bool:
        """SIGKILL; whether it was still alive."""
        os.kill(self.pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for its end."""
        os.close(self._marks)
        os.close(self._go)
        return ended(self.pid)


def durations(folder: Path) -> dict[str, float]:
    """Seconds that each phase of an uninterrupted harvest takes here and now."""
    times = {}
    writer, last, begin = Writer(folder / "timed", TORTURE), "", time.perf_counter()
    for phase in ("create", "append", "finish", "end"):
        writer.wait_for(phase)
        now = time.perf_counter()
        times[last], last, begin = now - begin, phase, now
    writer.end()
    shutil.rmtree(folder / "timed")
    return times


def torture(folder: Path, seed: int, kills: int) -> dict[str, Any]:
    """Kill one writer at random instants of every phase; caches are finished and compared now and then."""
    reference = finished(folder / "reference", TORTURE)
    rng, seconds = random.Random(seed), durations(folder)
    killed: Counter[str] = Counter()
    rounds, committed_at_kill = 0, Counter[int]()
    while killed.total() < kills or rounds < 8:
        path = folder / f"round_{rounds}"
        for _ in range(rng.randint(1, 12)):
            before = Committed.of(path)
            phase = rng.choice(["create", "append", "append", "finish"])
            writer = Writer(path, TORTURE, sync=rng.random() < 0.3)
            assert writer.wait_for(phase)
            time.sleep(rng.uniform(0, 1.1 * seconds[phase]))
            killed[phase] += writer.kill()
            after = Committed.of(path)
            before.check_kept_in(after)
            committed_at_kill[len({file.rsplit("layer_3/c/", 1)[-1] for file in after.files})] += 1
            if examine(path, TORTURE):
                break
        before = Committed.of(path)
        harvest(path, TORTURE)
        before.check_kept_in(Committed.of(path))
        assert examine(path, TORTURE)
        same(path, reference)
        shutil.rmtree(path)
        rounds += 1
    return {"kills": killed, "rounds": rounds}


def ranks(folder: Path, seed: int, kills: int) -> dict[str, Any]:
    """Kill one or both of two writers of disjoint shards."""
    reference = finished(folder / "reference", TORTURE)
    rng, seconds = random.Random(seed), durations(folder)
    killed: Counter[str] = Counter()
    rounds = sessions = 0
    while killed.total() < kills:
        path = folder / f"round_{rounds}"
        for attempt in range(rng.randint(2, 6)):
            before = Committed.of(path)
            options = {"world_size": 2, "session": f"s{rounds}.{attempt}"}
            first = Writer(path, TORTURE, rank=0, **options)
            assert first.wait_for("append")
            second = Writer(path, TORTURE, rank=1, **options)
            time.sleep(rng.uniform(0, 1.2 * seconds["append"]))
            if rng.random() < 0.5:
                killed["rank 0"] += first.kill()
                if rng.random() < 0.5:
                    killed["rank 1"] += second.kill()
                else:
                    assert second.end() == 0, "a rank must be able to write its shards when another has died"
            else:
                killed["rank 1"] += second.kill()
                killed["rank 0"] += first.kill()
            sessions += 1
            before.check_kept_in(Committed.of(path))
            examine(path, TORTURE)
        first = Writer(path, TORTURE, rank=0, world_size=2, session="last")
        assert first.wait_for("append")
        second = Writer(path, TORTURE, rank=1, world_size=2, session="last")
        assert second.end() == 0
        first.let_finish()
        assert first.end() == 0
        assert examine(path, TORTURE)
        same(path, reference)
        shutil.rmtree(path)
        rounds += 1
    return {"kills": killed, "rounds": rounds, "sessions": sessions}


class Calls:
    """Every system call of this process that changes a disk, counted; ends the process at one of them."""

    NAMES = ("open", "pwrite", "write", "fsync", "rename", "replace", "ftruncate", "mkdir", "unlink", "remove", "rmdir")

    def __init__(self, crash_at: int = 0, *, how: str = "after") -> None:
        """Count, and crash at the call of this number: `before`, `after` or `half` of it (writes alone)."""
        self.crash_at, self.how, self.seen = crash_at, how, list[tuple[str, str]]()
        for name in self.NAMES:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            opens = name == "open" and not arguments[1] & (os.O_CREAT | os.O_TRUNC)
            if opens or (name == "mkdir" and os.path.isdir(arguments[0])):
                return call(*arguments, **options)  # changes nothing
            self.seen.append((name, _path(arguments[0])))
            here = len(self.seen) == self.crash_at
            if here and self.how == "before":
                os._exit(CRASHED)
            if here and self.how == "half" and name in ("pwrite", "write"):
                call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], *arguments[2:])
                os._exit(CRASHED)
            try:
                return call(*arguments, **options)
            finally:
                if here:
                    os._exit(CRASHED)

        return counted


def _path(target: Any) -> str:
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)


def crash_points(work: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Every instant at which a process can die between two changes of the disk, and in the middle of a write.

    After call n and before call n + 1 the disk is the same, so `before` is asked for the first call alone.
    """

    def counting() -> None:
        calls = Calls()
        work()
        os.write(writing, json.dumps([name for name, _ in calls.seen]).encode())

    reading, writing = os.pipe()
    pid = forked(counting)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        names = json.loads(stream.read())
    ended(pid)
    yield 1, "before"
    for number, name in enumerate(names, 1):
        if name in ("pwrite", "write"):
            yield number, "half"
        yield number, "after"


def crash(folder: Path, scenario: str) -> dict[str, Any]:
    """Die at every point of a scenario in turn; each time the next writer must make of it what was wanted."""
    old, new = SCENARIOS[scenario]
    between = GIVEN_UP if scenario == "given up" else None
    grows = scenario in ("extend", "exhausted", "both")  # nobody knows beforehand that the source will end again
    base, path, counting = folder / "base", folder / "cache", folder / "counting"
    base.mkdir()
    if old:
        harvest(base, old)
    if between:
        begin(base, between, shards=1)
        shutil.copytree(base, folder / "reference")
        whole = finished(folder / "whole", between)
    reference = finished(folder / "reference", new)
    shutil.copytree(base, counting)
    points = list(crash_points(lambda: harvest(counting, new)))
    states = Counter[str]()
    for number, how in points:
        shutil.copytree(base, path)
        before = Committed.of(path, whole=grows)

        def die(number: int = number, how: str = how) -> None:
            Calls(number, how=how)
            harvest(path, new)

        code = ended(forked(die), allowed=(CRASHED,))
        assert code == CRASHED
        complete = examine(path, old or new, new)
        states["complete" if complete else "incomplete"] += 1
        after = Committed.of(path, whole=grows)
        before.check_kept_in(after)
        harvest(path, new)
        after.check_kept_in(Committed.of(path))
        same(path, reference)
        if between:
            harvest(path, between)
            after.check_kept_in(Committed.of(path))
            same(path, whole)
        shutil.rmtree(path)
    return {"points": len(points), "kinds": Counter(how for _, how in points), "states": states}


def trace(folder: Path) -> dict[str, Any]:
    """Every change of the disk that a harvest with fsync makes, in order."""
    calls = Calls()
    harvest(folder / "cache", plan((3,), 6), sync=True)
    return {"calls": calls.seen}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    if what in ("torture", "ranks"):
        found = {"torture": torture, "ranks": ranks}[what](Path(where), int(rest[0]), int(rest[1]))
    else:
        found = crash(Path(where), rest[0]) if what == "crash" else trace(Path(where))
    sys.stdout.write(json.dumps(found) + "\n")
