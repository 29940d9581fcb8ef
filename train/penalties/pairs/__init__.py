"""The pair engine: which pairs of decoder rows a penalty looks at, and what they cost; no F × F object anywhere.

sources     nearest, nearest_in_chunks, nearest_by_hash (the decoder alone), coactive (a batch's codes)
selection   best: a fixed number of distinct pairs with the largest scores, on the device, without waiting for it
reducers    hinge Σ w [cos − floor]₊² (with one pair a row, the nearest: max) and cosine_sum over a list of pairs, gram
            over the latents that are active together; each with its own backward, in bounded memory
"""

from train.penalties.pairs.coactivation import SCORES, Active, active, coactive, mean_activation, mean_length, spread
from train.penalties.pairs.neighbours import Neighbours, nearest, nearest_by_hash, nearest_in_chunks
from train.penalties.pairs.overlap import cosine_sum, cosines, gram, hinge, quantile
from train.penalties.pairs.selection import Pairs, best, due, jaccard, no_pairs, pairs_of

__all__ = [
    "SCORES",
    "Active",
    "Neighbours",
    "Pairs",
    "active",
    "best",
    "coactive",
    "cosine_sum",
    "cosines",
    "due",
    "gram",
    "hinge",
    "jaccard",
    "mean_activation",
    "mean_length",
    "nearest",
    "nearest_by_hash",
    "nearest_in_chunks",
    "no_pairs",
    "pairs_of",
    "quantile",
    "spread",
]
