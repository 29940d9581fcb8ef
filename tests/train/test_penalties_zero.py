"""A penalty with a coefficient of 0 is not there: not for the weights, not for anybody's random numbers."""

from functools import cache
from typing import Any

import pytest
import torch

from evals.planted import Temporal
from tests.train.planted_windows import member, normalisation_of, train
from train.member import Member

SOURCE = Temporal(topics=4, words=3, fast=8, d_model=24, seed=3)
NESTED: dict[str, Any] = {"prefixes": (0.25, 1.0)}
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("temporal", {"start": 3}, "batchtopk"),
    ("temporal", {"start": 3, "lag": 0}, "batchtopk"),
    ("temporal_variance", {}, "matryoshka"),
    ("tsae", {}, "matryoshka"),
    ("tsae", {"source": "code"}, "matryoshka"),
    ("ortho_groups", {"by": "clusters"}, "batchtopk"),
    ("ortho_adaptive", {}, "batchtopk"),
    ("ortho_adaptive", {"term": "ortsae", "bound": 0.05}, "batchtopk"),
    ("ortho_active", {}, "batchtopk"),
    ("ortho_pairs", {"tau_mode": "quantile"}, "batchtopk"),
    ("ortho_importance", {"search": "lsh"}, "batchtopk"),
    ("ortsae", {}, "batchtopk"),
]


def trained(base: str, penalties: dict[str, dict[str, Any]]) -> Member:
    """With latents that are resampled on the way, which draws random rows."""
    one = member(
        base,
        penalties,
        normalisation_of(SOURCE),
        d_sae=128,
        k=2,
        k_aux=4,
        steps=24,
        warmup=2,
        lr=3e-3,
        dead_after=128,
        dead_every=1,
        resample_every=5,
        **(NESTED if base == "matryoshka" else {}),
    )
    return train(one, SOURCE, window=8, rows=128)


@cache
def plain(base: str) -> Member:
    return trained(base, {})


def untrained(base: str) -> Member:
    settings = NESTED if base == "matryoshka" else {}
    return member(base, {}, normalisation_of(SOURCE), d_sae=128, k=4, steps=24, **settings)


@pytest.mark.parametrize(("name", "settings", "base"), CASES)
def test_a_coefficient_of_zero_changes_no_bit_where_latents_are_resampled(
    name: str, settings: dict[str, Any], base: str
) -> None:
    zero = trained(base, {name: {**settings, "coeff": 0.0}})
    assert not torch.equal(plain(base).generator.get_state(), untrained(base).generator.get_state())
    assert torch.equal(zero.generator.get_state(), plain(base).generator.get_state())
    for key, tensor in plain(base).sae.state_dict().items():
        assert torch.equal(zero.sae.state_dict()[key], tensor), key
