"""Lists of pairs of latents: distinct, of a fixed length, chosen by score without waiting for the device.

Shapes: F d_sae, P pairs, n candidates (with repetitions).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from train.penalties.pairs.neighbours import Neighbours


class Pairs(NamedTuple):
    """Unordered pairs of latents, each once, sorted by the first."""

    first_P: Int64[Tensor, " P"]
    """The smaller latent."""
    second_P: Int64[Tensor, " P"]
    weight_P: Float[Tensor, " P"]
    """1, or 0 for a slot that no pair fills: lengths never depend on the data."""


def due(step: int, start: int, refresh: int) -> bool:
    """Whether pairs are chosen after this step: right before a penalty's first use, then before every `refresh`-th."""
    first = max(0, start - 1)
    return step == first or (step > first and (step + 1) % refresh == 0)


def no_pairs(n: int, device: torch.device) -> Pairs:
    """n empty slots."""
    first_P, second_P = (torch.zeros(n, dtype=torch.int64, device=device) for _ in range(2))
    return Pairs(first_P, second_P, torch.zeros(n, device=device))


def pairs_of(neighbours: Neighbours) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Each latent with each of its neighbours; a latent that has none is paired with itself, which `best` drops."""
    index_FN, cosine_FN = neighbours
    first_FN = torch.arange(len(index_FN), device=index_FN.device)[:, None].expand_as(index_FN)
    return first_FN.flatten(), torch.where(cosine_FN > -1, index_FN, first_FN).flatten()


def best(
    first_n: Int64[Tensor, " n"], second_n: Int64[Tensor, " n"], score_n: Float[Tensor, " n"], k: int, d_sae: int
) -> Pairs:
    """The k distinct pairs with the largest positive scores; (i, j) and (j, i) are one pair, (i, i) is none.

    Repetitions of a pair must have the same score. Where fewer than k pairs qualify, the rest of the slots is empty.
    """
    key_n, order_n = (torch.minimum(first_n, second_n) * d_sae + torch.maximum(first_n, second_n)).sort()
    out_n = repeated(key_n) | (key_n // d_sae == key_n % d_sae)
    score_n = score_n[order_n].masked_fill(out_n, 0)
    if len(score_n) < k:
        missing = k - len(score_n)
        key_n = torch.cat([key_n, key_n.new_zeros(missing)])
        score_n = torch.cat([score_n, score_n.new_zeros(missing)])
    place_P = score_n.topk(k, sorted=False).indices
    there_P = score_n[place_P] > 0
    key_P, order_P = torch.where(there_P, key_n[place_P], 0).sort()
    return Pairs(key_P // d_sae, key_P % d_sae, there_P[order_P].float())


def repeated(key_n: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Which of sorted keys are the same as the one before."""
    return torch.cat([torch.zeros_like(key_n[:1], dtype=torch.bool), key_n[1:] == key_n[:-1]])


def jaccard(one: Pairs, other: Pairs, d_sae: int) -> Float[Tensor, ""]:
    """|S ∩ S′| / |S ∪ S′|; 0 where both are empty. Random sets of a share p of all pairs have about p / (2 − p)."""
    key_P, key_Q = (pairs.first_P * d_sae + pairs.second_P for pairs in (one, other))
    # Empty slots have key 0, which no pair has: the smaller latent comes first.
    both = (torch.isin(key_P, key_Q) & (key_P > 0)).sum()
    either = (key_P > 0).sum() + (key_Q > 0).sum() - both
    return both / either.clamp_min(1)
