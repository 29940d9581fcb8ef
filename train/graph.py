"""Training steps that are recorded once and replayed: one launch instead of 80 to 210 (CUDA graphs).

A recording is kernels with their arguments: addresses, shapes and Python numbers stay what they were. So a step can be
recorded where none of these change (`recorder_for` and `repeats` say where), what does change lies in tensors that stay
where they are (the rows, the learning rate, the count of steps), and nothing in it waits for the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.architectures.topk import TopK
from train.config import RunConfig
from train.sae import SAE, Context
from train.world import World

Step = Callable[[Float[Tensor, "B D"]], object]
FIXED_SHAPES: Final = ("topk", "relu", "gated", "jumprelu")
"""Architectures whose shapes follow from the configuration. BatchTopK and Matryoshka are not: how many of the batch's
largest pre-activations are positive, the length of their codes, is the data's."""
WARM_UP: Final = 3
"""Steps of a shape that run as they are before the next is recorded: libraries set themselves up in the first."""


class Recorder(ABC):
    """What can record the work that a function gives the device."""

    @abstractmethod
    def warm_up(self, step: Callable[[], object]) -> None:
        """Run a step where one will be recorded."""

    @abstractmethod
    def record(self, step: Callable[[], object]) -> Callable[[], None]:
        """Record a step without running it; returns what runs it.

        Raises:
            RuntimeError: the step does what cannot be recorded; nothing on the device has changed.
        """


class CudaGraphs(Recorder):
    """CUDA graphs; recordings keep the memory that one step needs."""

    def __init__(self, device: torch.device) -> None:
        """Take a stream of the device: nothing can be recorded on the one that is current at first."""
        self.device, self.stream = device, torch.cuda.Stream(device)

    def warm_up(self, step: Callable[[], object]) -> None:
        """Run a step on the recording's stream, in its turn."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            step()
        current.wait_stream(self.stream)

    def record(self, step: Callable[[], object]) -> Callable[[], None]:
        """Capture a step; the graph is launched on the stream that is current then.

        Raises:
            RuntimeError: the step does what a capture forbids. Before torch 2.12 (pull request 180395) its allocator
                then goes on as if the capture did.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # The default mode forbids to other threads, too, what the feed's do meanwhile: allocate, wait for copies.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError:
            torch.cuda.set_stream(current)  # torch leaves the other
            raise
        return graph.replay


def recorder_for(config: RunConfig, device: torch.device, world: World) -> Recorder | None:
    """What records a run's steps; None where none of them is recorded.

    Penalties decide from step to step, in Python, what they do; processes wait for each other.
    """
    fits = config.architecture in FIXED_SHAPES and not config.penalties and world.size == 1
    return CudaGraphs(device) if config.training.graph == "auto" and device.type == "cuda" and fits else None


def repeats(sae: SAE, context: Context) -> bool:
    """Whether a step that reports nothing is the same work as the next one: sparsity has warmed up, and no AuxK.

    AuxK gathers the dead latents, and how many there are is the data's; where nothing is dead it does nothing.
    """
    by_dead = isinstance(sae, TopK) and bool(sae.config.aux) and len(context.dead) > 0
    return not by_dead and context.sparsity == 1


class StepGraph:
    """One SAE's recordings, one for each shape of its batches."""

    def __init__(self, recorder: Recorder, sae: SAE) -> None:
        """Nothing is recorded yet."""
        self.sae = sae
        self.failure = ""
        """Why a step could not be recorded; empty where all could. Leave it alone then."""
        self._recorder = recorder
        self._seen: dict[torch.Size, int] = {}
        self._recordings: dict[torch.Size, tuple[Tensor, Callable[[], None]]] = {}

    def run(self, x_BD: Float[Tensor, "B D"], step: Step) -> bool:
        """Take a step on these rows, replayed where it can be; False if the caller has to take it.

        Args:
            x_BD: the rows; a recording reads its own copy.
            step: what runs the step on rows. It changes nothing but tensors, in place, on the device.
        """
        shape = x_BD.shape
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        if seen <= WARM_UP:
            self._recorder.warm_up(lambda: step(x_BD))
            return True
        if shape not in self._recordings and not self._record(x_BD, step):
            return False
        own_BD, replay = self._recordings[shape]
        own_BD.copy_(x_BD)
        replay()
        return True

    def _record(self, x_BD: Tensor, step: Step) -> bool:
        own_BD = x_BD.clone()
        try:
            self._recordings[x_BD.shape] = own_BD, self._recorder.record(lambda: step(own_BD))
        except RuntimeError as error:
            self.sae.zero_grad()  # what was recorded of them was never computed
            self._recordings.clear()
            self.failure = " ".join(str(error).split()) or type(error).__name__
            return False
        return True
