"""One optimiser step of a TopK SAE: the trainer's own step against SAELens, dictionary_learning and sparsify.

    make peers
    python -m benchmarks.train_step --peers .venv-peers/bin/python --save   # writes benchmarks/results/train_step.md

Every contender lives in a process of its own, waits while another runs, and trains on the same rows, which it holds as
float32 before the clock starts: sums of few unit directions with power-law frequencies, and noise. A peer runs in
float32 and in bfloat16 autocast; its faster way is compared. Nothing is compiled by inductor, and SAELens' sparse codes
are left out: with torch 2.13 their backward pass stops (`aten::view` on `SparseCPU`). Reconstructions are compared on
such rows and, with `--rows-from`, on those of a cache (`make harvest MODEL=miniature LAYER=2`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

import cache
from benchmarks.measure import machine, table
from train.feed import Feed, FeedConfig
from train.kernels import dense
from train.normalise import normalisation

ROOT = Path(__file__).parents[1]
PEERS = (
    "sparsify",
    "sparsify-bf16",
    "saelens",
    "saelens-bf16",
    "dictionary_learning",
    "dictionary_learning-bf16",
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """One row of the table."""

    d_model: int
    d_sae: int
    k: int
    batch: int

    def __str__(self) -> str:
        return f"d {self.d_model}, F {self.d_sae}, k {self.k}, B {self.batch}"


CPU = (Size(d_model=512, d_sae=4096, k=32, batch=1024), Size(d_model=768, d_sae=24576, k=64, batch=2048))
CUDA = (
    Size(d_model=2304, d_sae=18432, k=320, batch=2048),
    Size(d_model=2304, d_sae=65536, k=64, batch=8192),
)
QUALITY = Size(d_model=256, d_sae=2048, k=32, batch=1024)
REAL_F, REAL_K = 1024, 16
SEEDS_STEPS = 4882


class Contender:
    """A trainer in its own process (`peers/train_steps.py`)."""

    def __init__(self, python: str, asked: dict[str, Any]) -> None:
        """Start it and wait until it is ready."""
        # `train` comes before torch, as in `python -m train`: it says how OpenMP's threads wait.
        first = "import train.__main__; " if asked["trainer"] == "silo" else ""
        code = f"{first}from benchmarks.peers.train_steps import main; main()"
        self.folder = tempfile.TemporaryDirectory()
        self.log = Path(self.folder.name) / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-c", code, json.dumps(asked)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )
        self.version = self._answer()["version"]

    def ask(self, order: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender stopped:\n{self.log.read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def write_rows(path: Path, size: Size, batches: int, seed: int = 0) -> None:
    """Rows with mean 0 and E‖x‖² = D: k of 2 F unit directions a row, feature p with frequency ∝ p^−½, plus noise."""
    # Far from any contender's seed: the same stream of numbers would start a dictionary at the planted directions.
    generator = torch.Generator().manual_seed(seed + 2**20)
    directions_PD = torch.nn.functional.normalize(torch.randn(2 * size.d_sae, size.d_model, generator=generator), dim=1)
    rows_ND = np.lib.format.open_memmap(path, "w+", np.float32, (batches * size.batch, size.d_model))
    for start in range(0, len(rows_ND), size.batch):
        uniform_BK = torch.rand(size.batch, size.k, generator=generator)
        chosen_BK = (uniform_BK.square() * len(directions_PD)).long()
        loudness_BK = torch.empty(size.batch, size.k).exponential_(generator=generator)
        x_BD = torch.nn.functional.embedding_bag(chosen_BK, directions_PD, mode="sum", per_sample_weights=loudness_BK)
        x_BD += 0.3 * torch.randn(x_BD.shape, generator=generator) * (size.k / size.d_model) ** 0.5
        rows_ND[start : start + size.batch] = x_BD.numpy()
    some_ND = rows_ND[: 8 * size.batch].astype(np.float64)
    mean_D = some_ND.mean(0)
    rows_ND -= mean_D.astype(np.float32)
    rows_ND *= np.float32((((some_ND - mean_D) ** 2).mean()) ** -0.5)
    rows_ND.flush()


def write_real_rows(path: Path, reader: cache.CacheReader, size: Size, batches: int, seed: int = 0) -> None:
    """Rows of a cache's last layer in random order, normalised as training has them; the last batch is held out."""
    layer = reader.layers[-1]
    scale = normalisation(reader, layer, FeedConfig(batch=size.batch))
    rows_ND = np.lib.format.open_memmap(path, "w+", np.float32, (batches * size.batch, size.d_model))
    for split, numbers in (("train", range(batches - 1)), ("held_out", range(batches - 1, batches))):
        with Feed(reader, [layer], FeedConfig(batch=size.batch, seed=seed, split=split)) as feed:
            for number in numbers:
                start = number * size.batch
                rows_ND[start : start + size.batch] = scale.apply(next(feed).x).numpy()
    rows_ND.flush()


def measure_speed(
    size: Size, names: list[str], asked: dict[str, Any], python: dict[str, str], rounds: int
) -> tuple[dict[str, float], list[str]]:
    """Median rows/s of each contender, and the versions."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = Path(folder) / "rows.npy"
        write_rows(data, size, batches=9)
        common = asdict(size) | asked | {"data": str(data), "steps": 10_000, "seed": 0, "lr": learning_rate(size)}
        contenders = {name: stack.enter_context(Contender(python[name], common | {"trainer": name})) for name in names}
        steps = {name: max(2, round(1 / contenders[name].ask("train 3")["seconds"] * 3)) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, contender in contenders.items():
                seconds[name].append(contender.ask(f"train {steps[name]}")["seconds"] / steps[name])
        speeds = {name: size.batch / statistics.median(taken) for name, taken in seconds.items()}
        return speeds, sorted({one.version for one in contenders.values()})


def measure_quality(
    size: Size,
    write: Callable[[Path, int], None],
    names: list[str],
    asked: dict[str, Any],
    python: dict[str, str],
    *,
    steps: int,
    seeds: int,
) -> dict[str, list[float]]:
    """FVU on unseen rows after equal steps on equal rows, by contender and seed; `write` makes a seed's rows."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "rows.npy"
            write(data, seed)
            for name in names:
                common = asdict(size) | asked | {"data": str(data), "steps": steps, "seed": seed, "trainer": name}
                with Contender(python[name], common | {"lr": learning_rate(size)}) as contender:
                    contender.ask(f"train {steps}")
                    found[name].append(contender.ask("fvu")["fvu"])
    return found


def product_seconds(size: Size, device: str) -> float:
    """Time of a step's dense products alone, at the rate that one such product reaches on this device."""
    torch.set_float32_matmul_precision("high")  # as the trainer has it
    x_BD = torch.randn(size.batch, size.d_model, device=device)
    w_DF = torch.randn(size.d_model, size.d_sae, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for repeat in range(13):
        if repeat == 3:
            begin.record()
        x_BD @ w_DF
    end.record()
    torch.cuda.synchronize()
    # Encoding is dense always; where codes are dense, so are decoding and the three products of the backward pass.
    products = 5 if dense.pays(size.k * size.batch, size.batch, size.d_sae, torch.device(device)) else 1
    return begin.elapsed_time(end) / 10 / 1000 * products


def learning_rate(size: Size) -> float:
    """Gao et al. 2024, as every contender's TopK has it: 2e-4 / √(F / 2¹⁴)."""
    return 2e-4 / (size.d_sae / 2**14) ** 0.5


def speed_rows(size: Size, speeds: dict[str, float]) -> Iterator[list[str]]:
    """One line a contender, the fastest peer marked."""
    peers = {name: one for name, one in speeds.items() if name != "silo"}
    fastest = max(peers, key=peers.__getitem__, default="")
    for name, one in speeds.items():
        ratio = "–" if name == "silo" else f"{speeds['silo'] / one:.2f}×"
        bars = ["≥ 2×"] * (name == fastest) + ["≥ 5×"] * (name in ("saelens", "dictionary_learning"))
        yield [str(size), name, f"{one:,.0f}", ratio, ", ".join(bars) or "–"]


NOTE = (
    "≥ 2× is asked of the fastest peer at its best settings. ≥ 5× of SAELens and of dictionary_learning is asked in"
    " float32, which is what the bar was set for: only float32 has the same top-k as Silo. Their autocast rows show"
    " their ratio and have no such bar."
)


def quality(asked: argparse.Namespace, names: list[str], common: dict[str, Any], python: dict[str, str]) -> list[str]:
    """The tables of reconstructions: planted rows, and a cache's if one is given."""

    def planted(path: Path, seed: int) -> None:
        write_rows(path, QUALITY, batches=asked.steps + 1, seed=seed)

    sets: list[tuple[str, Size, Callable[[Path, int], None]]] = [("planted rows", QUALITY, planted)]
    notes = []
    if asked.rows_from and Path(asked.rows_from, "zarr.json").is_file():
        reader = cache.open(asked.rows_from)
        size = Size(d_model=reader.meta.d_model, d_sae=REAL_F, k=REAL_K, batch=QUALITY.batch)

        def real(path: Path, seed: int) -> None:
            write_real_rows(path, reader, size, batches=asked.steps + 1, seed=seed)

        where = f"rows of {reader.meta.model}, layer {reader.layers[-1]}, the unseen ones held out"
        sets.append((where, size, real))
    else:
        missing = f"{asked.rows_from} is not there" if asked.rows_from else "none was given"
        notes = ["", f"No rows of a model: --rows-from wants a cache, {missing}."]
    lines: list[str] = []
    for what, size, write in sets:
        found = measure_quality(size, write, names, common, python, steps=asked.steps, seeds=asked.seeds)
        lines += ["", f"FVU on unseen rows after {asked.steps} steps on equal rows ({what}: {size}), a seed each:", ""]
        lines += table(
            ["contender", *(f"seed {seed}" for seed in range(asked.seeds)), "mean"],
            [[name, *(f"{one:.4f}" for one in fvus), f"{np.mean(fvus):.4f}"] for name, fvus in found.items()],
        )
    return lines + notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=None, help="a Python with sae-lens, dictionary-learning and eai-sparsify")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds of about a second; medians count")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, each with its own sizes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every contender")
    parser.add_argument("--steps", type=int, default=300, help="of the comparison of reconstructions")
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison of reconstructions; 0 leaves it out")
    parser.add_argument("--rows-from", metavar="CACHE", help="compare reconstructions of this cache's last layer, too")
    parser.add_argument("--only", default="", help="contenders, comma-separated (default: all)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train_step.md")
    arguments = parser.parse_args()
    head = machine()
    names = ["silo", *(PEERS if arguments.peers else ())]
    names = [one for one in names if not arguments.only or one in arguments.only.split(",")]
    python = {name: sys.executable if name == "silo" else arguments.peers for name in names}
    asked = {"threads": arguments.threads, "device": arguments.device}
    lines, versions = [], []
    for size in CPU if arguments.device == "cpu" else CUDA:
        speeds, versions = measure_speed(size, names, asked, python, arguments.rounds)
        lines += speed_rows(size, speeds)
        if arguments.device != "cpu":
            seconds = SEEDS_STEPS * size.batch / speeds["silo"]
            lines.append([str(size), f"silo, {SEEDS_STEPS} steps", f"{seconds:.1f} s", "–", "≤ 20 s (F 18432)"])
            share = product_seconds(size, arguments.device) * speeds["silo"] / size.batch
            lines.append([str(size), "silo, share of the products' own time", f"{share:.0%}", "–", "≥ 60 % (F 65536)"])
    out = ["# One optimiser step of a TopK SAE", "", *head, f"- contenders: {', '.join(versions)}"]
    out += [f"- {arguments.threads} threads each; medians of {arguments.rounds} interleaved rounds", ""]
    out += table(["size", "contender", "rows/s", "Silo is faster by", "bar"], lines)
    out += ["", NOTE]
    if arguments.seeds:
        exact = [name for name in names if not name.endswith("-bf16")]
        out += quality(arguments, exact, asked, python)
    print("\n".join(out))
    if arguments.save:
        suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
        (ROOT / "benchmarks" / "results" / f"train_step{suffix}.md").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
