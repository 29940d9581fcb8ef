"""Codes in time: what a latent remembers, where in a sequence it fires, how smoothly it changes.

Accumulators over batches of whole sequences, so that any number of them fits; sums over sequences are in float64. Two
positions are compared only within one document: padding, and whatever else is to be left out (BOS), has document -1.
Never report smoothness or persistence of a group of latents without its L0: one that never fires is perfectly smooth.
Shapes: n sequences, T positions, F latents, D d_model, L lags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

LAGS: Final = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 32, 64)
MIN_ACTIVATIONS: Final = 20
"""A latent that fired more rarely has no auto-correlation worth the name: NaN."""


@dataclass(frozen=True, kw_only=True)
class AutoCorrelations:
    """What `AutoCorrelation` found; NaN for latents with fewer than `MIN_ACTIVATIONS` and for lags without pairs."""

    lags: tuple[int, ...]
    rho_LF: Float64[Tensor, "L F"]
    """ρ_i(τ) = mean (z_t - μ_i)(z_{t+τ} - μ_i) over pairs / mean (z_t - μ_i)² over rows, μ_i the mean over all rows.

    Zeros count. Means instead of sums: short documents have fewer pairs at long lags, which is no loss of memory.
    """
    rate_F: Float64[Tensor, " F"]
    """Share of rows in which the latent is on."""
    on_excess_F: Float64[Tensor, " F"]
    """P(on at t+1 | on at t) - P(on): 0 for an independent latent, 1 - P(on) for one that never goes off."""

    @property
    def half_life_F(self) -> Float64[Tensor, " F"]:
        """Positions until ρ first falls to 1/2, linear between measured lags; infinite if it does not within them.

        ρ(0) is 1, so ρ(τ) = a^τ has ln 2 / -ln a; an independent latent has 0.5.
        """
        lags = torch.tensor((0, *self.lags), dtype=torch.float64, device=self.rho_LF.device)
        rho_MF = torch.cat([torch.ones_like(self.rho_LF[:1]), self.rho_LF])
        fallen_MF = rho_MF <= 0.5
        after_F = fallen_MF.int().argmax(dim=0)  # the first lag that is low enough; 0 where none is
        before_F = (after_F - 1).clamp_min(0)
        high_F, low_F = (rho_MF.gather(0, at_F[None])[0] for at_F in (before_F, after_F))
        share_F = (high_F - 0.5) / (high_F - low_F)
        between_F = lags[before_F] + share_F * (lags[after_F] - lags[before_F])
        never_F = torch.where(self.rho_LF[0].isnan(), torch.nan, torch.inf)
        return torch.where(fallen_MF.any(0), between_F, never_F)

    def summary(self) -> dict[str, float]:
        """Of ρ at the first lag: mean weighted by firing rate, median, share of latents above 0.5; median half-life."""
        known_F = ~self.rho_LF[0].isnan()
        rho_F, rate_F = self.rho_LF[0, known_F], self.rate_F[known_F]
        return {
            "weighted_mean": float((rho_F * rate_F).sum() / rate_F.sum()),
            "median": float(rho_F.nanmedian()),
            "share_above_half": float((rho_F > 0.5).double().mean()),
            "median_half_life": float(self.half_life_F[known_F].nanmedian()),
        }


class AutoCorrelation:
    """Auto-correlation of every latent by lag, within documents."""

    def __init__(self, n_latents: int, *, lags: Sequence[int] = LAGS, device: str | torch.device = "cpu") -> None:
        """Start empty.

        Args:
            n_latents: F.
            lags: distances in positions, ascending, from 1.
            device: of the sums; that of the codes.

        Raises:
            ValueError: lags that are not ascending whole numbers from 1.
        """
        self.lags = tuple(lags)
        if not self.lags or self.lags[0] < 1 or list(self.lags) != sorted(set(self.lags)):
            raise ValueError(f"lags must be whole numbers from 1, ascending, got {list(lags)}")
        zeros = torch.zeros(n_latents, dtype=torch.float64, device=device)
        self._rows, self._on_F, self._sum_F, self._square_F = 0, zeros.clone(), zeros.clone(), zeros.clone()
        self._with_next_F, self._stayed_F = zeros.clone(), zeros.clone()
        self._pairs = [0] * len(self.lags)
        self._product_LF = torch.zeros(len(self.lags), n_latents, dtype=torch.float64, device=device)
        self._ends_LF = torch.zeros_like(self._product_LF)

    def add(self, codes_nTF: Float[Tensor, "n T F"], document_nT: Int[Tensor, "n T"]) -> None:
        """Add n sequences; document -1 is left out."""
        kept_nTF = codes_nTF * (document_nT >= 0)[..., None]
        on_nTF = (kept_nTF > 0).to(kept_nTF.dtype)
        self._rows += int((document_nT >= 0).sum())
        self._on_F += _total(on_nTF)
        self._sum_F += _total(kept_nTF)
        self._square_F += _total(kept_nTF.square())
        next_nt = _pairs(document_nT, 1).to(kept_nTF.dtype)
        self._with_next_F += _total(on_nTF[:, :-1], next_nt)
        self._stayed_F += _total(on_nTF[:, :-1] * on_nTF[:, 1:], next_nt)
        for i, lag in enumerate(self.lags):
            pair_nt = _pairs(document_nT, lag)
            weight_nt, ends_nT = pair_nt.to(kept_nTF.dtype), torch.zeros_like(kept_nTF[..., 0])
            ends_nT[:, :-lag] += weight_nt
            ends_nT[:, lag:] += weight_nt
            self._pairs[i] += int(pair_nt.sum())
            self._product_LF[i] += _total(kept_nTF[:, :-lag] * kept_nTF[:, lag:], weight_nt)
            self._ends_LF[i] += _total(kept_nTF, ends_nT)

    def result(self) -> AutoCorrelations:
        """What was added so far.

        Raises:
            ValueError: nothing was added.
        """
        if not self._rows:
            raise ValueError("no position of any document was added: nothing to correlate")
        mean_F = self._sum_F / self._rows
        variance_F = (self._square_F / self._rows - mean_F**2).clamp_min(0)
        pairs_L1 = torch.tensor(self._pairs, dtype=torch.float64, device=mean_F.device)[:, None]
        # Σ (a - μ)(b - μ) = Σ ab - μ Σ (a + b) + n μ²; without pairs 0 / 0 says so.
        rho_LF = (self._product_LF - mean_F * self._ends_LF) / pairs_L1 + mean_F**2
        rare_F = self._on_F < MIN_ACTIVATIONS
        rate_F = self._on_F / self._rows
        return AutoCorrelations(
            lags=self.lags,
            rho_LF=(rho_LF / variance_F).masked_fill(rare_F, torch.nan),
            rate_F=rate_F,
            on_excess_F=(self._stayed_F / self._with_next_F - rate_F).masked_fill(rare_F, torch.nan),
        )


class PositionProfile:
    """How codes depend on the position in the sequence."""

    def __init__(self, context: int, n_latents: int, *, device: str | torch.device = "cpu") -> None:
        """Start empty, for sequences of `context` positions T and F latents."""
        self._sum_TF = torch.zeros(context, n_latents, dtype=torch.float64, device=device)
        self._count_T, self._square_F = torch.zeros_like(self._sum_TF[:, 0]), torch.zeros_like(self._sum_TF[0])
        self._cosine_TT = torch.zeros(context, context, dtype=torch.float64, device=device)
        self._pairs_TT = torch.zeros_like(self._cosine_TT)

    def add(self, codes_nTF: Float[Tensor, "n T F"], document_nT: Int[Tensor, "n T"]) -> None:
        """Add n sequences; document -1 is left out."""
        kept_nT = document_nT >= 0
        kept_nTF = codes_nTF * kept_nT[..., None]
        self._count_T += kept_nT.sum(0)
        self._sum_TF += kept_nTF.sum(0, dtype=torch.float64)
        self._square_F += _total(kept_nTF.square())
        unit_nTF = normalize(kept_nTF, dim=-1)
        same_nTT = (document_nT[:, :, None] == document_nT[:, None]) & kept_nT[..., None]
        on_nT = (kept_nTF != 0).any(-1)
        same_nTT = same_nTT & on_nT[:, :, None] & on_nT[:, None]
        self._cosine_TT += ((unit_nTF @ unit_nTF.mT) * same_nTT).sum(0, dtype=torch.float64)
        self._pairs_TT += same_nTT.sum(0)

    def correlation(self) -> Float64[Tensor, "T T"]:
        """P_ts: mean over sequences of cos(z_t, z_s), of positions t and s of one document where some latent is on.

        NaN where no document reaches over both.
        """
        mean_TT: Tensor = self._cosine_TT / self._pairs_TT
        return mean_TT

    def eta_squared(self) -> Float64[Tensor, " F"]:
        """η²_i: share of a latent's variance that lies between the means of its positions; NaN of a constant latent.

        0 is position-invariance, 1 a latent that only tells the position. N rows of an independent latent have
        (T - 1) / (N - 1) by chance.
        """
        total = self._count_T.sum()
        mean_F = self._sum_TF.sum(0) / total
        mean_TF = self._sum_TF / self._count_T[:, None].clamp_min(1)
        between_F = (self._count_T[:, None] * (mean_TF - mean_F).square()).sum(0)
        share_F: Tensor = between_F / (self._square_F - total * mean_F**2).clamp_min(0)
        return share_F


class Smoothness:
    """S: the steepest change of a latent in a sequence, relative to the change of the activations there.

    S = mean over sequences of the mean over latents that are on in the sequence of max_t |z_t - z_{t-1}| /
    |x_t - x_{t-1}|_2, over neighbours in one document (T-SAE, arXiv 2511.05541). In units of codes per unit of x; less
    is smoother, and less still where fewer latents fire: `latents_on` belongs beside it.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._sequences, self._steepest, self._on = 0, 0.0, 0

    def add(
        self, codes_nTF: Float[Tensor, "n T F"], x_nTD: Float[Tensor, "n T D"], document_nT: Int[Tensor, "n T"]
    ) -> None:
        """Add n sequences with the activations that were encoded; sequences without an active latent do not count."""
        neighbours_nt1 = _pairs(document_nT, 1)[..., None]
        change_ntF = (codes_nTF[:, 1:] - codes_nTF[:, :-1]).abs()
        moved_nt1 = (x_nTD[:, 1:] - x_nTD[:, :-1]).norm(dim=-1, keepdim=True)
        # Where x stands still, so does every code of one position.
        slope_ntF = torch.where(neighbours_nt1 & (moved_nt1 > 0), change_ntF / moved_nt1, 0.0)
        on_nF = ((codes_nTF > 0) & (document_nT >= 0)[..., None]).any(1)
        on_n = on_nF.sum(1)
        steepest_n = (slope_ntF.amax(1) * on_nF).sum(1, dtype=torch.float64)[on_n > 0] / on_n[on_n > 0]
        self._sequences += len(steepest_n)
        self._steepest += float(steepest_n.sum())
        self._on += int(on_n.sum())

    def result(self) -> dict[str, float]:
        """`smoothness`: S; `latents_on`: mean number of latents that are on somewhere in a sequence.

        Raises:
            ValueError: no sequence in which any latent is on was added.
        """
        if not self._sequences:
            raise ValueError("no sequence in which any latent is on was added: these latents are dead")
        return {"smoothness": self._steepest / self._sequences, "latents_on": self._on / self._sequences}


def shuffled(
    codes_nTF: Float[Tensor, "n T F"],
    document_nT: Int[Tensor, "n T"],
    generator: torch.Generator,
    *,
    within_documents: bool = False,
) -> Float[Tensor, "n T F"]:
    """The same rows in a random order: what an analysis finds in them is chance.

    Args:
        codes_nTF: codes of n sequences.
        document_nT: document of each position; what has -1 stays where it is.
        generator: where the randomness comes from, on the codes' device.
        within_documents: keep each row in its document, so that what is left is what whole documents differ by.
    """
    flat_RF, document_R = codes_nTF.flatten(0, 1), document_nT.flatten()
    group_R = document_R if within_documents else document_R.clamp_max(0)
    order_R = torch.randperm(len(group_R), generator=generator, device=generator.device)
    mixed_R = order_R[group_R[order_R].argsort(stable=True)]
    place_R = group_R.argsort(stable=True)
    result_RF = flat_RF.clone()
    result_RF[place_R] = flat_RF[mixed_R]
    result_RF[document_R < 0] = flat_RF[document_R < 0]
    return result_RF.view_as(codes_nTF)


def _total(values_ntF: Float[Tensor, "n t F"], weight_nt: Float[Tensor, "n t"] | None = None) -> Float64[Tensor, " F"]:
    """Weighted sum over sequences and positions: each sequence as it comes, the sequences in float64.

    Float64 throughout takes many times as long, and a sequence is short.
    """
    if weight_nt is None:
        return values_ntF.sum(1).sum(0, dtype=torch.float64)
    return torch.bmm(weight_nt[:, None], values_ntF)[:, 0].sum(0, dtype=torch.float64)


def _pairs(document_nT: Int[Tensor, "n T"], lag: int) -> Bool[Tensor, "n t"]:
    """Where position t and t + lag belong to one document."""
    return (document_nT[:, lag:] == document_nT[:, :-lag]) & (document_nT[:, lag:] >= 0)
