"""What a penalty is: a term added to any architecture's loss, one file each.

A penalty's `value` is a pure function of one pass over a batch; its state changes in `update` alone, after the
optimiser's step. Values are on the scale of the fraction of variance unexplained.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.rows import Rows
from train.sae import SAE, Forward


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """What every penalty is asked for."""

    in_time: ClassVar[tuple[str, ...]] = ("start", "ramp")
    """Settings that are at most a fifth of a run."""
    coeff: float = 1.0
    """Weight in the loss; 0 leaves the term out and changes no bit."""
    every: int = 1
    """Steps between two uses; the weight is multiplied by it, so that the mean pressure stays."""
    start: int = 0
    """First step of use."""
    ramp: int = 0
    """Steps over which the weight then grows from 0 to `coeff`, linearly."""

    def __post_init__(self) -> None:
        """Check the common settings.

        Raises:
            TrainError: naming the setting.
        """
        if self.coeff < 0:
            raise TrainError(f"coeff must not be negative, got {self.coeff}")
        for name, low in (("every", 1), ("start", 0), ("ramp", 0)):
            if getattr(self, name) < low:
                raise TrainError(f"{name} must be at least {low}, got {getattr(self, name)}")

    @classmethod
    def fitted(cls, values: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """Values as given, with defaults that suit the length of a run: a run of hundreds of steps cannot wait for
        hundreds before its penalty begins. What was asked for by name is put back by the caller."""
        return {**values, **{key: min(values.get(key, getattr(cls, key)), max(1, steps // 5)) for key in cls.in_time}}

    @property
    def least_window(self) -> int:
        """Consecutive positions that a window must have; 1 where single rows will do."""
        return 1

    @property
    def needs_domains(self) -> bool:
        """Whether the cache's sequences must carry domains."""
        return False

    @property
    def group_biases(self) -> int:
        """Groups of latents that must have a bias of their own; the penalty sets the SAE's `group_of`."""
        return 0


class Penalty(ABC):
    """One term; made anew for every SAE."""

    def __init__(self, config: Any, sae: SAE, generator: torch.Generator) -> None:
        """Start with no state.

        Args:
            config: the penalty's own settings.
            sae: what it will be added to; for shapes and devices.
            generator: the only randomness a penalty may use (on the CPU); its state is saved with the run.
        """
        self.config, self.generator = config, generator

    @abstractmethod
    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """The term on one batch; changes no state."""

    def weight(self, step: int) -> float | Tensor:
        """Its weight at a step; 0 where it is not due."""
        config = self.config
        if step < config.start or step % config.every:
            return 0.0
        grown = min(1.0, (step - config.start + 1) / config.ramp) if config.ramp else 1.0
        return float(config.coeff * config.every * grown)

    @torch.no_grad()  # noqa: B027  # most penalties have no state
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Change the state, once a step, after the optimiser."""

    def metrics(self) -> dict[str, Tensor]:
        """Numbers of its own to log, as 0-dimensional tensors."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything that `update` changes."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Go on from a saved state."""
