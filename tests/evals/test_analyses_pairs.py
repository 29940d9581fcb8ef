"""Redundancy, stability of pairs, efficiency: answers that can be worked out by hand."""

import math

import pytest
import torch

from evals.analyses.absorption_efficiency import Absorbing, absorption_efficiency
from evals.analyses.pair_stability import chance, pair_stability, recording_steps
from evals.analyses.redundancy import LatentCorrelation, most_active
from train.penalties.pairs import Pairs


def test_a_latent_and_its_copy_are_redundant_only_where_their_directions_agree() -> None:
    """0 and 1: the same codes and directions; 0 and 2: the same codes, orthogonal; 0 and 3: parallel, independent."""
    generator = torch.Generator().manual_seed(0)
    code_R, other_R = torch.rand(2, 500, generator=generator)
    codes_RF = torch.stack([code_R, 2 * code_R + 1, code_R, other_R], dim=1)
    w_dec_FD = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0]])
    sums = LatentCorrelation(torch.arange(4))
    for part_RF in codes_RF.split(170):
        sums.add(part_RF)
    found = sums.result(w_dec_FD)
    assert found.pairs_P2.tolist() == [[0, 1]]
    assert found.share == 0.5
    expected_FF = torch.corrcoef(codes_RF.double().T)
    torch.testing.assert_close(found.correlation_MM, expected_FF, rtol=1e-5, atol=1e-5)


def test_pairs_keep_the_numbers_of_the_whole_dictionary() -> None:
    codes_RF = torch.zeros(40, 6)
    codes_RF[::2, 3] = codes_RF[::2, 5] = 1
    codes_RF[::3, 1] = 1
    rate_F = (codes_RF > 0).float().mean(0)
    latents_M = most_active(rate_F, 3)
    assert latents_M.tolist() == [1, 3, 5]
    sums = LatentCorrelation(latents_M)
    sums.add(codes_RF)
    assert sums.result(torch.ones(6, 2)).pairs_P2.tolist() == [[3, 5]]


def test_a_latent_that_never_fires_is_not_compared() -> None:
    assert most_active(torch.tensor([0.0, 0.5, 0.0])).tolist() == [1]


def test_a_correlation_of_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        LatentCorrelation(torch.arange(2)).result(torch.ones(2, 2))


def pairs(*listed: tuple[int, int]) -> Pairs:
    first_P, second_P = torch.tensor(listed).T
    return Pairs(first_P, second_P, torch.ones(len(listed)))


def test_stability_counts_what_two_selections_share() -> None:
    """Of two sets of two with one in common, 1 of 3; the same again, 1."""
    selections = {
        0: pairs((0, 1), (0, 2)),
        1: pairs((0, 1), (0, 3)),
        10: pairs((0, 1), (0, 2)),
        11: pairs((4, 5), (6, 7)),
    }
    found = pair_stability(selections, 10, lags=(1, 10))
    assert found.jaccard_L == pytest.approx(((1 / 3 + 0) / 2, (1 + 0) / 2))
    assert found.chance == pytest.approx(chance(2 / 45))
    assert math.isnan(pair_stability(selections, 10, lags=(7,)).jaccard_L[0])


def test_random_selections_overlap_as_chance_says() -> None:
    generator = torch.Generator().manual_seed(0)
    every_P2 = torch.triu_indices(60, 60, 1).T
    drawn = [every_P2[torch.randperm(len(every_P2), generator=generator)[:354]] for _ in range(40)]
    selections = {step: Pairs(one[:, 0], one[:, 1], torch.ones(len(one))) for step, one in enumerate(drawn)}
    found = pair_stability(selections, 60, lags=(1,))
    assert found.jaccard_L[0] == pytest.approx(found.chance, rel=0.1)
    assert found.chance == pytest.approx(0.2 / 1.8)


def test_half_life_is_where_the_overlap_falls_to_one_half() -> None:
    same, other = pairs((0, 1), (0, 2)), pairs((0, 3), (0, 4))
    assert pair_stability({0: same, 1: other}, 9, lags=(1,)).half_life == pytest.approx(0.5)
    assert pair_stability({0: same, 1: same, 5: other}, 9, lags=(1, 5)).half_life == pytest.approx(3)
    assert pair_stability({0: same, 1: same}, 9, lags=(1,)).half_life == math.inf


def test_every_lag_occurs_among_the_steps_that_are_recorded() -> None:
    steps = recording_steps(400, bases=2)
    assert steps == (99, 189, 198, 199, 299, 389, 398, 399)
    assert all(step >= 0 for step in recording_steps(20))


def trained(absorption: float, fvu: float, l0: float = 32.0, d_sae: int = 2**16, tokens: int = 10**8) -> Absorbing:
    return Absorbing(absorption=absorption, fvu=fvu, l0=l0, d_sae=d_sae, tokens=tokens)


def test_efficiency_is_what_absorption_falls_by_for_each_unit_of_variance() -> None:
    found = absorption_efficiency([trained(0.2, 0.1)] * 3, [trained(0.05, 0.13)] * 3)
    assert found.reduction == pytest.approx(0.75)
    assert found.per_fvu == pytest.approx(5)
    assert found.caveats == ()


def test_a_variant_that_reconstructs_better_pays_the_least_loss() -> None:
    assert absorption_efficiency([trained(0.2, 0.1)] * 3, [trained(0.1, 0.05)] * 3).per_fvu == pytest.approx(100)


def test_unequal_l0_gives_no_efficiency() -> None:
    found = absorption_efficiency([trained(0.2, 0.1)] * 3, [trained(0.1, 0.1, l0=33.0)] * 3)
    assert found.per_fvu is None
    assert "L0 differs by 3.1%" in found.caveats[0]


def test_a_baseline_at_the_floor_leaves_nothing_to_reduce() -> None:
    found = absorption_efficiency([trained(0.0067, 0.1)] * 3, [trained(0.001, 0.1)] * 3)
    assert found.per_fvu is None
    assert "floor" in found.caveats[0]


def test_small_short_and_lonely_trainings_come_with_caveats_unless_the_truth_is_planted() -> None:
    small, better = (trained(one, 0.1, d_sae=160, tokens=10**6) for one in (0.2, 0.1))
    assert len(absorption_efficiency([small], [better]).caveats) == 3
    assert absorption_efficiency([small] * 3, [better] * 3, planted=True).caveats == ()


def test_a_difference_within_the_seeds_noise_is_no_efficiency() -> None:
    """Both sides with a standard deviation of 0.02 at 4 seeds: twice the error of the difference is 0.0283."""
    spread = (0.02 * 0.75**0.5) * torch.tensor([1.0, 1, -1, -1])
    sides = {mean: [trained(float(mean + one), 0.1) for one in spread] for mean in (0.2, 0.18, 0.17)}
    assert absorption_efficiency(sides[0.2], sides[0.17]).per_fvu == pytest.approx(30, rel=1e-4)
    found = absorption_efficiency(sides[0.2], sides[0.18])
    assert found.per_fvu is None
    assert "noise" in found.caveats[0]
