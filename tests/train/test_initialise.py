"""Where an SAE begins."""

import pytest
import torch
from torch.nn.functional import normalize

from train.initialise import directions, stream


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_a_dictionary_does_not_begin_at_truths_planted_with_the_same_seed(seed: int) -> None:
    planted_PD = normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(seed)), dim=1)
    best_P = (directions(64, 32, seed, range(64)) @ planted_PD.T).max(0).values
    assert best_P.max() < 0.9


def test_streams_of_different_purposes_and_seeds_differ_and_repeat() -> None:
    drawn = {(what, seed): torch.randn(8, generator=stream(what, seed)) for what in ("a", "b") for seed in (0, 2**32)}
    values = list(drawn.values())
    assert all(not torch.equal(x, y) for i, x in enumerate(values) for y in values[:i])
    assert torch.equal(drawn["a", 0], torch.randn(8, generator=stream("a", 0)))
