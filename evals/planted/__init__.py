"""Planted truths: sources whose features are known, caches of them, and what a dictionary scores against them."""

from evals.planted.caches import sequence, write_cache
from evals.planted.dictionary import Dictionary
from evals.planted.domains import Domains
from evals.planted.hierarchy import Hierarchy
from evals.planted.scores import (
    Match,
    absorption,
    best_cosine,
    best_f1,
    f1,
    flicker,
    fvu,
    one_to_one_cosine,
    residual_signal,
)
from evals.planted.source import Family, Planted, Sample
from evals.planted.temporal import Temporal

__all__ = [
    "Dictionary",
    "Domains",
    "Family",
    "Hierarchy",
    "Match",
    "Planted",
    "Sample",
    "Temporal",
    "absorption",
    "best_cosine",
    "best_f1",
    "f1",
    "flicker",
    "fvu",
    "one_to_one_cosine",
    "residual_signal",
    "sequence",
    "write_cache",
]
