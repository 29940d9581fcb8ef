"""What a harvest will cost, said before it begins; what cannot fit is refused."""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

import cache
from cache.layout import layer_arrays, row_arrays
from harvest.errors import HarvestError
from harvest.lanes import Lanes, lanes_for
from harvest.model import ResidualModel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Work that is still to be done by all processes."""

    request: cache.Request
    """What is asked for, held against what is there."""
    world_size: int
    path: Path

    @cached_property
    def jobs(self) -> tuple[cache.Job, ...]:
        """Shards that are to be written."""
        return self.request.owed

    @property
    def meta(self) -> cache.CacheMeta:
        """Of the cache."""
        return self.request.meta

    @property
    def sequences(self) -> int:
        """Sequences to run the model on."""
        return sum(job.stop - job.start for job in self.jobs)

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        total = 0
        for job in self.jobs:
            arrays = {k: v for layer in job.layers for k, v in layer_arrays(self.meta, job.stop, layer).items()}
            arrays |= row_arrays(self.meta, job.stop) if job.rows else {}
            for spec in arrays.values():
                whole = spec.kind != "residuals"
                index = 0 if whole else 16 * self.meta.shard_sequences + 4
                total += spec.chunk_bytes if whole else (job.stop - job.start) * spec.item_bytes + index
        return total

    @property
    def free(self) -> int:
        """Bytes free on the disk of the cache."""
        folder = self.path.resolve()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            HarvestError: with what is needed, what is free, and how many tokens would fit.
        """
        if not self.jobs:
            return
        needed, free = self.nbytes, self.free
        if needed > free:
            fit = int(self.sequences * self.meta.context * free / needed * 0.95)
            raise HarvestError(
                f"{self.path} needs {needed / 1e9:,.2f} GB, its disk has {free / 1e9:,.2f} GB free: free some space,"
                f" use another CACHE, or ask for at most {fit:,} TOKENS more"
            )

    def describe(self, seconds_per_sequence: float) -> str:
        """The plan, for people.

        Args:
            seconds_per_sequence: of one process, measured.
        """
        meta, total = self.meta, self.request.state.shards(self.meta.shard_sequences)
        done = total - len(self.jobs)
        there = f" ({done:,} of {total:,} are there already)" if done else ""
        seconds = seconds_per_sequence / self.world_size
        layers = ", ".join(map(str, self.request.state.layers))
        text = ", ".join(source.dataset for source in meta.sources)
        sequences = f"{self.sequences:,} sequences in {len(self.jobs):,} shards{there}"
        lines = [
            f"harvest  {meta.model} @ {meta.model_revision[:12]} → {self.path}",
            f"  layers   {layers} (blocks.L.hook_{meta.hook}), {meta.d_model} × bfloat16 a token",
            f"  text     {text} ({meta.packing}, context {meta.context})",
            f"  tokens   {self.sequences * meta.context:,}: {sequences}",
            f"  disk     {self.nbytes / 1e9:,.2f} GB to write, {self.free / 1e9:,.1f} GB free",
            f"  time     about {_duration(seconds * self.sequences)} at {meta.context / seconds:,.0f} tokens/s"
            + (f" on {self.world_size} processes" if self.world_size > 1 else ""),
        ]
        if self.meta.random_weights:
            lines.insert(1, "  WARNING  random weights and random tokens: for speed measurements alone")
        return "\n".join(lines)

    def nothing(self) -> str:
        """What to say instead where no shard is to be written."""
        layers, held = ", ".join(map(str, self.request.state.layers)), self.request.state.sequences * self.meta.context
        what = f"{self.path} holds layers {layers} of {held:,} tokens already"
        return f"{what}: nothing to do" if self.request.state.complete else f"{what}: only to be completed"


def seconds_per_sequence(model: ResidualModel, batch: int, context: int, layers: tuple[int, ...]) -> float:
    """Time of forward passes in all lanes, over their sequences: the second of two rounds (the first one warms up)."""
    tokens_BT = torch.zeros(batch, context, dtype=torch.long)
    with Lanes(model.device, lanes_for(model.d_model)) as lanes:
        for _ in range(2):
            begin = time.perf_counter()
            under_way = [lanes.start(partial(model.residuals, tokens_BT, layers=layers)) for _ in range(lanes.n)]
            for one in under_way:
                one.result()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
    return (time.perf_counter() - begin) / (batch * lanes.n)


def _duration(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size * 1.5:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} seconds"
