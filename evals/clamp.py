"""Unlearning by clamping latents: which latents speak of what is to be forgotten, and a residual without them.

Sources: Farrell et al. 2024 (arXiv 2410.19278, §3); SAEBench v0.6, `unlearning`.
Shapes: F d_sae, n prompts, T positions, D d_model, R rows, U the latents that some configuration clamps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cache import CacheReader
from evals import sparse_codes
from evals.chunks import chunks
from evals.errors import EvalError
from train import group_biases
from train.codes import Code, Entries
from train.inference import InferenceSAE


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The configurations of which the best one counts."""

    retain_thresholds: tuple[float, ...] = (0.001, 0.01)
    """A latent that is on in a larger share of the retain corpus is spared."""
    n_features: tuple[int, ...] = (10, 20)
    """Latents that are clamped."""
    multipliers: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0)
    """A clamped latent is set to minus this where it is on, in the model's units."""


GRIDS: Final = {
    "v0.6": Grid(),
    "wide": Grid(
        retain_thresholds=(0.001, 0.01, 0.1, 0.5),
        n_features=(10, 20, 50),
        multipliers=(10.0, 25.0, 50.0, 100.0, 200.0),
    ),
}
"""`v0.6`: SAEBench's 16 configurations, since December 2024. `wide`: 60, to see whether 16 were enough; a best of 60 is
no number to stand beside a best of 16."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One way to clamp."""

    retain_threshold: float
    n_features: int
    multiplier: float
    features: tuple[int, ...]
    """At most `n_features`: fewer where fewer are on in the forget corpus and rare in the other."""


def configurations(
    grid: Grid, forget_F: Float[Tensor, " F"], retain_F: Float[Tensor, " F"]
) -> tuple[Configuration, ...]:
    """Every configuration of the grid for an SAE.

    Args:
        grid: thresholds, numbers and multipliers.
        forget_F: share of the forget corpus' tokens that each latent is on at.
        retain_F: the same of the retain corpus.
    """
    chosen = {
        (threshold, n): select(forget_F, retain_F, threshold, n)
        for threshold, n in product(grid.retain_thresholds, grid.n_features)
    }
    return tuple(
        Configuration(retain_threshold=threshold, n_features=n, multiplier=m, features=features)
        for (threshold, n), features in chosen.items()
        for m in grid.multipliers
    )


def select(forget_F: Float[Tensor, " F"], retain_F: Float[Tensor, " F"], threshold: float, n: int) -> tuple[int, ...]:
    """The n latents that are on most often in the forget corpus, of those that are rarer than `threshold` in the other.

    Latents that are never on are not taken, so there may be fewer; equals come in the order of their numbers.
    """
    score_F = torch.where(retain_F >= threshold, 0.0, forget_F)
    order_F = score_F.sort(descending=True, stable=True).indices[:n]
    return tuple(int(j) for j in order_F[score_F[order_F] > 0])


def densities(
    reader: CacheReader, layer: int, saes: Sequence[InferenceSAE], *, device: torch.device | str
) -> list[Float[Tensor, " F"]]:
    """Share of a corpus' tokens, special ones left out, that each latent of each SAE is on at, float64 on the CPU.

    Raises:
        EvalError: a corpus of special tokens alone.
        CacheError: no such layer, or a damaged shard.
    """
    counts = [torch.zeros(sae.d_sae, dtype=torch.int64, device=device) for sae in saes]
    rows = 0
    for chunk in chunks(reader, layer, device=device):
        rows += len(chunk.x_RD)
        for sae, counts_F in zip(saes, counts, strict=True):
            counts_F += torch.bincount(sparse_codes.encode(sae, chunk.x_RD).features_n, minlength=sae.d_sae)
    if not rows:
        raise EvalError(f"{reader.folder.name} holds special tokens only: harvest more text")
    return [counts_F.cpu().double() / rows for counts_F in counts]


class Clamp:
    """An SAE's hand on the residual: x′ = x − Σ_j (m + f_j) W_dec[j] over the clamped latents that are on.

    It is x + decode(f′) − decode(f) with f′_j = −m, so the SAE's error stays in x′; the first position is spared. Where
    the SAE has group biases that difference has their part too: a clamped latent counts as off in its group's share.
    """

    def __init__(self, sae: InferenceSAE, asked: Sequence[Configuration]) -> None:
        """Keep what all configurations need of the SAE: it encodes once for all of them."""
        self.sae, self.asked = sae, tuple(asked)
        union = sorted({feature for one in asked for feature in one.features})
        self._column_F = torch.full((sae.d_sae,), -1, dtype=torch.int64, device=sae.device)
        self._column_F[union] = torch.arange(len(union), device=sae.device)
        self._w_dec_UD = sae.W_dec[union].float()

    def changed(self, x_nTD: Float[Tensor, "n T D"]) -> Iterator[tuple[Configuration, Float[Tensor, "n T D"]]]:
        """The residual under each configuration, in x's dtype; x itself where it changes nothing."""
        codes = sparse_codes.encode(self.sae, x_nTD.flatten(0, 1).float())
        f_nTU = self._latents(codes, x_nTD)
        on_nTU = f_nTU > 0
        for one in self.asked:
            mask_U = torch.zeros(len(self._w_dec_UD), device=x_nTD.device)
            mask_U[self._column_F[list(one.features)]] = 1
            taken_nTU = (f_nTU + one.multiplier * on_nTU) * mask_U
            changed_nTD = x_nTD.float() - taken_nTU @ self._w_dec_UD
            if self.sae.group_bias is not None and self.sae.group_of is not None:
                moved_RD = self._moved(codes, one.features, self.sae.group_of, self.sae.group_bias)
                changed_nTD[:, 1:] += moved_RD.view(x_nTD.shape)[:, 1:]
            yield one, changed_nTD.to(x_nTD.dtype)

    def _moved(
        self, codes: Entries, clamped: Sequence[int], group_of_F: Tensor, bias_GD: Tensor
    ) -> Float[Tensor, "R D"]:
        """By how much the groups' biases change once some latents are off."""
        on_F = torch.ones(self.sae.d_sae, device=bias_GD.device)
        on_F[list(clamped)] = 0
        left = codes._replace(values_n=codes.values_n * on_F[codes.features_n])
        with_RG, without_RG = (
            group_biases.shares(group_biases.amounts(Code(self.sae.d_sae, entries=one), group_of_F, len(bias_GD)))
            for one in (codes, left)
        )
        return (without_RG - with_RG) @ bias_GD

    def _latents(self, codes: Entries, x_nTD: Tensor) -> Float[Tensor, "n T U"]:
        row_n = torch.repeat_interleave(codes.offsets.diff())
        column_n = self._column_F[codes.features_n]
        kept_n = column_n >= 0
        f_RU = x_nTD.new_zeros(x_nTD.shape[0] * x_nTD.shape[1], len(self._w_dec_UD), dtype=torch.float32)
        f_RU[row_n[kept_n], column_n[kept_n]] = codes.values_n[kept_n]
        f_nTU = f_RU.view(*x_nTD.shape[:2], -1)
        f_nTU[:, 0] = 0
        return f_nTU
