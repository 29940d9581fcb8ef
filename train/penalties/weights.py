"""Weights that tune themselves: how strongly a term O counts in the loss, as a rule of its own.

λ is a number beside the SAE's parameters; it enters the loss as a constant, and moves after each optimiser step. What
reaches the loss is coeff · λ. On one cost function they differ only in what λ follows:

- `fixed`: λ = 1; with the setting `ramp` it grows from 0.
- `linear`, `log_linear`: from `first` to `last` over `schedule_steps` steps.
- `dual`: dual ascent on the constraint O ≤ bound: log λ += rate · clip((Ō − bound) / bound, −1, 1), Ō a moving average.
- `geco`: least O at FVU ≤ bound (Rezende & Viola 2018, arXiv 1810.00597): the loss O + μ·FVU has the same minimum as
  FVU + λ·O with λ = 1/μ, so log λ −= rate · clip((FVU − bound) / bound, −1, 1).
- `uncertainty`: minimises λ·O − pull · log λ over λ too (Kendall, Gal & Cipolla 2018, arXiv 1705.07115): λ* = pull / O.
- `literal`: minimises λ·O + 0.1 log² λ over λ too, with Adam, λ ≥ 0.001: a free weight under a loss that it scales.
  λ* = (0.2 / O) · W(O / 0.2), W Lambert's function, so the weight *falls* where the violation grows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties.penalty import PenaltyConfig

MODES: Final = ("dual", "fixed", "linear", "log_linear", "geco", "uncertainty", "literal")
MEMORY: Final = 0.95
"""Decay of the moving averages of O and FVU, a step of the optimiser: an average that lags behind makes λ swing."""
_DUAL_RANGE: Final = (1e-4, 20.0)
_LITERAL_FLOOR: Final = 1e-3
_SQUARED_LOG: Final = 0.1
_ADAM: Final = (0.9, 0.999, 1e-8)


@dataclass(frozen=True, kw_only=True)
class WeightConfig(PenaltyConfig):
    """Settings of a term with a weight of its own; `coeff` multiplies it."""

    mode: str = "dual"
    """`dual`, `fixed`, `linear`, `log_linear`, `geco`, `uncertainty` or `literal`."""
    first: float = 1.0
    """λ at the start (at step 0 of a schedule)."""
    last: float = 10.0
    """λ at the end of a schedule."""
    schedule_steps: int = 4882
    """Length of a schedule."""
    bound: float = 0.0
    """`dual`: the value that O is held to; 0 is the term's own default. `geco`: the FVU that is held, such as 1.02
    times a baseline's."""
    rate: float = 5e-3
    """Step of log λ (`dual`, `geco`, `uncertainty`), or of λ (`literal`), for each step of the optimiser."""
    pull: float = 0.01
    """Of `uncertainty`: λ tends to pull / O."""

    @classmethod
    def fitted(cls, values: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """In short runs λ moves faster: the dual can cross the whole range of its weights in half of any run."""
        fitted, across = super().fitted(values, steps), math.log(_DUAL_RANGE[1] / _DUAL_RANGE[0])
        moves = values.get("mode", cls.mode) in ("dual", "geco")
        return {"rate": max(cls.rate, 2 * across / steps), **fitted} if moves else fitted

    def __post_init__(self) -> None:
        """Check the mode and what it needs.

        Raises:
            TrainError: naming the setting, what it must be and what came.
        """
        super().__post_init__()
        if self.mode not in MODES:
            raise TrainError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name in ("first", "last", "rate", "pull"):
            if not getattr(self, name) > 0:
                raise TrainError(f"{name} must be positive, got {getattr(self, name)}")
        if self.bound < 0 or self.schedule_steps < 1:
            raise TrainError(
                f"need bound >= 0 and schedule_steps >= 1, got bound={self.bound}, schedule_steps={self.schedule_steps}"
            )
        if self.mode == "geco" and not self.bound:
            raise TrainError("mode=geco needs bound, the FVU to be held: 1.02 times a baseline's, for instance")


class Weight:
    """λ of one term; what it remembers is on the device, so nothing waits for it."""

    def __init__(self, config: WeightConfig, bound: float, device: torch.device) -> None:
        """Start at `first`. `bound` is that of `dual` or `geco`."""
        self.config, self.bound = config, bound
        names = ("value", "average", "average_weight", "moment", "square", "steps")
        self.tensors = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self.tensors["value"] += config.first

    def at(self, step: int) -> float | Tensor:
        """λ before step `step`."""
        scheduled = self._scheduled(step)
        return self.tensors["value"].float() if scheduled is None else scheduled

    def _scheduled(self, step: int) -> float | None:
        """λ of the modes in which it depends on the step alone."""
        config = self.config
        share = min(1.0, step / config.schedule_steps)
        if config.mode == "fixed":
            return 1.0
        if config.mode == "linear":
            return config.first + (config.last - config.first) * share
        if config.mode == "log_linear":
            return float(config.first * (config.last / config.first) ** share)
        return None

    @torch.no_grad()
    def update(self, violation: Float[Tensor, ""], fvu: Float[Tensor, ""], step: int) -> None:
        """Move λ after a step at which O had the value `violation`; keep a scheduled one, because it is reported."""
        value, rate = self.tensors["value"], self.config.rate * self.config.every
        o, scheduled = violation.detach().double(), self._scheduled(step)
        if scheduled is not None:
            value.fill_(scheduled)
        elif self.config.mode == "dual":
            self._move(rate * self._excess(o), _DUAL_RANGE)
        elif self.config.mode == "geco":
            self._move(-rate * self._excess(fvu.detach().double()), _DUAL_RANGE)
        elif self.config.mode == "uncertainty":
            self._move(-self._adam(value * o - self.config.pull, rate), (_LITERAL_FLOOR, math.inf))
        elif self.config.mode == "literal":
            gradient = o + 2 * _SQUARED_LOG * value.log() / value
            value.sub_(self._adam(gradient, rate)).clamp_(min=_LITERAL_FLOOR)

    def _excess(self, measured: Tensor) -> Tensor:
        """Of a moving average over the bound, relative to it and limited."""
        average, weight = self.tensors["average"], self.tensors["average_weight"]
        memory = MEMORY**self.config.every
        average.mul_(memory).add_(measured, alpha=1 - memory)
        weight.mul_(memory).add_(1 - memory)
        return ((average / weight - self.bound) / self.bound).clamp(-1, 1)

    def _move(self, by: Tensor, limits: tuple[float, float]) -> None:
        self.tensors["value"].mul_(by.exp()).clamp_(*limits)

    def _adam(self, gradient: Tensor, rate: float) -> Tensor:
        """The step that Adam takes against a gradient."""
        moment, square, steps = (self.tensors[name] for name in ("moment", "square", "steps"))
        mean, spread, eps = _ADAM
        steps += 1
        moment.mul_(mean).add_(gradient, alpha=1 - mean)
        square.mul_(spread).addcmul_(gradient, gradient, value=1 - spread)
        return rate * (moment / (1 - mean**steps)) / ((square / (1 - spread**steps)).sqrt() + eps)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved `tensors`."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
