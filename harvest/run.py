"""The harvest itself: sequences → forward pass → cache, each stage busy while the others are.

Tokenising runs in a thread of its own, device-to-host copies run beside the next forward pass, checks and disk writes
in the writer's threads. Batches begin at shard starts, so what is computed does not depend on where a harvest was
interrupted, or by how many processes it runs.
Shapes: B sequences a batch, T positions, D d_model.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import torch
from tqdm import tqdm

import cache
from cache.checksum import canonical
from cache.manifest import MAX_CURSOR_BYTES
from harvest.config import HarvestConfig
from harvest.forward import InFlight, forward
from harvest.meta import cache_meta
from harvest.model import ResidualModel, load_model, random_model
from harvest.plan import Plan
from harvest.ranks import Ranks
from harvest.streams import CachedSequences, RandomSequences, Sequences, TextSequences
from harvest.text import Documents
from harvest.tokenizer import TextTokenizer, load_tokenizer
from harvest.tokens import TokenStream

IN_FLIGHT: Final = 2
"""Batches whose vectors are on their way to the host while the next one is computed."""
Say = Callable[[str], object]


class Harvest:
    """One process of one harvest."""

    def __init__(self, config: HarvestConfig, ranks: Ranks, model: ResidualModel | None = None) -> None:
        """Load the model and open the text; nothing is written yet.

        Args:
            config: what is asked for.
            ranks: this process among its fellows.
            model: one that is loaded already, instead of `config.model`.

        Raises:
            HarvestError: a model, layer or text that cannot be had.
        """
        self.config, self.ranks = config, ranks
        self.model = model or _load(config)
        self.layers = self.model.check_layers(config.layers)
        self.tokenizer: TextTokenizer | None = None
        self.documents: Documents | None = None
        if not config.random_weights:
            self.tokenizer = load_tokenizer(config.model, config.revision)
            self.documents = Documents(config.sources, seed=config.seed, held_out_fraction=config.held_out_fraction)
        self.meta = cache_meta(config, self.model, self.tokenizer, self.documents)
        self._notes: list[str] = []
        self._seconds: dict[tuple[int, ...], float] = {}

    def run(self, *, dry_run: bool = False, say: Say = lambda line: None) -> cache.CacheReader | None:
        """Print the plan, do what is still owed, complete the cache; returns it opened (None after a dry run).

        Raises:
            HarvestError: what cannot fit on the disk, or a text without a single sequence.
            CacheError: a cache that contradicts the request, a non-finite row, a full disk.
        """
        first = self.ranks.rank == 0
        say = say if first else lambda line: None
        if dry_run:
            say(str(self._checked_plan(self.layers, self._everything())))
            return None
        if first and not self.config.cache.exists():
            self._checked_plan(self.layers, self._everything())  # what cannot fit leaves no trace
        with self._open_writer() as writer:
            if first and writer.owed:
                say(str(self._checked_plan(writer.state.layers, writer.owed)))
            end = self.ranks.agree_on_end(self._work(writer))
            writer.flush(end=end)
            self.ranks.wait()
            if first and not writer.state.complete:
                writer.finish(exhausted_at=end, audit=self._audit(writer.state.layers, end or writer.state.sequences))
            self.ranks.wait()
        reader = cache.open(str(self.config.cache))
        for note in [*self._notes, *self._shortfall(reader)]:
            say(note)
        return reader

    def _open_writer(self) -> cache.CacheWriter:
        """Rank 0 first: the others join what it has prepared."""
        ranks, config = self.ranks, self.config
        if ranks.rank > 0:
            ranks.wait()
        writer = cache.CacheWriter(
            config.cache,
            self.meta,
            layers=self.layers,
            sequences=config.sequences,
            rank=ranks.rank,
            world_size=ranks.world_size,
            session=ranks.session,
        )
        if ranks.rank == 0:
            ranks.wait()
        return writer

    def _work(self, writer: cache.CacheWriter) -> int | None:
        """Do this process's jobs; returns the sequence at which the text ended, if it did."""
        jobs, stream, at = list(writer.jobs()), None, -1
        total = sum(job.stop - job.start for job in jobs) * self.config.context
        with _Progress(total, writer, self.ranks) as progress:
            try:
                for job in jobs:
                    if stream is None or at != job.start or isinstance(stream, CachedSequences) == job.rows:
                        if stream is not None:
                            stream.close()
                        stream = self._sequences(writer, job)
                    at = self._do(writer, job, stream, progress)
                    if at < job.stop:
                        return at
            finally:
                if stream is not None:
                    self._notes += stream.notes()
                    stream.close()
            self._notes += progress.notes()
        return None

    def _do(self, writer: cache.CacheWriter, job: cache.Job, stream: Sequences, progress: "_Progress") -> int:
        """Harvest one shard; returns the sequence after the last one."""
        at, pending = job.start, deque[InFlight]()
        most = IN_FLIGHT if self.model.device.type == "cuda" else 0
        while at < job.stop:
            block = stream.take(min(self.config.batch, job.stop - at))
            if not len(block.tokens):
                break
            batch = forward(self.model, at, block, job.layers, self.meta.bos_token_id)
            at += len(block.tokens)
            pending.append(batch._replace(cursor=_cursor(stream)) if at == job.stop else batch)
            while len(pending) > most:
                self._hand_over(writer, pending.popleft(), progress)
        while pending:
            self._hand_over(writer, pending.popleft(), progress)
        return at

    def _hand_over(self, writer: cache.CacheWriter, one: InFlight, progress: "_Progress") -> None:
        moments = one.arrive()
        domain = one.block.domain if self.meta.domains else None
        rows = cache.Rows(one.block.tokens, one.block.document, one.block.split, domain)
        writer.append(one.start, rows, one.residuals, moments=moments, cursor=one.cursor)
        progress.advance(one.block.tokens.size, sum(x.nbytes for x in one.residuals.values()))

    def _sequences(self, writer: cache.CacheWriter, job: cache.Job) -> Sequences:
        """A stream that stands at the first sequence of a job."""
        c = self.config
        if not job.rows:
            return CachedSequences(cache.open(str(c.cache), follow=True), job.start)
        if self.tokenizer is None or self.documents is None:
            return RandomSequences(self.model.vocab_size, c.context, c.seed, job.start, c.held_out_fraction)
        at, cursor = writer.cursor_before(job.shard)
        state = dict(cursor) if cursor else None
        stream = TokenStream(self.documents, self.tokenizer, context=c.context, packing=c.packing, state=state)
        return TextSequences(stream, at, job.start)

    def _audit(self, layers: tuple[int, ...], sequences: int) -> dict[str, float]:
        """Compute the first batch again: what bfloat16 storage costs, and whether the cache holds it bit for bit.

        The rows compared are those of documents; vectors at padding mean nothing.
        """
        reader = cache.open(str(self.config.cache), follow=True)
        n = min(self.config.batch, sequences, self.config.shard_sequences)
        residuals = self.model.residuals(torch.from_numpy(reader.tokens(0, n)), layers=layers)
        member = torch.from_numpy(reader.document(0, n) >= 0)
        audit, differing = {}, 0
        for layer, x_BTD in residuals.items():
            exact, stored = x_BTD.float().cpu()[member], reader.layer(layer).sequences(0, n)[member]
            kept = exact.to(torch.bfloat16)
            differing += int((kept != stored).any(-1).sum())
            x = exact.double()
            audit[f"layer_{layer}/bf16_fvu"] = float(
                (x - kept.double()).square().sum() / (x - x.mean(0)).square().sum()
            )
        rows = int(member.sum()) * len(layers)
        self._notes.append(
            f"the first batch was computed again: {rows - differing:,} of {rows:,} rows are the same bits"
        )
        return audit

    def _everything(self) -> tuple[cache.Job, ...]:
        """The jobs of a cache that is not there yet."""
        s, n = self.config.shard_sequences, self.config.sequences
        starts = range(0, n, s)
        return tuple(
            cache.Job(shard=i // s, start=i, stop=min(i + s, n), layers=self.layers, rows=True) for i in starts
        )

    def _checked_plan(self, layers: tuple[int, ...], jobs: tuple[cache.Job, ...]) -> Plan:
        plan = Plan(
            meta=self.meta,
            layers=layers,
            jobs=jobs,
            total_shards=jobs[-1].shard + 1,
            seconds_per_sequence=self._seconds_per_sequence(layers),
            world_size=self.ranks.world_size,
            path=self.config.cache,
        )
        plan.check()
        return plan

    def _seconds_per_sequence(self, layers: tuple[int, ...]) -> float:
        """Of a forward pass, the second of two (the first one warms up)."""
        if layers in self._seconds:
            return self._seconds[layers]
        tokens = torch.zeros(self.config.batch, self.config.context, dtype=torch.long)
        for _ in range(2):
            begin = time.perf_counter()
            self.model.residuals(tokens, layers=layers)
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()
        self._seconds[layers] = (time.perf_counter() - begin) / self.config.batch
        return self._seconds[layers]

    def _shortfall(self, reader: cache.CacheReader) -> list[str]:
        if reader.n_sequences >= self.config.sequences:
            return []
        held = reader.n_sequences * self.config.context
        return [f"the text held no more than {held:,} tokens of the {self.config.tokens:,} asked for"]


class _Progress:
    """One progress line: tokens/s, GB/s, time left, share of the time that the model waited for the disk."""

    def __init__(self, total: int, writer: cache.CacheWriter, ranks: Ranks) -> None:
        label = "harvest" if ranks.world_size == 1 else f"harvest, process 1 of {ranks.world_size}"
        self.bar = tqdm(total=total, unit="tok", unit_scale=True, desc=label, disable=True if ranks.rank else None)
        self.writer, self.begin, self.tokens, self.nbytes = writer, time.perf_counter(), 0, 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, tokens: int, nbytes: int) -> None:
        self.tokens, self.nbytes = self.tokens + tokens, self.nbytes + nbytes
        self.bar.set_postfix_str(self._rate(), refresh=False)
        self.bar.update(tokens)

    def notes(self) -> list[str]:
        if not self.tokens:
            return []
        seconds = time.perf_counter() - self.begin
        rate = f"{self.tokens / seconds:,.0f} tokens/s, {self._rate()}"
        return [f"harvested {self.tokens:,} tokens in {seconds:,.1f} s: {rate}"]

    def _rate(self) -> str:
        seconds = time.perf_counter() - self.begin
        return f"{self.nbytes / seconds / 1e9:.3f} GB/s, waited {self.writer.waited_seconds / seconds:.0%} for the disk"


def _load(config: HarvestConfig) -> ResidualModel:
    options = {"dtype": config.dtype, "attention": config.attention, "device": config.device}
    last = max([*config.layers, *_layers_there(config)])  # layers that are there already are continued
    if config.random_weights:
        model = random_model(config.model, last_layer=last, **options)  # type: ignore[arg-type]
    else:
        model = load_model(config.model, revision=config.revision, last_layer=last, **options)  # type: ignore[arg-type]
    limit = model.max_positions
    if limit is not None and config.context > limit:
        sys.stderr.write(f"warning: context {config.context} is longer than the {limit} the model was made for\n")
    return model


def _layers_there(config: HarvestConfig) -> tuple[int, ...]:
    try:
        return cache.open(str(config.cache), follow=True).layers
    except cache.CacheError:
        return ()  # none yet, or a damaged one, which the writer will explain


def _cursor(stream: Sequences) -> dict[str, Any]:
    cursor = stream.cursor()
    return cursor if len(canonical(cursor)) <= MAX_CURSOR_BYTES else {}  # resuming then tokenises from further back
