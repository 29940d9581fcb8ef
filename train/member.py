"""One SAE in training: its parameters, optimiser, counters, penalties and folder.

Members of a group see the same rows and share nothing else, so each ends with the bits it would have alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from train import checkpoint, metrics, schedule
from train.architectures import ARCHITECTURES
from train.checkpoint import Checkpoint
from train.config import RunConfig
from train.dead import Silence, resample
from train.exports import sae_lens
from train.folding import fold
from train.graph import Recorder, StepGraph, recorder_for, repeats
from train.inference import InferenceSAE, Scalar
from train.initialise import stream
from train.kernels import products
from train.normalise import Normalisation
from train.optim import Optimiser
from train.penalties import PENALTIES, Penalty
from train.rows import Rows
from train.run_folder import SAE_FOLDER, RunFolder
from train.sae import Context, Forward, Term
from train.world import World, latent_axis


class Member:
    """One run of a group."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        normalisation: Normalisation,
        *,
        device: str,
        world: World,
        metadata: Mapping[str, Scalar],
        recorder: Recorder | None = None,
    ) -> None:
        """Build the SAE; nothing is written.

        `metadata` says which model and hook the SAE belongs to, `recorder` records steps (default: what the
        configuration asks for).
        """
        self.config, self.folder, self.normalisation, self.world = config, folder, normalisation, world
        self.metadata = metadata
        architecture = ARCHITECTURES[config.architecture]
        self.sae = architecture.sae(config.sae, world).to(device)
        self.optimiser = Optimiser(self.sae, config.training)
        self.silence = Silence(
            self.sae.d_sae, config.training.dead_after, config.training.dead_every, torch.device(device)
        )
        self.generator = stream("training", config.sae.seed)
        # A stream each: what a penalty draws, or leaves out at a coefficient of 0, moves nobody else's numbers.
        self.draws = {name: stream(f"penalty {name}", config.sae.seed) for name in config.penalties}
        self.penalties: dict[str, Penalty] = {
            name: PENALTIES[name].penalty(one, self.sae, self.draws[name]) for name, one in config.penalties.items()
        }
        self.steps_done = 0
        self.diverged = ""
        self.last: dict[str, Tensor] = {}
        self.reported: dict[str, float] = {}
        self.news: list[str] = []
        """What the user is yet to be told."""
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        recorder = recorder or recorder_for(config, torch.device(device), world)
        self.graph = StepGraph(recorder, self.sae) if recorder else None

    @property
    def active(self) -> bool:
        """Whether it still has steps to take."""
        return not self.diverged and self.steps_done < self.config.training.steps

    def step(self, rows: Rows, *, report: bool) -> None:
        """One optimiser step; with `report`, `last` then holds its metrics."""
        training = self.config.training
        if self.silence.look(self.steps_done, self.sae) and self._resampling_due():
            parts = self.config.feed.parts
            resample(self.sae, self.silence, self.optimiser, rows.x_BD, self.generator, parts=parts)
        context = Context(
            self.steps_done, schedule.sparsity(self.steps_done, training.sparsity_warmup), self.silence.dead
        )
        lr = schedule.learning_rate(
            self.steps_done, lr=training.lr, steps=training.steps, warmup=training.warmup, decay=training.decay
        )
        self.optimiser.begin(lr)
        with products.using(training.products, rows.x_BD.device):
            replayed = not report and self._replayed(rows, context)
            norm = None if replayed else self._descend(rows, context, report=report)
        if report and norm is not None:
            self.last |= {"grad_norm": norm, "lr": torch.tensor(lr), "dead": self.silence.share(self.world)}
            self.last |= metrics.decoder_metrics(self.sae)
            for name, penalty in self.penalties.items():
                self.last |= {f"{name}/{key}": value for key, value in penalty.metrics().items()}
        self.steps_done += 1

    def _replayed(self, rows: Rows, context: Context) -> bool:
        """Take the step by its recording where it is one that repeats; says whether it was."""
        if self.graph is None or not repeats(self.sae, context):
            return False
        taken = self.graph.run(rows.x_BD, lambda x_BD: self._descend(replace(rows, x_BD=x_BD), context))
        if self.graph.failure:
            self.news.append(
                f"{self.config.name} takes its steps one kernel at a time, a recording failed: {self.graph.failure}"
                " (graph=off does not try)"
            )
            self.graph = None
        return taken

    def _descend(self, rows: Rows, context: Context, *, report: bool = False) -> Tensor:
        """All of a step that is done on the device; returns the gradient's norm."""
        forward = self._forward(rows, context)
        if report:
            self.last = metrics.step_metrics(forward, self.normalisation, self.world)
            if len(forward.terms) > 1:
                self.last |= metrics.gradient_shares(self.sae, forward)
        loss = forward.total()
        loss.backward()
        norm = self.optimiser.descend()
        self._finite &= loss.detach().isfinite() & norm.isfinite()
        self.sae.observe(forward, context)
        self.silence.observe(forward.code, self.world.rows(len(rows.x_BD)), self.sae)
        for penalty in self.penalties.values():
            penalty.update(self.sae, forward, rows, context.step)
        return norm

    def _resampling_due(self) -> bool:
        every = self.config.training.resample_every
        return bool(every) and self.steps_done > 0 and self.steps_done % every == 0

    def _forward(self, rows: Rows, context: Context) -> Forward:
        forward = self.sae.losses(rows.x_BD, context)
        for name, penalty in self.penalties.items():
            weight = penalty.weight(context.step)
            if isinstance(weight, Tensor) or weight:
                forward.terms[name] = Term(penalty.value(self.sae, forward, rows), weight)
        return forward

    def check(self, rows: Rows) -> bool:
        """Whether every step so far was finite (this waits for the device); says in `diverged` what was not."""
        if bool(self.world.smallest(self._finite.to(torch.uint8))):
            return True
        kept = checkpoint.steps(self.folder.path)
        good = f"the last good checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint yet"
        where = ", ".join(
            f"{s}:{p}" for s, p in zip(rows.batch.sequence[:4].tolist(), rows.batch.position[:4].tolist(), strict=True)
        )
        self.diverged = (
            f"{self.config.name} stopped: its loss or gradient is not finite at step {self.steps_done} (the batch"
            f" begins with sequence:position {where}); {good}; try a smaller lr"
        )
        return False

    def checkpoint(self, feed: Mapping[str, Any], keep: int) -> None:
        """Write the SAE and everything that a resumption needs."""
        state = self.state()
        with self.world.together():
            if self.world.rank == 0:
                sae_lens.save(self.inference(_part(state, "sae")), self.folder.path / SAE_FOLDER)
                checkpoint.save(self.folder.path, Checkpoint(self.steps_done, feed, state), keep)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the whole SAE, in the first process."""
        return self._whole(self.sae.state_dict())

    def inference(self, weights: Mapping[str, Tensor]) -> InferenceSAE:
        """The SAE with these weights, in raw model units, on the CPU."""
        sae = self.sae
        if self.world.shards > 1:
            sae = type(sae)(self.config.sae)
            sae.load_state_dict(weights)
        tokens = self.steps_done * self.config.feed.batch
        one = replace(sae.inference().to("cpu"), metadata={**self.metadata, "training_tokens": tokens})
        return fold(one, self.normalisation.mean_D.cpu(), self.normalisation.scale)

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters, buffers or moments with the latents of all processes."""
        return {key: self.world.whole(one, latent_axis(key.split(".")[0], one)) for key, one in tensors.items()}

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents of this process."""
        return {key: self.world.own(one, latent_axis(key.split(".")[0], one)) for key, one in tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name, of the whole SAE (where processes share it: in the first alone)."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "sae": self.weights(),
            "optimiser": self._whole(self.optimiser.state()),
            "silence": self.silence.state(self.world),
            "random": {"training": self.generator.get_state()}
            | {f"penalty.{name}": one.get_state() for name, one in self.draws.items()},
        }
        parts |= {f"penalty.{name}": penalty.state() for name, penalty in self.penalties.items()}
        return {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}

    def load(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint, bit for bit."""
        device, tensors = self.silence.rows_F.device, saved.tensors
        self.sae.load_state_dict(self._own(_part(tensors, "sae")))
        self.optimiser.load_state({key: one.to(device) for key, one in self._own(_part(tensors, "optimiser")).items()})
        self.silence.load_state(_part(tensors, "silence"), self.world)
        random = _part(tensors, "random")
        self.generator.set_state(random["training"])
        for name, one in self.draws.items():
            one.set_state(random[f"penalty.{name}"])
        for name, penalty in self.penalties.items():
            penalty.load_state({key: one.to(device) for key, one in _part(tensors, f"penalty.{name}").items()})
        self.steps_done = saved.step


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What `state` put under a name."""
    return {key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")}
