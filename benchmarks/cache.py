"""The cache against the hardware: writes against pwrite, reads and verification against memcpy and zarr-python.

    python -m benchmarks.cache --save        # writes benchmarks/results/cache.md

Sequences have the size of Gemma-2-2B's at context 128: [128, 2304] bfloat16, 589,824 bytes; a shard has 512, 302 MB.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zarr

import cache
from benchmarks.measure import Timing, interleaved, machine, table
from cache import bf16, layout, manifest
from cache.checksum import checksums
from cache.folder import Folder
from cache.lock import WriterLock
from cache.schema import CacheState
from cache.shards import index_bytes
from cache.statistics import Moments, moments, row_masks
from cache.verify import Verification

T, D, S = 128, 2304, 512
SEQUENCE = T * D * 2
SHARD = S * SEQUENCE


def meta() -> cache.CacheMeta:
    return cache.CacheMeta(
        model="benchmark",
        model_revision="0" * 40,
        tokenizer_hash="0" * 64,
        sources=(cache.Source(dataset="random", revision="0"),),
        context=T,
        packing="pack",
        bos_token_id=2,
        d_model=D,
        shard_sequences=S,
        created="2026-01-01T00:00:00Z",
    )


def simulated(n: int) -> tuple[cache.Rows, np.ndarray]:
    rng = np.random.default_rng(0)
    bits = np.empty((n, T, D), np.uint16)
    for i in range(0, n, 32):
        bits[i : i + 32] = bf16.from_float32(rng.standard_normal((min(32, n - i), T, D), dtype=np.float32) * 5)
    tokens = rng.integers(3, 256_000, (n, T)).astype(np.int32)
    document = np.broadcast_to(np.arange(n, dtype=np.int32)[:, None], (n, T)).copy()
    return cache.Rows(tokens, document, np.zeros(n, np.uint8)), bits


def write_cache(path: Path, rows: cache.Rows, bits: np.ndarray, given: Moments | None, batch: int = 32) -> float:
    """Seconds from the first batch to the last commit; opening and completing are left out."""
    with cache.CacheWriter(path, meta(), layers=(12,), sequences=len(bits), sync=False) as writer:
        begin = time.perf_counter()
        for i in range(0, len(bits), batch):
            part = slice(i, i + batch)
            some = cache.Rows(rows.tokens[part], rows.document[part], rows.split[part])
            moment = {12: Moments(*(one[part] for one in given))} if given else None
            writer.append(i, some, {12: bits[part]}, moments=moment)
        writer.flush()
        taken = time.perf_counter() - begin
        writer.finish()
    return taken


def raw_pwrite(path: Path, bits: np.ndarray) -> float:
    begin = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    view, done = bits.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + (1 << 28)], done)
    os.close(descriptor)
    return time.perf_counter() - begin


def measure_writer(folder: Path, rounds: int) -> Iterator[list[str]]:
    rows, bits = simulated(S)
    mask = row_masks(rows.tokens, rows.document, rows.split, 2).astype(np.float64)
    parts = [moments(bf16.to_float32(bits[i : i + 1]).astype(np.float64), mask[i : i + 1]) for i in range(S)]
    given = Moments(*(np.concatenate(one) for one in zip(*parts, strict=True)))
    seconds: dict[str, list[float]] = {"pwrite": [], "writer": [], "writer and statistics": []}
    for turn in range(rounds + 1):
        for name in seconds:
            target = folder / "written"
            if name == "pwrite":
                taken = raw_pwrite(target, bits)
                target.unlink()
            else:
                taken = write_cache(target, rows, bits, given if name == "writer" else None)
                shutil.rmtree(target)
            if turn:
                seconds[name].append(taken)
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    for name, bar in (("writer", "≥ 0.8×"), ("writer and statistics", "–")):
        what = "write a 302 MB shard, no fsync" + (", statistics computed on the CPU too" if bar == "–" else "")
        yield row(what, SHARD, medians[name], "raw pwrite", medians["pwrite"], bar)


def measure_reader(path: Path, rounds: int) -> Iterator[list[str]]:
    reader = cache.open(str(path))
    layer, n = reader.layer(12), reader.n_sequences
    rng = np.random.default_rng(1)
    block = 64
    source = np.ones(
        (n, T, D), np.uint16
    )  # as large as what is read, so that neither side lives in the last-level cache
    out = np.empty((block, T, D), np.uint16)
    starts = iter(np.resize(rng.permutation(n // block) * block, 10_000).tolist())
    zarr_array = zarr.open_array(path / "layer_12", mode="r")
    random = rng.choice(n, block, replace=False)
    rotation = iter(np.resize(np.arange(0, n, block), 10_000).tolist())

    def ours() -> None:
        start = next(starts)
        np.copyto(out, layer.bits(start, start + block))

    def memcpy() -> None:
        start = next(rotation)
        np.copyto(out, source[start : start + block])

    def ours_random() -> None:
        for slot, number in enumerate(random.tolist()):
            np.copyto(out[slot], layer.bits(number, number + 1)[0])

    def zarr_random() -> object:
        return zarr_array.oindex[random]

    layer.bits(0, n)  # every checksum seen to: what follows is the second epoch
    blocks = interleaved({"ours": ours, "memcpy": memcpy}, rounds=rounds * 40)
    nbytes = block * SEQUENCE
    yield row(
        "copy 64 consecutive sequences, hot", nbytes, blocks["ours"].median, "memcpy", blocks["memcpy"].median, "≥ 0.9×"
    )
    first = interleaved({"ours": lambda: np.copyto(out, cache.open(str(path)).layer(12).bits(0, block))}, rounds=rounds)
    yield row(
        "… opening the cache and checking their checksums",
        nbytes,
        first["ours"].median,
        "memcpy",
        blocks["memcpy"].median,
        "–",
    )
    some = interleaved({"ours": ours_random, "zarr": zarr_random}, rounds=rounds)
    yield row(
        "64 random sequences, hot",
        nbytes,
        some["ours"].median,
        f"zarr-python {zarr.__version__}",
        some["zarr"].median,
        "≥ 50×",
    )
    total = n * SEQUENCE
    target = np.empty_like(source)
    checks: dict[str, Timing] = interleaved(
        {"verify": lambda: _must_be_whole(path), "memcpy": lambda: np.copyto(target, source)}, rounds=rounds
    )
    yield row("verify", total, checks["verify"].median, "memcpy", checks["memcpy"].median, "≥ 0.5×")


def _must_be_whole(path: Path) -> None:
    findings = Verification(Folder(path)).run()
    if findings:
        raise SystemExit(f"the benchmark's own cache is damaged: {findings[0]}")


def sparse_terabyte(path: Path) -> None:
    """A valid cache of 1 TB of zeros in sparse files, written without the payload ever being allocated."""
    shards = 10**12 // SHARD
    state = CacheState(layers=(12,), sequences=shards * S)
    path.mkdir()
    specs = layout.all_arrays(meta(), state)
    zero = checksums(np.zeros((1, SEQUENCE), np.uint8))
    index = index_bytes(np.full(S, SEQUENCE, np.uint64), S)
    lines = []
    for file, content in layout.documents(meta(), state):
        (path / file).parent.mkdir(parents=True, exist_ok=True)
        (path / file).write_bytes(content)
    digits = {
        name: manifest.to_hex(checksums(np.zeros((1, spec.chunk_bytes), np.uint8)))
        for name, spec in specs.items()
        if spec.kind != "residuals"
    }
    digits["layer_12"] = manifest.to_hex(np.repeat(zero, S))
    for shard in range(shards):
        for name, spec in specs.items():
            file = path / spec.file(shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                stream.truncate(spec.chunk_bytes)
                if name == "layer_12":
                    stream.seek(SHARD)
                    stream.write(index)
        lines.append(manifest.commit_line(manifest.Commit(shard=shard, sequences=S, crc32c=digits)))
    (path / "manifest.jsonl").write_bytes(b"".join(lines))
    lock = WriterLock(path)
    cache.finish.complete(path, meta(), state, exhausted_at=None, audit={}, sync=False)
    lock.close()


OPEN = """
import sys, time, cache

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

before, begin = peak(), time.perf_counter()
x = cache.open(sys.argv[1]).layer(12).bits(10**6, 10**6 + 1)
print(time.perf_counter() - begin, before, peak(), x.sum())
"""

_PEAK = """
import sys, threading, time
from pathlib import Path
import numpy as np
import cache
from benchmarks import cache as b

def anonymous():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024

what, path = sys.argv[1], Path(sys.argv[2])
if what == "writer":
    rows, bits = b.simulated(2 * b.S)
    out = None
else:
    layer, out = cache.open(str(path)).layer(12), np.ones((64, b.T, b.D), np.uint16)
peak, base, stop = 0, anonymous(), threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())
thread = threading.Thread(target=watch); thread.start()
if what == "writer":
    b.write_cache(path, rows, bits, None)
else:
    for i in range(0, layer.shape[0], 64):
        np.copyto(out, layer.bits(i, i + 64))
stop.set(); thread.join()
print(max(peak, anonymous()) - base)
"""


def measure_memory(folder: Path, path: Path) -> Iterator[list[str]]:
    for what, target in (("writer", folder / "peak"), ("reader", path)):
        peak = int(_python(_PEAK, what, str(target)))
        yield [
            f"peak memory of the {what} beyond its buffers",
            f"{peak / 1e6:,.0f} MB",
            "one shard",
            f"{SHARD / 1e6:,.0f} MB",
            f"{peak / SHARD:.2f}×",
            "≤ 1×",
        ]
    shutil.rmtree(folder / "peak")
    terabyte = folder / "terabyte"
    sparse_terabyte(terabyte)
    taken, before, after, _ = (float(x) for x in _python(OPEN, str(terabyte)).split())
    yield ["open a 1 TB cache (3,311 shards) and read a sequence: time", f"{taken:.3f} s", "–", "–", "–", "< 1 s"]
    yield [
        "… resident memory, of which before opening",
        f"{after / 1e6:,.0f} MB",
        "imports",
        f"{before / 1e6:,.0f} MB",
        "–",
        "< 300 MB",
    ]
    shutil.rmtree(terabyte)


def _python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def row(what: str, nbytes: int, ours: float, rival: str, theirs: float, bar: str) -> list[str]:
    return [
        what,
        f"{nbytes / ours / 1e9:.2f} GB/s",
        rival,
        f"{nbytes / theirs / 1e9:.2f} GB/s",
        f"{theirs / ours:.2f}×",
        bar,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds; medians are reported")
    parser.add_argument("--dir", default=None, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cache.md")
    arguments = parser.parse_args()
    head = machine()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = Path(name)
        lines = list(measure_writer(folder, arguments.rounds))
        rows, bits = simulated(3 * S)
        write_cache(folder / "read", rows, bits, None)
        del rows, bits
        lines += measure_reader(folder / "read", arguments.rounds)
        lines += measure_memory(folder, folder / "read")
    out = ["# The cache against the hardware", "", *head, f"- medians of {arguments.rounds} interleaved rounds", ""]
    out += table(["claim", "Silo", "against", "", "ratio", "bar"], lines)
    print("\n".join(out))
    if arguments.save:
        (Path(__file__).parent / "results" / "cache.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
