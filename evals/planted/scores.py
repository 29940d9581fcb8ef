"""How much of a planted truth a dictionary has found: scores of codes and decoder rows, whatever made them.

A latent *fires* where its code is above 0. A truth's *main latent* is the one whose decoder row has the largest cosine
with the truth's direction; its *best detector* is the one with the largest F1.
Shapes: n rows, T positions, F latents, P true features, D d_model, p parents, C children a parent.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.nn.functional import normalize

from evals.planted.source import Family


class Match(NamedTuple):
    """Which latent stands for each truth."""

    score_P: Tensor
    """Cosine or F1 of each truth with its latent, float32."""
    latent_P: Tensor
    """Index of that latent, int64; -1 where none is left."""


def cosines(w_dec_FD: Float[Tensor, "F D"], directions_PD: Float[Tensor, "P D"]) -> Float[Tensor, "F P"]:
    """Signed cosine of every decoder row with every true direction; 0 for a row of zeros."""
    return normalize(w_dec_FD.detach(), dim=1) @ normalize(directions_PD, dim=1).T


def best_cosine(w_dec_FD: Float[Tensor, "F D"], directions_PD: Float[Tensor, "P D"]) -> Match:
    """Main latent of each truth, one latent possibly for several.

    The mean score is MCS, the mean max cosine similarity (Sharkey et al. 2022, "Taking features out of superposition
    with sparse autoencoders"): 1 when every truth has a latent of its direction, and for F random rows about
    sqrt(2 ln F / D).
    """
    return Match(*cosines(w_dec_FD, directions_PD).max(dim=0))


def one_to_one_cosine(w_dec_FD: Float[Tensor, "F D"], directions_PD: Float[Tensor, "P D"]) -> Match:
    """As `best_cosine`, but no latent stands for two truths: pairs are taken greedily, the largest cosine first.

    The mean score is a lower bound on that of the optimal one-to-one assignment, which is called MCC, and where F >= P
    it is at most MCS. A truth that finds no latent left (F < P) scores 0.
    """
    left_FP = cosines(w_dec_FD, directions_PD)
    n_latents, n_truths = left_FP.shape
    match = Match(left_FP.new_zeros(n_truths), torch.full((n_truths,), -1, device=left_FP.device))
    for _ in range(min(n_latents, n_truths)):
        latent, truth = divmod(int(left_FP.argmax()), n_truths)
        match.score_P[truth] = left_FP[latent, truth]
        match.latent_P[truth] = latent
        left_FP[latent] = -torch.inf
        left_FP[:, truth] = -torch.inf
    return match


def f1(codes_nF: Num[Tensor, "n F"], latents_nP: Num[Tensor, "n P"]) -> Float[Tensor, "F P"]:
    """F1 of each latent as a detector of each truth: 2 |both on| / (|latent on| + |truth on|); 0 where neither ever is.

    1 is a perfect detector. A latent that fires with probability q independently of a truth of probability p has
    2pq / (p + q).
    """
    fired_nF, on_nP = (codes_nF > 0).float(), (latents_nP > 0).float()
    both_FP = fired_nF.T @ on_nP
    return 2 * both_FP / (fired_nF.sum(0)[:, None] + on_nP.sum(0)).clamp_min(1)


def best_f1(codes_nF: Num[Tensor, "n F"], latents_nP: Num[Tensor, "n P"]) -> Match:
    """Best detector of each truth. Mean over parents: parent F1; over topics: slow F1; over all truths: all F1.

    To ask whether a group of latents knows the truth (a slow prefix, say), hand over the codes of that group alone.
    """
    return Match(*f1(codes_nF, latents_nP).max(dim=0))


def absorption(
    codes_nF: Num[Tensor, "n F"],
    w_dec_FD: Float[Tensor, "F D"],
    latents_nP: Num[Tensor, "n P"],
    directions_PD: Float[Tensor, "P D"],
    family: Family,
) -> Float[Tensor, " p"]:
    """How much more often a parent's main latent is silent when a child of the parent is on; the mean is the score.

    For each parent: [P(main off | parent, some child) - P(main off | parent, no child)]_+, the main latent being that
    of `best_cosine`. 0 is none; 1 is a latent that means "the parent without any child". The difference takes out
    latents that are merely bad at firing. This is the planted form of feature absorption (Chanin et al. 2024, arXiv
    2409.14507).

    Args:
        codes_nF: codes of the rows; above 0 is on.
        w_dec_FD: decoder rows.
        latents_nP: the truth of the same rows.
        directions_PD: the true directions.
        family: which truths are parents, and which are their children.

    Raises:
        ValueError: a parent that is never on with a child, or never without: more rows are needed.
    """
    parents_p, children_pC = (one.to(codes_nF.device) for one in family)
    main_p = best_cosine(w_dec_FD, directions_PD[parents_p]).latent_P
    silent_np = codes_nF[:, main_p] <= 0
    parent_np = latents_nP[:, parents_p] > 0
    child_np = (latents_nP[:, children_pC] > 0).any(dim=-1)
    with_np, without_np = parent_np & child_np, parent_np & ~child_np
    fewest = int(torch.minimum(with_np.sum(0), without_np.sum(0)).min())
    if not fewest:
        raise ValueError(
            f"every parent must occur with and without a child, but in these {len(codes_nF)} rows one does not:"
            " sample more rows"
        )
    return (_rate(silent_np, with_np) - _rate(silent_np, without_np)).clamp_min(0)


def flicker(
    codes_nTF: Num[Tensor, "n T F"], latents_nTP: Num[Tensor, "n T P"], detectors_P: Int[Tensor, " P"]
) -> Float[Tensor, ""]:
    """P(latent off at t+1 | truth on at t and t+1, latent on at t), pooled over truths and their latents.

    0 is a latent that stays on as long as its truth does; a latent that fires with probability q independently of all
    else has 1 - q.

    Args:
        codes_nTF: codes of windows of consecutive positions.
        latents_nTP: truth of the same positions, of the slow features alone.
        detectors_P: the latent that stands for each of these truths, such as `best_f1(...).latent_P`.

    Raises:
        ValueError: no truth stays on while its latent is on: more windows are needed.
    """
    fired_nTP, on_nTP = codes_nTF[..., detectors_P] > 0, latents_nTP > 0
    could_stay_ntP = on_nTP[:, 1:] & on_nTP[:, :-1] & fired_nTP[:, :-1]
    if not could_stay_ntP.any():
        raise ValueError(f"no truth stays on while its latent is on in these {len(codes_nTF)} windows: sample more")
    return (could_stay_ntP & ~fired_nTP[:, 1:]).sum() / could_stay_ntP.sum()


def residual_signal(
    x_hat_nD: Float[Tensor, "n D"],
    b_dec_D: Float[Tensor, " D"],
    latents_nP: Float[Tensor, "n P"],
    directions_PD: Float[Tensor, "P D"],
) -> Float[Tensor, ""]:
    """Share of some truths' signal s = Σ_p latent_p direction_p that a reconstruction has: Σ <x̂ - b, s> / Σ |s|².

    1 is a reconstruction that has all of it, 0 one that has none. After the latents of a forget group were set to 0,
    and with the forget features as truths, this is the forget signal that the group did not hold.

    Args:
        x_hat_nD: reconstructions, of rows of the forget domain.
        b_dec_D: the decoder's bias, which is no row's signal.
        latents_nP: truth of the same rows, of the features in question alone.
        directions_PD: their directions.

    Raises:
        ValueError: none of these features is on in these rows.
    """
    signal_nD = latents_nP @ directions_PD
    energy = signal_nD.square().sum()
    if not energy:
        raise ValueError(f"none of these features is on in these {len(x_hat_nD)} rows: sample more")
    return ((x_hat_nD - b_dec_D) * signal_nD).sum() / energy


def fvu(x_nD: Float[Tensor, "n D"], x_hat_nD: Float[Tensor, "n D"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained of these rows, in any units: 0 is perfect, 1 is predicting their mean."""
    return (x_nD - x_hat_nD).square().sum() / (x_nD - x_nD.mean(dim=0)).square().sum()


def _rate(event_np: Bool[Tensor, "n p"], given_np: Bool[Tensor, "n p"]) -> Float[Tensor, " p"]:
    return (event_np & given_np).sum(0) / given_np.sum(0)
