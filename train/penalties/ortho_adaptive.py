"""`ortho_adaptive`: an orthogonality term whose weight tunes itself; by default the frame potential of the dictionary.

    loss = reconstruction + coeff · λ · O,   O = (D / F²) ‖UᵀU‖²_F − 1,   U the decoder's rows at norm 1

O is Σ_ij cos²_ij through the D × D Gram UᵀU, on a scale where 0 is a tight frame and D/F what random rows have
(Benedetto & Fickus 2003, "Finite normalized tight frames": ‖UᵀU‖²_F ≥ F²/D). It whitens the spectrum and
nothing else: an orthonormal basis repeated F/D times has O = 0, so duplicates and absorption are beyond its sight. With
`term` another penalty takes its place, at that penalty's own defaults. λ is one of the modes of `weights.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties.grams import frame_potential
from train.penalties.penalty import Penalty, PenaltyConfig
from train.penalties.weights import Weight, WeightConfig
from train.rows import Rows
from train.sae import SAE, Forward, fvu

NAME: Final = "ortho_adaptive"
TERMS: Final = ("frame", "ortho_active", "ortho_pairs", "ortho_importance", "ortsae")


@dataclass(frozen=True, kw_only=True)
class OrthoAdaptiveConfig(WeightConfig):
    """Settings of `ortho_adaptive`."""

    every: int = 10
    term: str = "frame"
    """O: `frame`, or another orthogonality penalty by name."""

    def __post_init__(self) -> None:
        """Check the term, and that its constraint is known.

        Raises:
            TrainError: naming the setting.
        """
        super().__post_init__()
        if self.term not in TERMS:
            raise TrainError(f"term must be one of {', '.join(TERMS)}, got {self.term!r}")
        if self.mode == "dual" and self.term != "frame" and not self.bound:
            raise TrainError(f"mode=dual on term={self.term} needs bound, the value that the term is to be held to")


class OrthoAdaptive(Penalty):
    """coeff · λ · O."""

    config: OrthoAdaptiveConfig

    def __init__(self, config: OrthoAdaptiveConfig, sae: SAE, generator: torch.Generator) -> None:
        """The bound of the frame potential, unless one is given, is half of what random rows have: D / 2F."""
        super().__init__(config, sae, generator)
        self.term = _term(config, sae, generator)
        d_sae, d_model = sae.W_dec.shape
        self.lagrangian = Weight(config, config.bound or d_model / (2 * d_sae), sae.W_dec.device)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """O."""
        return self.term.value(sae, forward, rows)

    def weight(self, step: int) -> float | Tensor:
        """coeff · every · ramp · λ; 0 where the term is not due."""
        usual = super().weight(step)
        return usual * self.lagrangian.at(step) if usual else 0.0

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Move λ by the O that this step saw; between two uses nothing is known of O, and λ stays."""
        self.term.update(sae, forward, rows, step)
        if NAME in forward.terms:
            unexplained = fvu(forward.x_BD, forward.x_hat_BD)
            violation = sae.world.mean(forward.terms[NAME].value.detach())
            self.lagrangian.update(violation, sae.world.mean(unexplained), step)

    def metrics(self) -> dict[str, Tensor]:
        """λ, and what the term reports."""
        return self.term.metrics() | {"lambda": self.lagrangian.tensors["value"]}

    def state(self) -> dict[str, Tensor]:
        """λ with its averages, and the term's own state."""
        own = {f"term.{name}": tensor for name, tensor in self.term.state().items()}
        return own | {f"weight.{name}": tensor for name, tensor in self.lagrangian.tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        parts: dict[str, dict[str, Tensor]] = {"term": {}, "weight": {}}
        for name, tensor in state.items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor
        self.term.load_state(parts["term"])
        self.lagrangian.load_state(parts["weight"])


class FramePotential(Penalty):
    """O = (D / F²) ‖UᵀU‖²_F − 1."""

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """Of the decoder's rows; no batch matters."""
        return frame_potential(sae.W_dec)


def _term(config: OrthoAdaptiveConfig, sae: SAE, generator: torch.Generator) -> Penalty:
    if config.term == "frame":
        return FramePotential(PenaltyConfig(), sae, generator)
    from train.penalties import PENALTIES  # the table names this file's penalty too

    kind = PENALTIES[config.term]  # it does its part as often as this penalty is used
    return kind.penalty(kind.config(every=config.every), sae, generator)
