"""Several SAEs in one command against one command each: wall time, as a user would wait for it.

    python -m benchmarks.train_together --save        # writes benchmarks/results/train_together.md

Each turn is `python -m train` from its start to its table: imports, opening the cache, filling the pool, training,
held-out scores, saving. The cache is of planted vectors, hot in memory; together it is read once, else four times.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import machine, table
from evals.planted import Dictionary, write_cache

VARIANTS = ("topk", "batchtopk", "matryoshka", "ortho_active")
CONTEXT = 128


def seconds(variants: tuple[str, ...], cache: Path, out: Path, flags: list[str]) -> float:
    """Of one command."""
    command = [sys.executable, "-m", "train", "--variant", ",".join(variants), "--cache", str(cache), "--out", str(out)]
    begin = time.perf_counter()
    subprocess.run([*command, *flags], check=True, capture_output=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="medians count")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_together.md")
    arguments = parser.parse_args()
    head = machine()
    flags = ["--d-sae", str(arguments.d_sae), "--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    taken: dict[str, list[float]] = {"together": [], "one by one": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Dictionary(d_model=arguments.d_model, features=128, active=8)
        sequences = -(-arguments.steps * arguments.batch * 11 // 10 // CONTEXT)
        write_cache(folder / "cache", source, sequences=sequences, context=CONTEXT)
        seconds(VARIANTS, folder / "cache", folder / "warm", flags)
        for number in range(arguments.rounds):
            out = folder / str(number)
            taken["together"].append(seconds(VARIANTS, folder / "cache", out / "a", flags))
            alone = [seconds((one,), folder / "cache", out / "b", flags) for one in VARIANTS]
            taken["one by one"].append(sum(alone))
    median = {what: statistics.median(times) for what, times in taken.items()}
    ratio = median["together"] / median["one by one"]
    size = f"d {arguments.d_model}, F {arguments.d_sae}, k 32, {arguments.steps} steps of {arguments.batch} rows"
    what = f"{', '.join(VARIANTS)}: {size}"
    out_lines = ["# Several SAEs in one command", "", *head, f"- {what}"]
    out_lines += [
        f"- {torch.get_num_threads()} threads; medians of {arguments.rounds} interleaved rounds of whole commands",
        "",
    ]
    rows = [
        ["one command for all four", f"{median['together']:.1f} s", f"{ratio:.2f}×", "≤ 0.9×"],
        ["one command each, the sum", f"{median['one by one']:.1f} s", "–", "–"],
    ]
    out_lines += table(["", "wall time", "ratio", "bar"], rows)
    print("\n".join(out_lines))
    if arguments.save:
        (Path(__file__).parent / "results" / "train_together.md").write_text("\n".join(out_lines) + "\n")


if __name__ == "__main__":
    main()
