"""Learning rate and sparsity over the steps of a run."""

import pytest

from train.schedule import default_lr, learning_rate, sparsity


def rates(steps: int, warmup: int, decay: float, lr: float = 1.0) -> list[float]:
    return [learning_rate(step, lr=lr, steps=steps, warmup=warmup, decay=decay) for step in range(steps)]


def test_the_rate_rises_stays_and_falls() -> None:
    found = rates(20, warmup=4, decay=0.25)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[3:16] == pytest.approx([1.0] * 13)
    assert found[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_no_step_is_taken_at_rate_zero() -> None:
    assert min(rates(1000, warmup=100, decay=0.2)) > 0
    assert min(rates(1, warmup=0, decay=1.0)) > 0


def test_without_warm_up_and_decay_it_is_constant() -> None:
    assert rates(10, warmup=0, decay=0.0, lr=3e-4) == [3e-4] * 10


def test_warm_up_and_decay_that_overlap_multiply() -> None:
    assert max(rates(10, warmup=10, decay=1.0)) < 0.5


def test_sparsity_grows_to_its_coefficient_and_stays() -> None:
    assert [sparsity(step, 4) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert sparsity(0, 0) == 1.0


def test_top_k_families_learn_at_2e_4_for_16384_latents_and_half_as_fast_for_four_times_as_many() -> None:
    for architecture in ("topk", "batchtopk", "matryoshka"):
        assert default_lr(architecture, 2**14) == pytest.approx(2e-4)
        assert default_lr(architecture, 2**16) == pytest.approx(1e-4)
    assert default_lr("jumprelu", 2**14) == pytest.approx(7e-5)
    assert default_lr("relu", 2**14) == default_lr("gated", 2**16) == pytest.approx(3e-4)
