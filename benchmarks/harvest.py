"""The harvest against the model that it runs, the usual way, SAELens' cache runner, and its memory against its length.

    python -m benchmarks.harvest --save                      # writes benchmarks/results/harvest.md
    python -m benchmarks.harvest --save --saelens PYTHON     # an interpreter of an environment that has sae-lens
    python -m benchmarks.harvest --save --device cuda        # Gemma-2-2B to layer 12: results/harvest_cuda.md

Shapes: B sequences a batch, T positions.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging

import cache
from benchmarks.measure import interleaved, machine, table
from benchmarks.peers.forward import (
    HOOK,
    flops_per_token,
    forward_seconds,
    matmul_rate,
    narrow_configuration,
    ways_to_hook,
)
from benchmarks.peers.saelens import SaeLens, write_ids, write_text
from harvest.config import HarvestConfig, default_sources
from harvest.hub import MINIATURE
from harvest.lanes import MOST_LANES, Lanes
from harvest.model import ResidualModel, load_model, random_model
from harvest.plan import Plan
from harvest.ranks import Ranks
from harvest.run import Harvest
from harvest.text import TextSource

GEMMA = "google/gemma-2-2b"
MINIATURE_LAYER = 2
NOTES = """
- **the miniature**, **Gemma-2-2B's shapes**: tokens/s of a harvest from its first token to the complete cache on disk,
  fsync included: tokenising (the miniature's own text) or drawing tokens, forward, checks, statistics, writing. Loading
  the model, the plan's timing passes and the final self-check, all of constant length, are not counted. Against: the
  same model on the same batches of tokens, ready in memory, to the same block, the vectors thrown away. *torch's
  threads*: `model(batch)`, one after the other, each with all of torch's threads, as one calls a model; the bar is
  against this. *in lanes* (CPU): several batches at once, each with its share of the threads, as the harvest itself
  runs them: the gain over the first row is the lanes', what is missing to 1 is the price of everything but the forward
  pass.
- **share of the matmul rate**: the harvest's matrix products (the blocks' weights, and the causal half of attention),
  against a bfloat16 product of two square matrices on the same device.
- **the usual way**: `model(tokens, output_hidden_states=True).hidden_states[13]`, logits and all, against our
  forward pass, which ends after block 12; random weights, batch 8 × 128, the vectors compared and equal. In the narrow
  model the 256,000 logits weigh more than in the real one: both are measured.
- **SAELens**: `CacheActivationsRunner.run()` on the same model folder and the same .jsonl file, in a process and an
  environment of its own. Set: model_class_name AutoModelForCausalLM, bfloat16, eager, no key-value cache, batch 32 as
  ours, shuffle off, a buffer of 1024 sequences after another, one batch to warm up. It stops after the block as we do,
  and stores float32. *tokenised before*: it is given our sequences as ids; our time holds the tokenising, its does not.
- **memory**: peak resident memory (VmHWM) of a process that harvests, beyond the same process's after loading the
  model and a few forward passes in its lanes; and how much a harvest eight times as long adds to it. A shard is 17 MB.
"""


class _Pure(Harvest):
    """A harvest without what is of constant length: the plan's timing passes and the final self-check."""

    def _described(self, plan: Plan) -> str:
        return ""

    def _complete(self, writer: cache.CacheWriter, end: int | None) -> None:
        writer.finish(exhausted_at=end, audit={})


def harvest_seconds(config: HarvestConfig, model: ResidualModel, keep: bool = False) -> float:
    """Of one harvest into a new folder."""
    one = _Pure(config, Ranks(), model)
    begin = time.perf_counter()
    one.run()
    taken = time.perf_counter() - begin
    if not keep:
        shutil.rmtree(config.cache)
    return taken


def medians(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Like `interleaved`, for contenders that time themselves."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(1 + rounds):
        for name, run in contenders.items():
            taken = run()
            if turn:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def against_forward(config: HarvestConfig, model: ResidualModel, rounds: int) -> tuple[int, dict[str, float]]:
    """Tokens of a round, and the median seconds of harvest and bare forward pass over the same batches."""
    harvest_seconds(config, model, keep=True)
    reader = cache.open(str(config.cache))
    n = reader.n_sequences
    batches = list(torch.from_numpy(reader.tokens(0, n).copy()).split(config.batch))
    shutil.rmtree(config.cache)
    contenders = {"bare": lambda: forward_seconds(model, batches, config.layers)}
    if model.device.type == "cpu":
        contenders["lanes"] = lambda: forward_seconds_in_lanes(model, batches, config.layers)
    contenders["harvest"] = lambda: harvest_seconds(config, model)
    return n * config.context, medians(contenders, rounds)


def forward_seconds_in_lanes(model: ResidualModel, batches: list[torch.Tensor], layers: tuple[int, ...]) -> float:
    """Of the forward passes alone, several batches at once as the harvest runs them."""
    begin = time.perf_counter()
    with Lanes(model.device, min(torch.get_num_threads(), MOST_LANES)) as lanes:
        pending = deque[Future[object]]()
        for tokens_BT in batches:
            pending.append(lanes.start(partial(model.residuals, tokens_BT, layers=layers)))
            while len(pending) > lanes.ahead:
                pending.popleft().result()
        while pending:
            pending.popleft().result()
    return time.perf_counter() - begin


def rows_against_forward(what: str, tokens: int, seconds: Mapping[str, float]) -> Iterator[list[str]]:
    yield row(what, tokens, seconds["harvest"], "bare forward pass, torch's threads", seconds["bare"], "≥ 0.95×")
    if "lanes" in seconds:
        yield row("… the same harvest", tokens, seconds["harvest"], "bare forward pass in lanes", seconds["lanes"], "–")


def measure_miniature(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    config = text_config(asked.model, asked.tokens, folder / "miniature")
    tokens, seconds = against_forward(config, load_model(asked.model), asked.rounds)
    what = f"harvest of the miniature, layer {MINIATURE_LAYER}, {tokens / 1e6:.2f}M tokens of its text"
    yield from rows_against_forward(what, tokens, seconds)


def measure_gemma(asked: argparse.Namespace, folder: Path, context: int) -> Iterator[list[str]]:
    layer, device = asked.layer, asked.device
    config = HarvestConfig(
        model=GEMMA, layers=(layer,), sources=(), tokens=asked.gemma_tokens, context=context, cache=folder / "gemma",
        batch=max(1, asked.batch_tokens // context), device=device, random_weights=True,
    )  # fmt: skip
    model = random_model(GEMMA, device=device, last_layer=layer)
    tokens, seconds = against_forward(config, model, asked.rounds)
    what = f"harvest of Gemma-2-2B's shapes to layer {layer}, {config.batch} × {context}, {tokens:,} tokens"
    yield from rows_against_forward(what, tokens, seconds)
    ours = flops_per_token(model, layer, context) * tokens / seconds["harvest"]
    peak, bar = matmul_rate(device), "≥ 0.55×" if device == "cuda" else "–"
    flops = [f"{ours / 1e12:,.2f} TFLOP/s", "bf16 matmul", f"{peak / 1e12:,.2f} TFLOP/s", f"{ours / peak:.2f}×", bar]
    yield ["… its share of the matmul rate", *flops]


def measure_usual(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    names = {"26 layers of Gemma-2 with d 512": narrow_configuration(folder / "narrow")}
    if not asked.narrow_only:
        names["Gemma-2-2B's shapes, all 26 layers"] = GEMMA
    for what, name in names.items():
        model = random_model(name, device=asked.device)
        tokens_BT = torch.randint(model.vocab_size, (8, 128), device=asked.device)
        seconds = interleaved(ways_to_hook(model, tokens_BT), rounds=asked.rounds)
        del model
        claim = f"forward pass to layer {HOOK}: {what}"
        yield row(claim, tokens_BT.numel(), seconds["ours"].median, "the usual way", seconds["usual"].median, "≥ 2×")


def text_config(model: str, tokens: int, path: Path) -> HarvestConfig:
    """A harvest of the miniature (or of the folder given in its place) on the miniature's text."""
    sources = default_sources(model, MINIATURE)
    return HarvestConfig(model=model, layers=(MINIATURE_LAYER,), sources=sources, tokens=tokens, cache=path)


def measure_saelens(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    model = load_model(asked.model, device=asked.device)
    data, ids = folder / "text.jsonl", folder / "ids.jsonl"
    write_text(data, asked.saelens_tokens)
    config = text_config(asked.model, asked.saelens_tokens, folder / "ours")
    config = replace(config, sources=(TextSource(text=str(data)),), device=asked.device)
    harvest_seconds(config, model, keep=True)
    reader = cache.open(str(config.cache))
    write_ids(ids, reader.tokens(0, reader.n_sequences))
    expected = reader.layer(MINIATURE_LAYER).sequences(0, 1)[0].clone()
    shutil.rmtree(config.cache)
    theirs = SaeLens(asked.saelens, config, model, folder)
    contenders = {
        "ours": lambda: harvest_seconds(config, model),
        "text": lambda: theirs.seconds(data),
        "ids": lambda: theirs.seconds(ids, expected),
    }
    seconds, tokens = medians(contenders, min(asked.rounds, 3)), reader.n_sequences * config.context
    for name, what in (("text", "harvest of the miniature from a .jsonl file"), ("ids", "… tokenised before")):
        yield row(what, tokens, seconds["ours"], theirs.version, seconds[name], "≥ 2×")


def measure_memory(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    peaks: list[float] = []
    lengths = (asked.memory_tokens // 8, asked.memory_tokens)
    for tokens in lengths:
        found = []
        for _ in range(min(asked.rounds, 3)):
            command = [
                sys.executable,
                "-m",
                "benchmarks.peers.harvest_peak",
                asked.model,
                str(folder / "peak"),
                str(tokens),
            ]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            shutil.rmtree(folder / "peak")
        peaks.append(statistics.median(peak for peak, _ in found))
        shard = found[0][1]
        what = f"peak memory beyond the model, {tokens / 1e6:.2f}M tokens"
        yield [what, f"{peaks[-1] / 1e6:,.0f} MB", "4 shards", f"{4 * shard / 1e6:,.0f} MB",
               f"{peaks[-1] / shard / 4:.2f}×", "≤ 1×"]  # fmt: skip
    grown = f"{(peaks[1] - peaks[0]) / 1e6:+,.0f} MB"
    yield ["… of the longer one beyond the shorter one's", grown, "–", "–", "–", "bounded"]


def row(what: str, tokens: int, ours: float, rival: str, theirs: float, bar: str) -> list[str]:
    return [what, f"{tokens / ours:,.0f} tokens/s", rival, f"{tokens / theirs:,.0f} tokens/s", f"{theirs / ours:.2f}×",
            bar]  # fmt: skip


def measure(asked: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """The rows of the claims asked for."""
    if "forward" in asked.claims:
        if asked.device == "cpu":
            yield from measure_miniature(asked, folder)
        for context in asked.context:
            yield from measure_gemma(asked, folder, context)
    if "usual" in asked.claims:
        yield from measure_usual(asked, folder)
    if "saelens" in asked.claims and asked.saelens:
        yield from measure_saelens(asked, folder)
    if "memory" in asked.claims and asked.device == "cpu":
        yield from measure_memory(asked, folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    add("--claims", default="forward,usual,saelens,memory", help="which to measure (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--model", default=MINIATURE, help="a folder in the miniature's place")
    add("--tokens", type=int, default=2**20, help="of the miniature a round (default: %(default)s)")
    add("--layer", type=int, help="of Gemma-2-2B's shapes (default: 1; on a GPU 12)")
    add("--context", default="", help="of Gemma-2-2B's shapes (default: 128; on a GPU 128,1024)")
    add("--gemma-tokens", type=int, help="of Gemma-2-2B's shapes a round (default: 16384; on a GPU 1M)")
    add("--batch-tokens", type=int, help="of Gemma-2-2B's shapes a batch (default: 2048; on a GPU 16384)")
    add("--narrow-only", action="store_true", help="leave out the usual way at full size (5 GB of memory)")
    add("--memory-tokens", type=int, default=2**21, help="of the longer harvest (default: %(default)s)")
    add("--saelens-tokens", type=int, default=2**18, help="of that row a round (default: %(default)s)")
    add("--saelens", metavar="PYTHON", help="an interpreter that has sae-lens; without it that row is left out")
    add("--dir", help="where to write (default: the system's temporary folder)")
    add("--save", action="store_true", help="write benchmarks/results/harvest.md, or harvest_cuda.md")
    asked = parser.parse_args()
    gpu = asked.device == "cuda"
    asked.layer = asked.layer if asked.layer is not None else (HOOK if gpu else 1)
    asked.context = [int(one) for one in (asked.context or ("128,1024" if gpu else "128")).split(",")]
    asked.gemma_tokens = asked.gemma_tokens or (2**20 if gpu else 2**14)
    asked.batch_tokens = asked.batch_tokens or (16384 if gpu else 2048)
    return asked


def main() -> None:
    asked = parse()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    head = machine()
    for path in filter(None, (asked.saelens, asked.dir)):
        head = [line.replace(path, "…") for line in head]  # where things lie on this machine is nobody's business
    if asked.device == "cuda":
        head.append(f"- GPU: {torch.cuda.get_device_name()}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.dir) as name:
        lines = list(measure(asked, Path(name)))
    out = ["# The harvest against the model that it runs", "", *head, f"- {torch.get_num_threads()} threads"]
    out += [f"- medians of {asked.rounds} interleaved rounds (SAELens and memory: of {min(asked.rounds, 3)})"]
    if not asked.saelens:
        out.append("- SAELens was not measured: it needs `--saelens PYTHON`, an interpreter that has sae-lens")
    out += ["", *table(["claim", "Silo", "against", "", "ratio", "bar"], lines), NOTES.rstrip()]
    print("\n".join(out))
    if asked.save:
        name = "harvest_cuda.md" if asked.device == "cuda" else "harvest.md"
        (results / name).write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
