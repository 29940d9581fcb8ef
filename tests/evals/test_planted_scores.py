"""Scores against a planted truth: dictionaries whose score is known beforehand."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals.planted import (
    Domains,
    Family,
    Hierarchy,
    Temporal,
    absorption,
    best_cosine,
    best_f1,
    f1,
    flicker,
    fvu,
    one_to_one_cosine,
    residual_signal,
)


class Scene(NamedTuple):
    """A hierarchy's rows and truth."""

    x_nD: Tensor
    latents_nP: Tensor
    directions_PD: Tensor
    family: Family


@pytest.fixture(scope="module")
def scene() -> Scene:
    source = Hierarchy()
    sample = source.sample(6000, torch.Generator().manual_seed(0))
    return Scene(sample.x, sample.latents, source.directions, source.family)


def silenced_where_a_child_is_on(scene: Scene, share: float = 1.0) -> Tensor:
    """Codes of a dictionary that absorbs: parents are silent in this share of the rows with a child."""
    codes_nP = scene.latents_nP.clone()
    child_np = (codes_nP[:, scene.family.children] > 0).any(-1)
    absorbed_np = torch.rand(child_np.shape, generator=torch.Generator().manual_seed(1)) < share
    codes_nP[:, scene.family.parents] *= ~(child_np & absorbed_np)
    return codes_nP


def shuffled(codes_nF: Tensor) -> Tensor:
    """The same codes, each latent's rows in an order of its own."""
    order_nF = torch.rand(codes_nF.shape, generator=torch.Generator().manual_seed(2)).argsort(dim=0)
    return codes_nF.gather(0, order_nF)


def test_the_truth_itself_scores_perfectly(scene: Scene) -> None:
    x_nD, latents_nP, directions_PD, family = scene
    assert (absorption(latents_nP, directions_PD, latents_nP, directions_PD, family) == 0).all()
    torch.testing.assert_close(best_f1(latents_nP, latents_nP).score_P, torch.ones(112))
    torch.testing.assert_close(best_cosine(directions_PD, directions_PD).score_P, torch.ones(112))
    torch.testing.assert_close(one_to_one_cosine(directions_PD, directions_PD).score_P, torch.ones(112))
    # What is left is the planted noise: 64 coordinates of 0.02², against the variance of all features.
    expected = 64 * 0.02**2 / float((x_nD - x_nD.mean(0)).square().sum(1).mean())
    assert float(fvu(x_nD, latents_nP @ directions_PD)) == pytest.approx(expected, rel=0.02)


def test_a_dictionary_that_writes_the_parent_into_its_children_absorbs_it_all(scene: Scene) -> None:
    _, latents_nP, directions_PD, family = scene
    w_dec_PD = directions_PD.clone()
    for parent, children_C in zip(*family, strict=True):
        w_dec_PD[children_C] = normalize(directions_PD[children_C] + 0.9 * directions_PD[parent], dim=1)
    codes_nP = silenced_where_a_child_is_on(scene)
    torch.testing.assert_close(absorption(codes_nP, w_dec_PD, latents_nP, directions_PD, family), torch.ones(16))


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_absorption_is_the_share_of_rows_with_a_child_in_which_the_parent_is_missing(
    scene: Scene, share: float
) -> None:
    _, latents_nP, directions_PD, family = scene
    codes_nP = silenced_where_a_child_is_on(scene, share)
    score = absorption(codes_nP, directions_PD, latents_nP, directions_PD, family).mean()
    assert float(score) == pytest.approx(share, abs=0.02)


def test_a_latent_that_is_merely_bad_at_firing_does_not_absorb(scene: Scene) -> None:
    """Half of all firings lost at random, with a child or without: what is left is sampling noise."""
    _, latents_nP, directions_PD, family = scene
    kept_nP = torch.rand(latents_nP.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    score = absorption(latents_nP * kept_nP, directions_PD, latents_nP, directions_PD, family).mean()
    assert float(score) < 0.03


def test_absorption_does_not_depend_on_the_order_of_latents_or_the_length_of_decoder_rows(scene: Scene) -> None:
    _, latents_nP, directions_PD, family = scene
    codes_nP = silenced_where_a_child_is_on(scene, 0.5)
    order_P = torch.randperm(112, generator=torch.Generator().manual_seed(4))
    expected = absorption(codes_nP, directions_PD, latents_nP, directions_PD, family)
    again = absorption(codes_nP[:, order_P], 3 * directions_PD[order_P], latents_nP, directions_PD, family)
    torch.testing.assert_close(again, expected)


def test_absorption_asks_for_more_rows_when_a_parent_was_not_seen_both_ways(scene: Scene) -> None:
    _, latents_nP, directions_PD, family = scene
    with pytest.raises(ValueError, match="sample more rows"):
        absorption(latents_nP[:5], directions_PD, latents_nP[:5], directions_PD, family)


def test_shuffled_codes_detect_at_chance(scene: Scene) -> None:
    """A latent of rate p that is independent of a truth of the same rate has F1 p."""
    latents_nP = scene.latents_nP
    chance_P = f1(shuffled(latents_nP), latents_nP).diagonal()
    rate_P = (latents_nP > 0).float().mean(0)
    assert float((chance_P - rate_P).mean()) == pytest.approx(0, abs=0.01)
    assert float(best_f1(shuffled(latents_nP), latents_nP).score_P.mean()) < 0.2


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    on_n1 = torch.tensor([1, 1, 1, 0, 0, 0])[:, None]
    fired_n1 = torch.tensor([1.0, 0, 0, 2, 0, 0])[:, None]
    precision, recall = 1 / 2, 1 / 3
    assert float(f1(fired_n1, on_n1)) == pytest.approx(2 * precision * recall / (precision + recall))
    assert float(f1(torch.zeros(6, 1), torch.zeros(6, 1))) == 0


def test_a_group_of_latents_is_scored_by_handing_over_its_codes_alone(scene: Scene) -> None:
    latents_nP = scene.latents_nP
    parents_only = best_f1(latents_nP[:, :16], latents_nP).score_P
    torch.testing.assert_close(parents_only[:16], torch.ones(16))
    assert (parents_only[16:] < 0.6).all()


def test_random_rows_match_at_chance() -> None:
    """The largest of F cosines with a random direction in D dimensions is about sqrt(2 ln F / D)."""
    generator = torch.Generator().manual_seed(0)
    w_dec_FD, directions_PD = torch.randn(1000, 400, generator=generator), torch.randn(200, 400, generator=generator)
    chance = (2 * torch.log(torch.tensor(1000.0)) / 400).sqrt()
    assert float(best_cosine(w_dec_FD, directions_PD).score_P.mean()) == pytest.approx(float(chance), rel=0.15)


def test_one_latent_for_two_truths_counts_twice_for_mcs_and_once_one_to_one() -> None:
    directions_PD = torch.eye(2, 4)
    w_dec_FD = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0]])
    half = 0.5**0.5
    torch.testing.assert_close(best_cosine(w_dec_FD, directions_PD).score_P, torch.tensor([half, half]))
    match = one_to_one_cosine(w_dec_FD, directions_PD)
    torch.testing.assert_close(match.score_P, torch.tensor([half, 0.0]))
    assert match.latent_P.tolist() == [0, 1]


def test_a_truth_for_which_no_latent_is_left_scores_nothing() -> None:
    match = one_to_one_cosine(torch.eye(1, 3), torch.eye(2, 3))
    assert match.score_P.tolist() == [1, 0]
    assert match.latent_P.tolist() == [0, -1]


def test_a_faithful_detector_does_not_flicker_and_a_coin_does_as_often_as_it_shows_tails() -> None:
    source = Temporal.aligned()
    latents_nTp = source.sequences(800, 8, torch.Generator().manual_seed(0)).latents[..., source.slow]
    assert float(flicker(latents_nTp, latents_nTp, source.slow)) == 0
    coins_nTp = (torch.rand(latents_nTp.shape, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    assert float(flicker(latents_nTp * coins_nTp, latents_nTp, source.slow)) == pytest.approx(0.3, abs=0.02)
    with pytest.raises(ValueError, match="sample more"):
        flicker(0 * latents_nTp, latents_nTp, source.slow)


def test_ablating_forget_latents_leaves_the_signal_that_their_partners_hold() -> None:
    """Without forget latents nothing of the signal is left but what other features share with it by their cosines."""
    source = Domains(d_model=96, paired_cosine=0.35)  # orthogonal but for the pairs
    sample = source.sample(40_000, torch.Generator().manual_seed(0))
    assert sample.domain is not None
    rows = sample.domain == 0
    forget, latents_nP, directions_PD = source.forget_features, sample.latents[rows], source.directions
    truth = (latents_nP[:, forget], directions_PD[forget])
    bias_D = torch.full((96,), 0.3)
    whole_nD = latents_nP @ directions_PD + bias_D
    kept_nP = latents_nP.clone()
    kept_nP[:, forget] = 0
    left = residual_signal(kept_nP @ directions_PD + bias_D, bias_D, *truth)
    assert float(residual_signal(whole_nD, bias_D, *truth)) == pytest.approx(1 + float(left), abs=1e-3)
    # E<x̂, s> = Σ_i 0.35 E[forget_i] E[retain_i] over 32 pairs, against E|s|² = 32 · 0.06 · (1 + 0.15²).
    assert float(left) == pytest.approx(0.35 * 0.003 / (1 + 0.15**2), abs=0.002)


def test_predicting_the_mean_explains_nothing(scene: Scene) -> None:
    x_nD = scene.x_nD
    assert float(fvu(x_nD, x_nD.mean(0).expand_as(x_nD))) == pytest.approx(1)
    assert float(fvu(x_nD, x_nD)) == 0
