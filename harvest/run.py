"""The harvest itself: sequences → forward pass → cache, each stage busy while the others are.

Tokenising runs in a thread of its own, forward passes on a CPU in lanes, device-to-host copies beside the next forward
pass, checks and disk writes in the writer's threads. Batches begin at shard starts and are handed over in their order,
so what is computed does not depend on where a harvest was interrupted, or by how many processes it runs.
Shapes: B sequences a batch, T positions, D d_model.
"""

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property, partial

import torch

import cache
from harvest.audit import audit, audit_name
from harvest.batches import Batches
from harvest.config import HarvestConfig
from harvest.errors import HarvestError
from harvest.forward import InFlight, forward
from harvest.hub import Origin, resolve_model
from harvest.lanes import Lanes, few_arenas, lanes_for
from harvest.meta import cache_meta
from harvest.model import ResidualModel, load_model, random_model
from harvest.plan import Plan, seconds_per_sequence
from harvest.progress import Progress
from harvest.ranks import Ranks
from harvest.streams import CachedSequences, RandomSequences, Sequences, TextSequences
from harvest.text import Documents
from harvest.tokenizer import TextTokenizer, load_tokenizer
from harvest.tokens import TokenStream

Say = Callable[[str], object]


class Harvest:
    """One process of one harvest."""

    def __init__(self, config: HarvestConfig, ranks: Ranks, model: ResidualModel | None = None) -> None:
        """Read the model's configuration and open the text; no weights are loaded and nothing is written yet.

        Args:
            config: what is asked for.
            ranks: this process among its fellows.
            model: one that is loaded already, instead of `config.model`.

        Raises:
            HarvestError: a model, layer or text that cannot be had.
        """
        few_arenas()
        self.config, self.ranks, self._given = config, ranks, model
        self._last_layer = max([*config.layers, *_layers_there(config)])  # layers that are there are continued
        self._origin = None if config.random_weights else resolve_model(config.model, config.revision)
        self.outline = model or _load(config, self._origin, self._last_layer, "meta")
        self.layers = self.outline.check_layers(config.layers)
        self.outline.check_context(config.context)
        self.tokenizer: TextTokenizer | None = None
        self.documents: Documents | None = None
        if self._origin is not None:
            self.tokenizer = load_tokenizer(self._origin)
            self.documents = Documents(config.sources, seed=config.seed, held_out_fraction=config.held_out_fraction)
        device = model.device if model is not None else torch.device(config.device)
        self.meta = cache_meta(config, self.outline, device, self.tokenizer, self.documents)
        self._notes: list[str] = []

    @cached_property
    def model(self) -> ResidualModel:
        """The model with its weights, which are loaded when they are first needed.

        Raises:
            HarvestError: the weights cannot be had.
        """
        model = self._given or _load(self.config, self._origin, self._last_layer, self.config.device)
        if model.identity != self.outline.identity:
            raise HarvestError(
                f"the weights of {self.config.model} came as {model.identity}, its configuration said "
                f"{self.outline.identity}: name the ATTENTION that is wanted"
            )
        limit = model.max_positions
        if limit is not None and self.config.context > limit:
            warning = f"context {self.config.context} is longer than the {limit} the model was made for"
            sys.stderr.write(f"warning: {warning}\n")
        return model

    def run(self, *, dry_run: bool = False, say: Say = lambda line: None) -> cache.CacheReader | None:
        """Print the plan, do what is still owed, complete the cache; returns it opened (None after a dry run).

        Raises:
            HarvestError: what cannot fit on the disk, or a text without a single sequence.
            CacheError: a cache that contradicts the request, a non-finite row, a full disk.
        """
        ranks, first = self.ranks, self.ranks.rank == 0
        say = say if first else lambda line: None
        with ranks.together():  # until here nothing is written: what is refused changes nothing
            request = cache.look(self.config.cache, self.meta, self.layers, self.config.sequences)
            plan = Plan(request=request, world_size=ranks.world_size, path=self.config.cache)
            plan.check()
            if plan.jobs and (first or not dry_run):
                _ = self.model
            if first and (plan.jobs or dry_run):
                say(self._described(plan))
        if dry_run:
            return None
        with ExitStack() as stack:
            for turn in (True, False):  # rank 0 first: the others join what it has prepared
                with ranks.together():
                    if turn == first:
                        writer = stack.enter_context(self._writer())
            end = ranks.agree_on_end(self._work(writer))
            writer.flush(end=end)
            ranks.wait()
            with ranks.together():
                if first and not writer.state.complete:
                    self._complete(writer, end)
        reader = cache.open(str(self.config.cache))
        for note in [*self._notes, *self._outcome(reader)]:
            say(note)
        return reader

    def _described(self, plan: Plan) -> str:
        if not plan.jobs:
            return plan.nothing()
        c, layers = self.config, plan.request.state.layers
        return plan.describe(seconds_per_sequence(self.model, c.batch, c.context, layers))

    def _writer(self) -> cache.CacheWriter:
        ranks, config = self.ranks, self.config
        return cache.CacheWriter(
            config.cache,
            self.meta,
            layers=self.layers,
            sequences=config.sequences,
            rank=ranks.rank,
            world_size=ranks.world_size,
            session=ranks.session,
        )

    def _work(self, writer: cache.CacheWriter) -> int | None:
        """Do this process's jobs; returns the sequence at which the text ended, if it did."""
        jobs = list(writer.jobs())
        if not jobs:
            return None
        total = sum(job.stop - job.start for job in jobs) * self.config.context
        batches = Batches(writer, jobs, self.config.batch, partial(self._sequences, writer))
        pending = deque[Future[InFlight]]()
        with (
            Progress(total, writer, self.ranks) as progress,
            Lanes(self.model.device, lanes_for(self.model.d_model)) as lanes,
            batches,
        ):
            for batch in batches:
                pending.append(lanes.start(partial(forward, self.model, batch, self.meta.bos_token_id)))
                while len(pending) > lanes.ahead:
                    self._hand_over(writer, pending.popleft().result(), progress)
            while pending:
                self._hand_over(writer, pending.popleft().result(), progress)
            self._notes += [*batches.notes(), *progress.notes()]
        return batches.end

    def _hand_over(self, writer: cache.CacheWriter, one: InFlight, progress: Progress) -> None:
        moments, (start, block, _, cursor) = one.arrive(), one.batch
        domain = block.domain if self.meta.domains else None
        rows = cache.Rows(block.tokens, block.document, block.split, domain)
        writer.append(start, rows, one.residuals, moments=moments, cursor=cursor)
        progress.advance(block.tokens.size, sum(x.nbytes for x in one.residuals.values()))

    def _sequences(self, writer: cache.CacheWriter, job: cache.Job) -> Sequences:
        """A stream that stands at the first sequence of a job."""
        c = self.config
        if not job.rows:
            return CachedSequences(cache.open(str(c.cache), follow=True), job.start)
        if self.tokenizer is None or self.documents is None:
            return RandomSequences(self.outline.vocab_size, c.context, c.seed, job.start, c.held_out_fraction)
        at, cursor = writer.cursor_before(job.shard)
        state = dict(cursor) if cursor else None
        stream = TokenStream(self.documents, self.tokenizer, context=c.context, packing=c.packing, state=state)
        sequences = TextSequences(stream, at)
        sequences.move(job.start)
        return sequences

    def _complete(self, writer: cache.CacheWriter, end: int | None) -> None:
        """Finish the cache; first compute its first batch again, unless all of it was there and looked at before."""
        state, lost = writer.state, dict[str, float]()
        if writer.owed or not {audit_name(layer) for layer in state.layers} <= state.audit.keys():
            reader, c = cache.open(str(self.config.cache), follow=True), self.config
            found = audit(self.model, reader, state.layers, min(c.batch, end or state.sequences, c.shard_sequences))
            same = f"{found.same:,} of {found.rows:,} rows are the same bits"
            self._notes.append(f"the first batch was computed again: {same}")
            lost = found.lost
        writer.finish(exhausted_at=end, audit=lost)

    def _outcome(self, reader: cache.CacheReader) -> list[str]:
        c, notes = self.config, []
        if reader.n_sequences < c.sequences:
            held = reader.n_sequences * c.context
            notes.append(f"the text held no more than {held:,} tokens of the {c.tokens:,} asked for")
        for layer, shards in reader.set_aside.items():
            there = f"{shards:,} of {reader.state.shards(reader.meta.shard_sequences):,} shards"
            notes.append(f"layer {layer} was begun and is set aside ({there}): LAYER={layer} goes on with it")
        return notes


def _load(config: HarvestConfig, origin: Origin | None, last_layer: int, device: str) -> ResidualModel:
    """The model, or on the meta device its outline; without an origin, of random weights."""
    if origin is None:
        return random_model(
            config.model, dtype=config.dtype, attention=config.attention, device=device, last_layer=last_layer
        )
    kept = None if device == "meta" else last_layer
    return load_model(origin, dtype=config.dtype, attention=config.attention, device=device, last_layer=kept)


def _layers_there(config: HarvestConfig) -> tuple[int, ...]:
    try:
        return cache.open(str(config.cache), follow=True).layers
    except cache.CacheError:
        return ()  # none yet, or a damaged one, which the look at it will explain
