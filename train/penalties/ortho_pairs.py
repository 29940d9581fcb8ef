"""Top-k orthogonality: the few pairs of latents that overlap most in this batch are pushed apart.

    L = (1/F) Σ_{(i,j) ∈ S} [cos(w_i, w_j) − τ]₊²
    S = the K pairs with the largest C_ij [cos_ij]₊,   K = ⌈share · F(F−1)/2⌉,   C_ij = Σ_b z_bi z_bj

S is chosen every `refresh` steps from a sample of rows. Over K instead of F, `share` would only rescale the weight.

Source: "instantaneous top-k orthogonality", as it was meant. As first written it cannot run (a B × F × F tensor), lets
diagonal pairs win, and penalises activations, which never touches the decoder; τ, there a weight, is a floor here.
Arms: τ fixed, linear to `tau_end`, or a running quantile of all cosines; cosines of unit rows U or, `norm="spectral"`,
inner products of U/σ_max(U), which are cos/σ². Of several ranks each chooses among its own rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from train.errors import TrainError
from train.penalties.pairs import SCORES, Pairs, coactive, due, hinge, jaccard, no_pairs, quantile
from train.penalties.penalty import Penalty, PenaltyConfig
from train.rows import Rows
from train.sae import SAE, Forward

_CHOICES = {"score": SCORES, "tau_mode": ("fixed", "linear", "quantile"), "norm": ("rows", "spectral")}
_QUANTILE, _DECAY = 0.999, 0.9  # of the cosines; of its moving average, a selection


@dataclass(frozen=True, kw_only=True)
class OrthoPairsConfig(PenaltyConfig):
    """Settings of `ortho_pairs`."""

    coeff: float = 0.2
    every: int = 10
    share: float = 0.001
    """Of all pairs of latents that are chosen."""
    score: str = "coactivation_cosine"
    refresh: int = 10
    rows: int = 512
    """Rows of the batch that a selection looks at; 0 is all."""
    top: int = 64
    """Entries of a row, the largest first; never more than twice the batch's mean number of entries a row."""
    tau: float = 0.0
    """Cosine below which a pair costs nothing."""
    tau_mode: str = "fixed"
    tau_end: float = 0.1
    tau_steps: int = 4000
    """Steps from `tau` to `tau_end` where `tau_mode` is linear."""
    norm: str = "rows"

    def __post_init__(self) -> None:
        """Check each setting; a TrainError names it, what it must be and what came."""
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, low in (("refresh", 1), ("rows", 0), ("top", 2), ("tau_steps", 1)):
            if getattr(self, name) < low:
                raise TrainError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise TrainError(f"share must be above 0 and at most 1, got {self.share}")


class OrthoPairs(Penalty):
    """State: the chosen pairs, τ, and σ² with the vector that its power iteration has reached."""

    config: OrthoPairsConfig

    def __init__(self, config: OrthoPairsConfig, sae: SAE, generator: torch.Generator) -> None:
        """No pairs before the first step has shown some."""
        super().__init__(config, sae, generator)
        (self.d_sae, d_model), device = sae.W_dec.shape, sae.W_dec.device
        self.pairs = no_pairs(math.ceil(config.share * self.d_sae * (self.d_sae - 1) / 2), device)
        numbers = {"tau": config.tau, "sigma2": 1.0, "jaccard": 0.0}
        self.numbers = {name: torch.tensor(one, device=device) for name, one in numbers.items()}
        self.right_D = torch.ones(d_model, device=device)

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """L. With cos/σ² for cos it is the same at a floor of τσ², over σ⁴."""
        tau, sigma2 = self.numbers["tau"], self.numbers["sigma2"]
        return hinge(sae.W_dec, self.pairs, floor=tau * sigma2) / (sigma2.square() * self.d_sae)

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Move σ and τ, and choose pairs where it is due."""
        config, tau = self.config, self.numbers["tau"]
        if not config.coeff:  # left out: no draw either
            return
        if config.norm == "spectral":  # one power iteration a step
            unit_FD = normalize(sae.W_dec, dim=1)
            self.right_D = unit_FD.T @ (unit_FD @ normalize(self.right_D, dim=0))
            self.numbers["sigma2"] = self.right_D.norm()
        if config.tau_mode == "linear":
            part = min(1.0, (step + 1) / config.tau_steps)
            self.numbers["tau"] = torch.full_like(tau, config.tau + (config.tau_end - config.tau) * part)
        if due(step, config.start, config.refresh):
            k = len(self.pairs.weight_P)
            new = coactive(forward.code, sae.W_dec, k, score=config.score, rows=config.rows, most=config.top)
            self.numbers["jaccard"], self.pairs = jaccard(new, self.pairs, self.d_sae), new
            if config.tau_mode == "quantile":
                self.numbers["tau"] = quantile(sae.W_dec, _QUANTILE, self.generator).lerp(tau, _DECAY)

    def metrics(self) -> dict[str, Tensor]:
        """τ, σ² and the Jaccard index of the last two selections."""
        return self.numbers

    def state(self) -> dict[str, Tensor]:
        """Pairs, τ, σ² and its vector."""
        return self.pairs._asdict() | self.numbers | {"right_D": self.right_D}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.pairs = Pairs(*(state[name] for name in Pairs._fields))
        self.numbers = {name: state[name] for name in self.numbers}
        self.right_D = state["right_D"]
