"""Matryoshka: nested dictionaries, each prefix of the latents reconstructs the row by itself, on BatchTopK (Bussmann,
Nabeshima, Karvonen & Nanda 2025, "Learning multi-level features with Matryoshka sparse autoencoders", arXiv 2503.17547,
eq. 4)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import group_biases, kernels
from train.batch_selection import BatchSelection, BatchSelectionConfig
from train.codes import Code
from train.errors import TrainError
from train.sae import fvu


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchSelectionConfig):
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


class Matryoshka(BatchSelection):
    """BatchTopK whose loss is the mean over the nested dictionaries' reconstruction losses."""

    architecture: ClassVar[str] = "matryoshka"
    config: MatryoshkaConfig

    @property
    def sizes(self) -> tuple[int, ...]:
        """Latents that each nested dictionary adds."""
        ends = self.config.ends
        return tuple(b - a for a, b in zip((0, *ends[:-1]), ends, strict=True))

    def reconstructions(self, code: Code) -> list[Tensor]:
        """One a nested dictionary, each the one before and its own latents' part; all in one sparse product.

        A row's entries ascend by latent, so those that one nested dictionary adds lie together: they are decoded as a
        row of their own.
        """
        n, groups = code.n_rows, len(self.config.ends)
        offsets = self._offsets(code)
        nothing_D = torch.zeros_like(self.b_dec)
        added_BGD = kernels.decode(code.entries.values_n, code.entries.features_n, offsets, self.W_dec, nothing_D)
        x_hat_BGD = self.world.total(added_BGD.view(n, groups, -1).cumsum(1) + self.world.bias(self.b_dec))
        if self.config.group_biases:
            x_hat_BGD = self._with_group_biases(
                x_hat_BGD, Code(self.d_sae, entries=code.entries._replace(offsets=offsets))
            )
        return list(x_hat_BGD.unbind(1))

    def _with_group_biases(self, x_hat_BGD: Tensor, parts: Code) -> Tensor:
        """Each nested dictionary has the shares of its own code; `parts` is what each adds, as rows of their own."""
        amounts = group_biases.amounts(parts, self.get_buffer("group_of"), self.config.group_biases)
        own = amounts.view(*x_hat_BGD.shape[:2], -1).cumsum(1).flatten(0, 1)
        return group_biases.added(x_hat_BGD.flatten(0, 1), own, self.group_bias).view(x_hat_BGD.shape)

    def _offsets(self, code: Code) -> Int64[Tensor, " BG1"]:
        """[B·G + 1]: where in the entries the part of each row and nested dictionary begins."""
        ends = torch.tensor(self.config.ends[:-1], device=code.rows.device)
        group_n = torch.bucketize(code.entries.features_n + self.first, ends, right=True)
        counts = torch.zeros(code.n_rows * len(self.config.ends), dtype=torch.int64, device=ends.device)
        counts.index_add_(0, code.rows * len(self.config.ends) + group_n, torch.ones_like(group_n))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def reconstruction(self, x_BD: Float[Tensor, "B D"], x_hats: list[Tensor]) -> Float[Tensor, ""]:
        """Their weighted mean."""
        if not self.config.weights:
            return super().reconstruction(x_BD, x_hats)
        losses = [fvu(x_BD, x_hat_BD) * w for x_hat_BD, w in zip(x_hats, self.config.weights, strict=True)]
        return torch.stack(losses).sum()
