"""Several SAEs from one feed against the same SAEs one after another: wall time, and how often the cache is read.

    python -m benchmarks.train_together --save        # writes benchmarks/results/train_together.md

Whole runs of `python -m train`: open the cache, fill the pool, train, evaluate on held-out rows, save. The cache is of
planted vectors, hot in memory. Each round trains all four together and each alone, in turns.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import machine, table
from evals.planted import Dictionary, write_cache
from train import launch, sweep
from train.loop import Options
from train.world import World

VARIANTS = ("topk", "batchtopk", "matryoshka", "topk")
K = (32, 32, 32, 64)
CONTEXT = 128


def seconds(cache: Path, settings: list[str], chosen: list[int], out: Path) -> float:
    """Of one command that trains the chosen runs."""
    begin = time.perf_counter()
    reader = launch.open_cache(str(cache))
    requests = [sweep.from_flags(VARIANTS[i], "", [*settings, f"k={K[i]}"], [])[0] for i in chosen]
    planned = launch.plan(requests, reader, [0], out)
    options = Options(progress=False)
    if not launch.train(planned, reader, str(cache), options, World(), lambda text: None):
        raise SystemExit("a run did not come to its end")
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians count")
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_together.md")
    arguments = parser.parse_args()
    head = machine()
    settings = [f"d_sae={arguments.d_sae}", f"steps={arguments.steps}", f"batch={arguments.batch}"]
    everyone = list(range(len(VARIANTS)))
    together: list[float] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        source = Dictionary(d_model=arguments.d_model, features=128, active=8)
        sequences = -(-arguments.steps * arguments.batch * 11 // 10 // CONTEXT)
        write_cache(folder / "cache", source, sequences=sequences, context=CONTEXT)
        seconds(folder / "cache", [*settings[:1], "steps=5", settings[2]], everyone, folder / "warm")
        for number in range(arguments.rounds):
            together.append(seconds(folder / "cache", settings, everyone, folder / f"together{number}"))
            parts = [seconds(folder / "cache", settings, [i], folder / f"alone{number}-{i}") for i in everyone]
            alone.append(sum(parts))
    one, four = statistics.median(together), statistics.median(alone)
    what = ", ".join(f"{variant} k {k}" for variant, k in zip(VARIANTS, K, strict=True))
    out = ["# Four SAEs from one feed", "", *head]
    out += [f"- d {arguments.d_model}, F {arguments.d_sae}, B {arguments.batch}, {arguments.steps} steps; {what}"]
    out += [f"- {torch.get_num_threads()} threads; medians of {arguments.rounds} interleaved rounds", ""]
    rows = [
        ["four together", f"{one:.1f} s", f"{one / four:.2f}×", "≤ 0.9×"],
        ["one by one", f"{four:.1f} s", "–", "–"],
    ]
    out += table(["", "wall time", "ratio", "bar"], rows)
    print("\n".join(out))
    if arguments.save:
        (Path(__file__).parent / "results" / "train_together.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
