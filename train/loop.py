"""The loop: one feed, any number of SAEs, each as it would be alone."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from cache.reader import CacheReader
from train import checkpoint, metrics
from train.errors import TrainError
from train.feed import Batch, Feed
from train.held_out import held_out
from train.inference import InferenceSAE
from train.initialise import geometric_median
from train.member import Member
from train.normalise import Normalisation
from train.pace import Pace
from train.rows import Rows
from train.run_folder import SUMMARY
from train.trackers import Tracker, last_report, trackers
from train.world import World

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What changes no result: how often to report and to save."""

    device: str = "cpu"
    report_every: int = 50
    """Steps between two lines of metrics."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; one is always written at a signal and at the end."""
    keep: int = 2
    """Checkpoints that stay."""
    log: tuple[str, ...] = ()
    """Loggers beside metrics.jsonl: tensorboard, wandb."""
    progress: bool = True

    def __post_init__(self) -> None:
        """Check device and numbers.

        Raises:
            TrainError: naming the option.
        """
        for name in ("report_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainError(f"{name.upper()} must be at least 1, got {getattr(self, name)}")
        kind = self.device.partition(":")[0]
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            have = "cpu, cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU)"
            raise TrainError(f"DEVICE must be one of {have}, got {self.device!r}")


class Group:
    """SAEs that are trained from one feed."""

    def __init__(
        self, reader: CacheReader, members: list[Member], normalisation: Normalisation, options: Options, world: World
    ) -> None:
        """All members have the same layer and feed configuration."""
        self.reader, self.members, self.options, self.world = reader, members, options, world
        self.normalisation = normalisation
        self.layer, self.feed_config = members[0].config.layer, members[0].config.feed
        self.signalled = self.interrupted = False

    def run(self, say: Say) -> None:
        """Train every member to its end, or to a signal; what is complete has its summary."""
        feed_state = self._resume(say)
        for member in self.members:  # killed between its last checkpoint and its summary
            if not member.active and not member.diverged and not self._complete(member):
                self._finish(member)
        step = min((one.steps_done for one in self.members if one.active), default=0)
        last = max(one.config.training.steps for one in self.members)
        bar = tqdm(total=last, initial=step, unit="step", disable=not self.options.progress, smoothing=0.05)
        feed = self._open(feed_state)
        say(f"  pool     {feed.pool()}")
        with self.world.together():
            loggers = {one.config.name: self._trackers(one) for one in self.members if one.active}
        pace = Pace()
        try:
            with feed, _signals(self._signal, once=self.world.size == 1):
                while any(one.active for one in self.members) and not self.interrupted:
                    with self.world.together(self.signalled) as agreed:
                        rows = self._rows(pace.waiting(lambda: next(feed)))
                    self.interrupted = agreed.stop
                    report = step % self.options.report_every == 0  # where terms that are used now and then are due
                    stepped = self._step(rows, step, report, say)
                    step += 1
                    pace.stepped(self.world.rows(len(rows.x_BD)))
                    if told := [one for one in stepped if report or not one.active]:
                        self._log(told, loggers, pace.report(feed))
                    self._save(stepped, feed)
                    bar.update()
                    if report:
                        bar.set_postfix_str(self._scores())
                    if not self.options.progress and step * 10 // last > (step - 1) * 10 // last:
                        say(f"  {step:,} of {last:,} steps, {pace.left(last - step)}: {self._scores()}")
                    if report:
                        pace.restart()
        finally:
            bar.close()
            for tracker in [one for some in loggers.values() for one in some]:
                tracker.close()
        if pace.steps:
            say(f"  {pace}")

    def _step(self, rows: Rows, step: int, report: bool, say: Say) -> list[Member]:
        """One step of every member that stands at `step`; returns those that are sound."""
        stepped = []
        for member in (one for one in self.members if one.active and one.steps_done == step):
            if step == 0 and member.config.training.b_dec == "geometric_median":
                member.sae.b_dec.data.copy_(geometric_median(self.world.gather_rows(rows.x_BD, self.feed_config.parts)))
            ends = step + 1 == member.config.training.steps
            member.step(rows, report=report or ends)
            while member.news:
                say(member.news.pop(0))
            # On a CPU looking costs nothing; on a GPU it waits, so it is done where one waits anyway.
            looks = report or ends or self._due(member) or self.interrupted or self.options.device == "cpu"
            if looks and not member.check(rows):
                say(member.diverged)
            else:
                stepped.append(member)
        return stepped

    def _due(self, member: Member) -> bool:
        return member.steps_done % self.options.checkpoint_every == 0

    def _log(self, told: list[Member], loggers: dict[str, list[Tracker]], pace: dict[str, float]) -> None:
        for member in told:
            member.reported = metrics.detached(member.last) | pace
            for tracker in loggers[member.config.name]:
                tracker.log(member.steps_done, member.reported)

    def _save(self, stepped: list[Member], feed: Feed) -> None:
        """Checkpoints are written once all have stepped, so that a signal finds all of them at the same step."""
        due = [one for one in stepped if not one.active or self._due(one) or self.interrupted]
        position = self.world.feed_state(feed.state()) if due else {}
        for member in due:
            member.checkpoint(position, self.options.keep)
            if not member.active:
                self._finish(member)

    def _finish(self, member: Member) -> None:
        weights = member.weights()
        with self.world.together():
            if self.world.rank == 0:
                self._summarise(member, member.inference(weights))

    def _summarise(self, member: Member, sae: InferenceSAE) -> None:
        score = held_out(sae, self.reader, self.layer, self.feed_config, self.options.device)
        summary: dict[str, Any] = {
            "steps": member.steps_done,
            "train": member.reported or last_report(member.folder.path),
        }
        summary["held_out"] = score.to_json() if score else None
        summary["normalisation"] = {"scale": self.normalisation.scale, "source": self.normalisation.source}
        member.folder.write(SUMMARY, summary)

    def _rows(self, batch: Batch) -> Rows:
        x_BD = batch.x.reshape(-1, batch.x.shape[-1])
        return Rows(self.normalisation.apply(x_BD), self.feed_config.window, batch)

    def _resume(self, say: Say) -> Mapping[str, Any] | None:
        """Load every member's newest checkpoint; the feed goes on where the member that is furthest behind stands."""
        feeds: dict[int, Mapping[str, Any]] = {}
        for member in self.members:
            newest = int(self.world.of_first(torch.tensor(max(checkpoint.steps(member.folder.path), default=0))))
            if newest:
                with self.world.together():
                    saved = checkpoint.load(member.folder.path, newest)
                    member.load(saved)
                feeds[saved.step] = saved.feed
                say(f"{member.config.name} goes on at step {saved.step}")
        behind = min((one.steps_done for one in self.members if one.active), default=0)
        return feeds.get(behind)

    def _complete(self, member: Member) -> bool:
        return bool(self.world.of_first(torch.tensor(member.folder.complete)))

    def _open(self, state: Mapping[str, Any] | None) -> Feed:
        """The feed, with pools of one size in all processes: the size decides the order of the rows."""
        with self.world.together():
            feed = self._feed(state)
        size = feed.order.pool_sequences
        smallest = int(self.world.smallest(torch.tensor(size)))
        if smallest < size:
            state = {**feed.state(), "pool": smallest}
            feed.close()
        with self.world.together():
            return feed if smallest == size else self._feed(state)

    def _feed(self, state: Mapping[str, Any] | None) -> Feed:
        world, device = self.world, self.options.device
        return Feed(
            self.reader,
            (self.layer,),
            self.feed_config,
            rank=world.reader,
            world_size=world.readers,
            device=device,
            state=state,
        )

    def _trackers(self, member: Member) -> list[Tracker]:
        if self.world.rank:
            return []
        return trackers(self.options.log, member.folder.path, member.steps_done, member.config.to_json())

    def _scores(self) -> str:
        """What the first members came to at the last report."""
        shown = {
            one.config.variant: f"fvu {float(one.last['fvu']):.3f} l0 {float(one.last['l0']):.0f}"
            for one in self.members
            if one.last
        }
        return ", ".join(f"{name} {text}" for name, text in list(shown.items())[:3])

    def _signal(self) -> None:
        self.signalled = True


@contextmanager
def _signals(interrupt: Callable[[], None], *, once: bool) -> Iterator[None]:
    """SIGINT and SIGTERM end the run after a step; with `once`, a second one ends it at once.

    Of many processes each may get the same signal twice: from outside, and from `torchrun`, which hands it on.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM) if once else ():
            signal.signal(one, signal.default_int_handler)
        interrupt()

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)
