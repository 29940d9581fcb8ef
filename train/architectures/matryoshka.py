"""Matryoshka: nested dictionaries, each prefix of the latents reconstructs the row by itself, on BatchTopK (Bussmann,
Nabeshima, Karvonen & Nanda 2025, "Learning multi-level features with Matryoshka sparse autoencoders", arXiv 2503.17547,
eq. 4)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from train import kernels
from train.architectures.batchtopk import BatchTopK, BatchTopKConfig
from train.codes import Code, Entries
from train.errors import TrainError
from train.sae import fvu


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """Settings of a Matryoshka SAE."""

    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Shares of the latents that each nested dictionary has, ascending, the last 1."""
    weights: tuple[float, ...] = ()
    """Of each nested dictionary's loss, summing to 1; empty is equal weights."""

    def __post_init__(self) -> None:
        """Check the prefixes.

        Raises:
            TrainError: unless they ascend to 1 and each adds a latent.
        """
        super().__post_init__()
        ends = [0, *self.ends]
        if not self.prefixes or self.prefixes[-1] != 1 or any(a >= b for a, b in pairwise(ends)):
            raise TrainError(
                f"prefixes must ascend to 1 and each add at least one of {self.d_sae} latents, got {self.prefixes}"
            )
        right = len(self.weights) == len(self.prefixes) and min(self.weights) >= 0 and abs(sum(self.weights) - 1) < 1e-6
        if self.weights and not right:
            raise TrainError(f"weights must be {len(self.prefixes)} numbers that sum to 1, got {self.weights}")

    @property
    def ends(self) -> tuple[int, ...]:
        """Number of latents in each nested dictionary."""
        return tuple(round(share * self.d_sae) for share in self.prefixes)


class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the mean over the nested dictionaries' reconstruction losses."""

    architecture: ClassVar[str] = "matryoshka"
    config: MatryoshkaConfig

    @property
    def sizes(self) -> tuple[int, ...]:
        """Latents that each nested dictionary adds."""
        ends = self.config.ends
        return tuple(b - a for a, b in zip((0, *ends[:-1]), ends, strict=True))

    def reconstructions(self, code: Code) -> list[Tensor]:
        """One a nested dictionary; each adds its latents' part to the one before, so nothing is decoded twice."""
        bias_D = self.world.bias(self.b_dec)
        start, x_hats = 0, list[Tensor]()
        for end in self.config.ends:
            part = _between(code, start - self.first, end - self.first)
            x_hat_BD = self.world.total(kernels.decode(*part, self.W_dec, bias_D))
            x_hats.append(x_hats[-1] + x_hat_BD if x_hats else x_hat_BD)
            start, bias_D = end, torch.zeros_like(self.b_dec)
        return x_hats

    def reconstruction(self, x_BD: Float[Tensor, "B D"], x_hats: list[Tensor]) -> Float[Tensor, ""]:
        """Their weighted mean."""
        if not self.config.weights:
            return super().reconstruction(x_BD, x_hats)
        losses = [fvu(x_BD, x_hat_BD) * w for x_hat_BD, w in zip(x_hats, self.config.weights, strict=True)]
        return torch.stack(losses).sum()


def _between(code: Code, start: int, end: int) -> Entries:
    """The entries whose latent lies in [start, end)."""
    values_n, features_n, offsets = code.entries
    chosen = (features_n >= start) & (features_n < end)
    before = torch.cat([offsets.new_zeros(1), chosen.cumsum(0)])
    return Entries(values_n[chosen], features_n[chosen], before[offsets])
