"""Several SAEs in one command against one command each: wall time, as a user would wait for it, and the steps alone.

    python -m benchmarks.train_together --save        # writes benchmarks/results/train_together.md

Each turn is `python -m train` from its start to its table. The cache is of planted vectors, hot in memory. *Steps* are
what the runs' own metrics say of the time from the first report to the last step; *the rest* is all other time of the
commands: imports, opening the cache, filling the pool, compiling kernels in the first step, held-out scores, saving.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import machine, table
from evals.planted import Dictionary, write_cache

VARIANTS = ("topk", "batchtopk", "matryoshka", "ortho_active")
CONTEXT = 128


@dataclass(frozen=True, kw_only=True)
class Command:
    """What one command, or several in a row, took."""

    wall: float
    """Seconds."""
    steps: float
    """Seconds, of these."""
    gigabytes: float
    """10⁹ bytes of vectors that its feed handed out."""

    @property
    def rest(self) -> float:
        """Seconds that are not steps."""
        return self.wall - self.steps


def command(variants: tuple[str, ...], cache: Path, out: Path, flags: list[str], batch: int) -> Command:
    """Run one and read what its runs say of it; those of one command share a feed and its clock."""
    words = [sys.executable, "-m", "train", "--variant", ",".join(variants), "--cache", str(cache), "--out", str(out)]
    before = set(out.glob("*/*"))
    begin = time.perf_counter()
    subprocess.run([*words, *flags], check=True, capture_output=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    wall = time.perf_counter() - begin
    run = min(set(out.glob("*/*")) - before)
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps, gigabytes, at = 0.0, 0.0, 0
    for line in told:
        rows, at = (line["step"] - at) * batch, line["step"]
        gigabytes += rows * line["gb_per_s"] / line["rows_per_s"]
        steps += rows / line["rows_per_s"] if line is not told[0] else 0.0
    return Command(wall=wall, steps=steps, gigabytes=gigabytes)


def total(commands: Iterable[Command]) -> Command:
    """One after the other."""
    some = list(commands)
    return Command(
        wall=sum(one.wall for one in some),
        steps=sum(one.steps for one in some),
        gigabytes=sum(one.gigabytes for one in some),
    )


def median(rounds: list[Command], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in rounds))


def rows(together: list[Command], alone: list[Command]) -> list[list[str]]:
    """One line a quantity."""
    lines = []
    for name, what, bar in (("wall", "whole commands", "≤ 0.9×"), ("steps", "steps", "–"), ("rest", "the rest", "–")):
        ours, theirs = median(together, name), median(alone, name)
        lines.append([what, f"{ours:.1f} s", f"{theirs:.1f} s", f"{ours / theirs:.2f}×", bar])
    ours, theirs = median(together, "gigabytes"), median(alone, "gigabytes")
    once = f"{1 / len(VARIANTS):.2f}×: read once"
    return [*lines, ["taken from the cache", f"{ours:.2f} GB", f"{theirs:.2f} GB", f"{ours / theirs:.2f}×", once]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians count")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=900, help="of each run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_together.md")
    asked = parser.parse_args()
    head = machine()
    flags = ["--d-sae", str(asked.d_sae), "--steps", str(asked.steps), "--batch", str(asked.batch)]
    together, alone = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, source = folder / "cache", Dictionary(d_model=asked.d_model, features=128, active=8)
        write_cache(cache, source, sequences=-(-asked.steps * asked.batch * 11 // 10 // CONTEXT), context=CONTEXT)
        brief = [*flags, "--steps", "20"]  # the last of two equal flags counts
        command(VARIANTS, cache, folder / "warm", brief, asked.batch)
        for number in range(asked.rounds):
            out = folder / str(number)
            together.append(command(VARIANTS, cache, out / "a", flags, asked.batch))
            alone.append(total(command((one,), cache, out / "b", flags, asked.batch) for one in VARIANTS))
    size = f"d {asked.d_model}, F {asked.d_sae}, k 32, {asked.steps} steps of {asked.batch} rows"
    lines = ["# Several SAEs in one command", "", *head, f"- {', '.join(VARIANTS)}: {size}"]
    lines += [f"- {torch.get_num_threads()} threads; medians of {asked.rounds} interleaved rounds", ""]
    lines += table(["", "one command for all four", "one command each, the sum", "ratio", "bar"], rows(together, alone))
    lines += [
        "",
        "Steps: from the first report to the last step. The rest: imports, opening the cache, filling the pool,",
    ]
    lines += ["compiling kernels in the first step, held-out scores, saving."]
    print("\n".join(lines))
    if asked.save:
        (Path(__file__).parent / "results" / "train_together.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
