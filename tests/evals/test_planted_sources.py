"""Planted sources: what they promise about rates, directions, time and domains holds in what they sample."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evals.planted import Dictionary, Domains, Hierarchy, Planted, Temporal

SOURCES = (
    Dictionary(),
    Hierarchy(),
    Hierarchy(child_cosine=0.3),
    Temporal.aligned(),
    Temporal.decorrelated(),
    Domains(),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off_diagonal(cosines_PP: Tensor) -> Tensor:
    return cosines_PP - 2 * torch.eye(len(cosines_PP))


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_features_fire_at_their_stated_rates(source: Planted) -> None:
    latents_nTP = source.sequences(3000, 4, seeded()).latents
    rate_P = (latents_nTP > 0).float().mean((0, 1))
    # Topics persist within a document and domains hold for all of it: only the documents are independent.
    deviation_P = (source.firing_rates * (1 - source.firing_rates) / 3000).sqrt()
    assert (rate_P - source.firing_rates).abs().max() < 5 * deviation_P.max()
    assert float((latents_nTP > 0).sum(-1).float().mean()) == pytest.approx(source.l0, rel=0.03)


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_a_sample_is_the_sum_of_its_true_features_and_the_stated_noise(source: Planted) -> None:
    sample = source.sequences(200, 5, seeded())
    noise_nTD = sample.x - sample.latents @ source.directions
    assert float(noise_nTD.std()) == pytest.approx(source.noise, rel=0.02)
    assert abs(float(noise_nTD.mean())) < 5 * source.noise / noise_nTD.numel() ** 0.5


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_equal_seeds_give_equal_bits_and_others_do_not(source: Planted) -> None:
    again = dataclasses.replace(source)
    assert torch.equal(source.directions, again.directions)
    assert torch.equal(source.sample(9, seeded(1)).x, again.sample(9, seeded(1)).x)
    assert not torch.equal(source.sample(9, seeded(1)).x, source.sample(9, seeded(2)).x)
    assert not torch.equal(source.directions, dataclasses.replace(source, seed=source.seed + 1).directions)


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_magnitudes_have_their_stated_mean_and_spread(source: Planted) -> None:
    latents_nP = source.sequences(4000, 4, seeded()).latents.flatten(0, 1)
    relative_nP = latents_nP / source.magnitudes
    on = relative_nP[latents_nP > 0]
    assert float(on.mean()) == pytest.approx(1, abs=0.01)
    assert float(on.std()) == pytest.approx(source.spread, rel=0.05)


def test_directions_beyond_the_dimension_are_near_orthogonal_unit_rows() -> None:
    """Variants' G1: the mean largest cosine of the 112 true directions in 64 dimensions is 0.10."""
    directions_PD = Hierarchy().directions
    torch.testing.assert_close(directions_PD.norm(dim=1), torch.ones(112))
    assert float(off_diagonal(directions_PD @ directions_PD.T).max(dim=1).values.mean()) == pytest.approx(
        0.10, abs=0.01
    )


def test_directions_that_fit_the_dimension_are_orthonormal() -> None:
    directions_PD = Dictionary(d_model=50).directions
    torch.testing.assert_close(directions_PD @ directions_PD.T, torch.eye(48), atol=1e-5, rtol=0)


def test_a_dictionary_has_exactly_its_number_of_features_on() -> None:
    latents_nP = Dictionary(active=5).sample(500, seeded()).latents
    assert ((latents_nP > 0).sum(-1) == 5).all()


def test_children_come_one_at_a_time_and_never_without_their_parent() -> None:
    source = Hierarchy()
    latents_nP = source.sample(5000, seeded()).latents
    children_npC = latents_nP[:, source.family.children] > 0
    parents_np = latents_nP[:, source.family.parents] > 0
    assert (children_npC.sum(-1) <= parents_np).all()
    with_child = children_npC.any(-1)[parents_np].float().mean()
    assert float(with_child) == pytest.approx(source.p_child, abs=0.02)


def test_tilted_children_have_their_cosine_with_their_own_parent() -> None:
    source = Hierarchy(child_cosine=0.3)
    parents_p, children_pC = source.family
    cosines_pC = (source.directions[children_pC] * source.directions[parents_p][:, None]).sum(-1)
    torch.testing.assert_close(cosines_pC, torch.full((16, 4), 0.3), atol=1e-5, rtol=0)
    torch.testing.assert_close(source.directions.norm(dim=1), torch.ones(112))


@pytest.mark.parametrize("persistence", [0.95, 0.5, 0.0])
@pytest.mark.parametrize("regime", [Temporal.aligned, Temporal.decorrelated])
def test_topics_remember_as_persistence_to_the_lag(regime: Callable[..., Temporal], persistence: float) -> None:
    """P(on at t + lag | on at t) = p + (1 - p) ρ^lag."""
    source = regime(persistence=persistence)
    on_nTp = source.sequences(4000, 8, seeded()).latents[..., source.slow] > 0
    for lag in (1, 4):
        stayed = on_nTp[:, lag:][on_nTp[:, :-lag]].float().mean()
        expected = source.p_topic + (1 - source.p_topic) * persistence**lag
        assert float(stayed) == pytest.approx(expected, abs=0.03)


def test_fast_features_and_words_of_a_topic_do_not_remember() -> None:
    """A word is correlated in time through its topic alone: given the topic at both positions, not at all."""
    source = Temporal.aligned()
    latents_nTP = source.sequences(3000, 8, seeded()).latents
    fast_nTf = (latents_nTP[..., 112:] > 0).float() - source.p_fast
    assert abs(float((fast_nTf[:, 1:] * fast_nTf[:, :-1]).mean())) < 0.02 * source.p_fast
    word_nTp = (latents_nTP[..., source.family.children[:, 0]] > 0).float()
    topic_nTp = latents_nTP[..., source.slow] > 0
    both_ntp = topic_nTp[:, 1:] & topic_nTp[:, :-1]
    share = source.p_word / source.words
    covariance = ((word_nTp - share)[:, 1:] * (word_nTp - share)[:, :-1])[both_ntp].mean()
    assert abs(float(covariance)) < 0.03 * share


def test_the_regimes_differ_in_which_features_are_frequent() -> None:
    aligned, decorrelated = Temporal.aligned(), Temporal.decorrelated()
    assert aligned.p_topic > aligned.p_fast
    assert decorrelated.p_topic < decorrelated.p_fast


def test_slow_features_are_the_quiet_ones() -> None:
    """Variants' G3: topics have magnitude 1, words and fast features 1.5."""
    latents_nTP = Temporal.aligned(spread=0.0).sample(200, seeded()).latents
    assert set(latents_nTP[..., :16].unique().tolist()) == {0, 1}
    assert set(latents_nTP[..., 16:].unique().tolist()) == {0, 1.5}


def test_windows_have_the_length_asked_for() -> None:
    sample = Temporal(window=5).sample(7, seeded())
    assert sample.x.shape == (7, 5, 64)
    assert sample.latents.shape == (7, 5, 160)


def test_forget_and_retain_features_lie_pairwise_at_their_cosine() -> None:
    source = Domains()
    forget, retain = source.directions[source.forget_features], source.directions[source.retain_features]
    torch.testing.assert_close((forget * retain).sum(1), torch.full((32,), 0.35), atol=1e-5, rtol=0)


def test_features_fire_in_their_own_domain() -> None:
    source = Domains()
    sample = source.sample(20_000, seeded())
    assert sample.domain is not None
    for domain in (0, 1):
        rate_P = (sample.latents[sample.domain == domain] > 0).float().mean(0)
        assert float((rate_P - source.domain_rates[domain]).abs().max()) < 0.012
    assert float((sample.domain == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hierarchy(p_parent=1.2), "p_parent"),
        (lambda: Hierarchy(child_cosine=1.0), "child_cosine"),
        (lambda: Hierarchy(children=0), "children"),
        (lambda: Temporal(persistence=-0.1), "persistence"),
        (lambda: Temporal(window=0), "window"),
        (lambda: Domains(paired_cosine=-1.0), "paired_cosine"),
        (lambda: Domains(retain=0), "retain"),
        (lambda: Dictionary(active=49), "active"),
        (lambda: Dictionary(noise=-1.0), "noise"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(make: Callable[[], Planted], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
