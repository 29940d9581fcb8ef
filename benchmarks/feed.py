"""The feed against memcpy and SAELens' loader of cached activations, and how well it mixes.

    python -m benchmarks.feed --save --saelens .venv-peers/bin/python    # writes benchmarks/results/feed.md

Sequences have the size of Gemma-2-2B's at context 128: [128, 2304] bfloat16. The cache is hot, the pools lie in host
memory. Each turn opens a feed, delivers an epoch, and times the epochs after it, in which pools are filled and drained
over and over; the caller does nothing with the batches. A cache that half of the memory can hold is gathered from its
own files, mapped; "copied" rows have that switched off, as a larger one (46 GB a layer of 10M tokens, on 24 GB) has it.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import cache
from benchmarks.cache import SEQUENCE, D, S, T, meta, simulated
from benchmarks.measure import machine, table
from benchmarks.mixing import Correlated, of_batches, of_order
from train.feed import Feed, FeedConfig
from train.feed.adapters import sae_lens_data_provider
from train.feed.order import Order

ROW = 2 * D
EPOCHS = 3
MIXED = Correlated(sequences=65_536, context=T)


def write(path: Path, sequences: int) -> None:
    """A cache whose vectors repeat after a shard: the feed does not look at them."""
    rows, bits = simulated(S)
    document = np.arange(sequences * T, dtype=np.int32).reshape(sequences, T) // (4 * T)
    with cache.CacheWriter(path, meta(), layers=(12,), sequences=sequences, sync=False) as writer:
        for i in range(0, sequences, 32):
            part = slice(i % S, i % S + 32)
            some = cache.Rows(rows.tokens[part], document[i : i + 32], rows.split[part])
            writer.append(i, some, {12: bits[part]})
        writer.finish()


def open_feed(path: Path, config: FeedConfig, *, copied: bool) -> Feed:
    """A feed; with `copied`, one that copies sequences into pools whatever the memory."""
    reader = cache.open(str(path), verify="index")
    if not copied:
        return Feed(reader, [12], config)
    with mock.patch("train.feed.chapters.mapped_pool", return_value=None):
        return Feed(reader, [12], config)


def feed_turn(path: Path, config: FeedConfig, *, float32: bool = False, copied: bool = False) -> Callable[[], float]:
    """Seconds a row of a feed."""

    def turn() -> float:
        with open_feed(path, config, copied=copied) as feed:
            assert bool(feed.pool().bytes) == copied, "the row's label would be wrong"
            batches = sae_lens_data_provider(feed) if float32 else feed
            epoch = feed.order.sequences.size * T // config.batch
            for _ in range(epoch):
                next(batches)
            begin = time.perf_counter()
            for _ in range(EPOCHS * epoch):
                next(batches)
            return (time.perf_counter() - begin) / (EPOCHS * epoch * config.batch)

    return turn


def memcpy_turn(sequences: int) -> Callable[[], float]:
    """Seconds a row of one thread's copy between buffers that are far larger than any processor's cache."""
    source, target = np.ones((sequences, SEQUENCE), np.uint8), np.ones((sequences, SEQUENCE), np.uint8)

    def turn() -> float:
        begin = time.perf_counter()
        for _ in range(5):
            np.copyto(target, source)
        return (time.perf_counter() - begin) / (5 * sequences * T)

    return turn


class SaeLens:
    """SAELens' loader in a process of its own, which waits while others have their turn."""

    def __init__(self, python: str, folder: Path, batch: int, sequences: int) -> None:
        """Start it and let it write its cache."""
        settings = {"context": T, "d_model": D, "batch": batch, "sequences": sequences, "out": str(folder / "saelens")}
        settings["threads"] = torch.get_num_threads()
        peer = Path(__file__).parent / "peers" / "saelens_feed.py"
        quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        self.batch, self.batches = batch, sequences * T // batch
        self.process = subprocess.Popen(
            [python, str(peer), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | quiet,
        )
        self.version = self._line()

    def turn(self) -> float:
        """Seconds a row."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{self.batches}\n")
        self.process.stdin.flush()
        return float(self._line()) / (self.batches * self.batch)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"SAELens ended with status {self.process.wait()}")
        return line.strip()


def medians(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Each contender once a round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            taken = turn()
            if number:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def measure_speed(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    write(folder / "cache", asked.sequences)
    settings = {"batch": asked.batch, "pool_bytes": 1 << 40, "block": asked.block}
    mixed, whole = {"pool_sequences": asked.pool, **settings}, {"pool_sequences": asked.sequences, **settings}
    pool, all_of_it = f"pool of {asked.pool:,} of {asked.sequences:,} sequences", "pool that holds the split"
    turns: dict[str, Callable[[], float]] = {"memcpy": memcpy_turn(1024)}
    for where, sizes in ((pool, mixed), (all_of_it, whole)):
        for copied in (False, True) if sizes is mixed else (False,):
            how = "copied into two pools" if copied else "files mapped"
            for window, what in ((1, "rows"), (8, "windows of 8")):
                config = FeedConfig(**sizes, window=window)
                turns[f"shuffled {what}, {where}, {how}"] = feed_turn(folder / "cache", config, copied=copied)
    claims = list(turns)[1:]
    peer = SaeLens(asked.saelens, folder, asked.batch, 1024) if asked.saelens else None
    if peer:
        turns |= {peer.version: peer.turn, "float32": feed_turn(folder / "cache", FeedConfig(**mixed), float32=True)}
    taken = medians(turns, asked.rounds)
    for name in claims:
        bar = "≥ 0.25×" if "rows" in name else "≥ 0.6×"
        yield speed_row(name, taken[name], "memcpy, 1 thread", taken["memcpy"], bar)
    if peer:
        peer.close()
        rows = claims[0]
        theirs = f"{peer.version}, cached, not shuffled, float32"
        yield speed_row(rows, taken[rows], theirs, taken[peer.version], "≥ 8×")
        yield speed_row(f"{rows}, as float32", taken["float32"], theirs, taken[peer.version], "–")


def speed_row(what: str, ours: float, rival: str, theirs: float, bar: str) -> list[str]:
    def rate(seconds: float) -> str:
        return f"{1e-6 / seconds:.2f} M rows/s ({ROW / seconds / 1e9:.2f} GB/s of bfloat16)"

    return [what, rate(ours), rival, rate(theirs), f"{theirs / ours:.2f}×", bar]


def measure_mixing(batch: int) -> Iterator[list[str]]:
    in_order = np.arange(MIXED.sequences * T).reshape(-1, batch) // T
    mixing = of_batches(MIXED, in_order, draws=4)
    yield ["none: sequence order", *[f"{mixing.variance:.1f}, {mixing.documents:.0f}"] * 4]
    for pool in (2048, 4096, 8192, 16384):
        cells = []
        for block in (1, 2, 4, 8):
            numbers = np.arange(MIXED.sequences)
            order = Order(sequences=numbers, seed=0, parts=1, block=block, pool_sequences=pool)
            mixing = of_order(MIXED, order, batch, draws=4)
            cells.append(f"{mixing.variance:.2f}, {mixing.documents:.0f}")
        yield [f"{pool:,} sequences", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="interleaved rounds; medians are reported (default: %(default)s)")
    add("--sequences", type=int, default=6144, help="of the cache (default: %(default)s, 3.6 GB)")
    add("--pool", type=int, default=2048, help="sequences mixed at a time (default: %(default)s, 1.2 GB, twice)")
    add("--block", type=int, default=FeedConfig().block, help="sequences read together (default: %(default)s)")
    add("--batch", type=int, default=2048, help="rows a batch (default: %(default)s)")
    add("--saelens", metavar="PYTHON", help="an interpreter that has sae-lens; without it its rows are left out")
    add("--dir", default=None, help="where to write (default: the system's temporary folder)")
    add("--no-mixing", action="store_true", help="leave the table of mixing out")
    add("--save", action="store_true", help="write benchmarks/results/feed.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = ["# The feed", "", *machine(), f"- medians of {asked.rounds} interleaved rounds", ""]
    with tempfile.TemporaryDirectory(dir=asked.dir) as name:
        rows = list(measure_speed(asked, Path(name)))
    out += table(["claim", "Silo", "against", "", "ratio", "bar"], rows)
    for batch in (2048, 4096) if not asked.no_mixing else ():
        out += ["", f"## Mixing, batches of {batch:,} rows", ""]
        out += [
            "Variance of batch means over that of independent draws (bar: ≤ 1.3 at the default pool), and distinct"
            f" documents a batch. Simulated on {MIXED.sequences:,} sequences of {T}; documents of"
            f" {MIXED.document_sequences} sequences; shares of variance: shard, document, sequence {MIXED.shares}.",
            "",
        ]
        out += table(["pool", *(f"blocks of {block}" for block in (1, 2, 4, 8))], list(measure_mixing(batch)))
    print("\n".join(out))
    if asked.save:
        (Path(__file__).parent / "results" / "feed.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
