"""What a penalty adds to a training step: each variant's step against that of plain BatchTopK, same rows, in turns.

    OMP_WAIT_POLICY=passive python -m benchmarks.penalties --save         # writes benchmarks/results/penalties.md
    python -m benchmarks.penalties --device cuda --d-model 2304 --d-sae 65536 --k 64

The environment variable is what `python -m train` sets by itself, before torch is loaded.

A turn is 100 consecutive optimiser steps of one SAE, so that whatever a penalty does only now and then (searching pairs
every 10 or 100 steps) is in it at its share. Rows are sums of few unit directions with power-law frequencies, and
noise, held in memory; they come as windows of 8 for the penalties that need them.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import interleaved, machine, table
from benchmarks.train_step import Size, learning_rate, write_rows
from train.architectures import ARCHITECTURES
from train.config import RunConfig, TrainingConfig
from train.feed.batch import Batch
from train.feed.config import FeedConfig
from train.member import Member
from train.normalise import Normalisation
from train.penalties import PENALTIES
from train.rows import Rows
from train.run_folder import RunFolder
from train.variants import VARIANTS
from train.world import World

WINDOW, BATCHES = 8, 8
PLAIN = "batchtopk"
BAR = {"ortho_active", "ortho_importance", "ortho_pairs", "ortho_adaptive", "ortho_groups", "temporal"}  # ≤ 1.25×
CHOSEN = (
    "ortho_active",
    "ortho_importance",
    "ortho_pairs",
    "ortsae",
    "ortho_adaptive",
    "ortho_groups",
    "temporal",
)
SETTINGS = {"ortho_groups": {"by": "clusters"}}  # these rows have no domains


def member(name: str, size: Size, device: str) -> Member:
    variant = VARIANTS[name]
    config = RunConfig(
        variant=name,
        architecture=variant.base,
        sae=ARCHITECTURES[variant.base].config(d_model=size.d_model, d_sae=size.d_sae, k=size.k),
        penalties={one: PENALTIES[one].config(**SETTINGS.get(one, {})) for one in variant.penalties},
        training=TrainingConfig(steps=100_000, lr=learning_rate(size)),
        feed=FeedConfig(batch=size.batch, window=WINDOW),
        cache="benchmark",
        sequences=1,
        layer=0,
    )
    unit = Normalisation(torch.zeros(size.d_model, device=device), 1.0, "benchmark")
    return Member(config, RunFolder(Path("nowhere")), unit, device=device, world=World(), metadata={})


def batches(path: Path, size: Size, device: str) -> list[Rows]:
    write_rows(path, size, BATCHES)
    rows_ND = torch.from_numpy(np.load(path)).to(device)
    n = torch.zeros(size.batch // WINDOW, dtype=torch.int32)
    nW = n[:, None].expand(-1, WINDOW)
    return [
        Rows(
            x_BD,
            WINDOW,
            Batch(
                x_BD.view(-1, WINDOW, size.d_model).bfloat16(), n.long(), n, nW, nW, torch.zeros(0, dtype=torch.uint8)
            ),
        )
        for x_BD in rows_ND.split(size.batch)
    ]


def turn(one: Member, rows: list[Rows], steps: int) -> Callable[[], None]:
    endless = itertools.cycle(rows)

    def run() -> None:
        for _ in range(steps):
            one.step(next(endless), report=False)
        if one.silence.rows_F.is_cuda:
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved turns of each; medians count")
    parser.add_argument("--steps", type=int, default=100, help="of one turn")
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", default=",".join(CHOSEN))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/penalties.md")
    arguments = parser.parse_args()
    head = machine()
    size = Size(d_model=arguments.d_model, d_sae=arguments.d_sae, k=arguments.k, batch=arguments.batch)
    with tempfile.TemporaryDirectory() as name:
        rows = batches(Path(name) / "rows.npy", size, arguments.device)
    names = [PLAIN, *arguments.variants.split(",")]
    turns = {name: turn(member(name, size, arguments.device), rows, arguments.steps) for name in names}
    timings = interleaved(turns, rounds=arguments.rounds)
    plain = timings[PLAIN].median
    lines = [
        [
            name,
            f"{1000 * timing.median / arguments.steps:.1f} ms",
            f"{1000 * timing.fastest / arguments.steps:.1f} – {1000 * timing.slowest / arguments.steps:.1f}",
            f"{timing.median / plain:.2f}×",
            "≤ 1.25×" if name in BAR else "–",
        ]
        for name, timing in timings.items()
    ]
    out = ["# What a penalty adds to a training step", "", *head, f"- {size}, {arguments.device}"]
    threads = f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    out += [f"- {threads}; medians of {arguments.rounds} turns of {arguments.steps} steps", ""]
    out += table(["variant", "a step", "fastest – slowest", "ratio", "bar"], lines)
    print("\n".join(out))
    if arguments.save:
        (Path(__file__).parent / "results" / "penalties.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
