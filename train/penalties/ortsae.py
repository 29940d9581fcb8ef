"""OrtSAE: every decoder row is pushed away from its nearest neighbour in a random chunk of the dictionary.

    L = mean_i ( max_{j in i's chunk, j ≠ i} cos(w_i, w_j) )²

Source: Korznikov et al. 2025, "OrtSAE: orthogonal sparse autoencoders uncover atomic features", arXiv 2509.22033:
γ = 0.25, fresh random chunks of 8192 latents at every use, every fifth step with 5 γ in the cheaper form, which is
the default here (`every`). The paper's reconstruction loss on standardised rows is the fraction of variance
unexplained, so γ keeps its value.

Deviations: chunks have equal sizes (at most `chunk`), and a latent whose chunk holds nothing at a positive cosine pays
nothing (the paper squares a negative maximum too). Neighbours are found with bfloat16 products, paid in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.errors import TrainError
from train.penalties.pairs import Pairs, hinge, nearest_in_chunks, pairs_of
from train.penalties.penalty import Penalty, PenaltyConfig
from train.rows import Rows
from train.sae import SAE, Forward


@dataclass(frozen=True, kw_only=True)
class OrtSAEConfig(PenaltyConfig):
    """Settings of `ortsae`."""

    coeff: float = 0.25
    every: int = 5
    chunk: int = 8192
    """Latents a chunk: 2 F · chunk · D operations a use."""

    def __post_init__(self) -> None:
        """Check the chunks.

        Raises:
            TrainError: chunks without pairs.
        """
        super().__post_init__()
        if self.chunk < 2:
            raise TrainError(f"chunk must be at least 2, got {self.chunk}")


class OrtSAE(Penalty):
    """State: the permutation whose parts are the next use's chunks."""

    config: OrtSAEConfig

    def __init__(self, config: OrtSAEConfig, sae: SAE, generator: torch.Generator) -> None:
        """Draw the first permutation."""
        super().__init__(config, sae, generator)
        self.order_F = torch.arange(len(sae.W_dec), device=sae.W_dec.device)
        self._draw()

    def value(self, sae: SAE, forward: Forward, rows: Rows) -> Float[Tensor, ""]:
        """L: the hinge over one pair a latent, its nearest in the chunk."""
        neighbours = nearest_in_chunks(sae.W_dec.detach(), self.order_F, self.config.chunk)
        first_F, second_F = pairs_of(neighbours)
        there_F = (first_F != second_F).float()
        return hinge(sae.W_dec, Pairs(first_F, second_F, there_F)) / len(there_F)

    @torch.no_grad()
    def update(self, sae: SAE, forward: Forward, rows: Rows, step: int) -> None:
        """Draw new chunks before the next use."""
        if (step + 1) % self.config.every == 0:
            self._draw()

    def _draw(self) -> None:
        """Where the term is left out nothing is drawn, so that no other draw changes."""
        if self.config.coeff:
            self.order_F = torch.randperm(len(self.order_F), generator=self.generator).to(self.order_F.device)

    def state(self) -> dict[str, Tensor]:
        """The permutation."""
        return {"order_F": self.order_F}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.order_F = state["order_F"]
