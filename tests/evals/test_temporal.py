"""Analyses of codes in time: latents whose memory is known, and orders that have none."""

import math

import pytest
import torch
from torch import Tensor

from evals.planted import Temporal
from evals.temporal import MIN_ACTIVATIONS, AutoCorrelation, PositionProfile, Smoothness, shuffled

LAGS = (1, 2, 5, 10, 20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def documents(n: int, context: int, parts: int = 1) -> Tensor:
    """Every sequence in `parts` equal documents."""
    return torch.arange(n)[:, None] * parts + torch.arange(context) * parts // context


def correlated(
    codes_nTF: Tensor, document_nT: Tensor, lags: tuple[int, ...] = LAGS, batch: int = 50
) -> AutoCorrelation:
    found = AutoCorrelation(codes_nTF.shape[-1], lags=lags)
    for codes, document in zip(codes_nTF.split(batch), document_nT.split(batch), strict=True):
        found.add(codes, document)
    return found


def markov_topics(persistence: float, n: int = 600, context: int = 64) -> Tensor:
    source = Temporal(persistence=persistence, topics=8, words=1, fast=0, d_model=24)
    return source.sequences(n, context, seeded()).latents[..., source.slow]


@pytest.mark.parametrize("persistence", [0.95, 0.6, 0.0])
def test_a_markov_latent_has_its_persistence_to_the_lag(persistence: float) -> None:
    """Magnitudes are drawn anew at every position: ρ = persistence^τ · Var(on) E[m]² / Var(on · m)."""
    source_p, spread = 0.1, 0.15
    shared = source_p * (1 - source_p) / (source_p * (1 + spread**2) - source_p**2)
    found = correlated(markov_topics(persistence), documents(600, 64)).result()
    expected_L = torch.tensor([shared * persistence**lag for lag in LAGS], dtype=torch.float64)
    torch.testing.assert_close(found.rho_LF.mean(1), expected_L, atol=0.03, rtol=0)
    torch.testing.assert_close(
        found.on_excess_F.mean(), torch.tensor(persistence * (1 - source_p), dtype=torch.float64), atol=0.02, rtol=0
    )


def test_an_autoregressive_code_has_its_coefficient_to_the_lag() -> None:
    a, state_nF, steps = 0.8, torch.randn(400, 3, generator=seeded()), []
    for _ in range(50):
        state_nF = a * state_nF + math.sqrt(1 - a * a) * torch.randn(400, 3, generator=seeded(len(steps) + 1))
        steps.append(state_nF)
    found = correlated(torch.stack(steps, dim=1) + 10, documents(400, 50)).result()
    expected_L = torch.tensor([a**lag for lag in LAGS], dtype=torch.float64)
    torch.testing.assert_close(found.rho_LF.mean(1), expected_L, atol=0.03, rtol=0)
    assert float(found.half_life_F.mean()) == pytest.approx(math.log(0.5) / math.log(a), rel=0.1)


def test_batches_make_no_difference() -> None:
    codes_nTF, document_nT = markov_topics(0.9, n=40), documents(40, 64, 2)
    whole, single = (correlated(codes_nTF, document_nT, batch=size).result() for size in (40, 1))
    torch.testing.assert_close(whole.rho_LF, single.rho_LF, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(whole.on_excess_F, single.on_excess_F)


def test_correlation_is_the_plain_formula_over_pairs_within_documents() -> None:
    codes_nTF = torch.rand(5, 12, 2, generator=seeded())
    document_nT = documents(5, 12, 3)
    document_nT[:, [0, 5, 6]] = -1
    found = correlated(codes_nTF, document_nT, lags=(1, 3, 4)).result()
    rows_RF = codes_nTF[document_nT >= 0].double()
    for i, lag in enumerate((1, 3)):
        products = [
            (codes_nTF[n, t].double() - rows_RF.mean(0)) * (codes_nTF[n, t + lag].double() - rows_RF.mean(0))
            for n in range(5)
            for t in range(12 - lag)
            if document_nT[n, t] == document_nT[n, t + lag] >= 0
        ]
        expected_F = torch.stack(products).mean(0) / rows_RF.var(0, correction=0)
        torch.testing.assert_close(found.rho_LF[i], expected_F, rtol=1e-5, atol=1e-6)
    assert found.rho_LF[2].isnan().all()  # documents of 4 positions have no pairs 4 apart


def test_memory_does_not_reach_over_the_end_of_a_document() -> None:
    """Latents constant within documents of 4: perfect memory up to lag 3, and no pair beyond."""
    document_nT = documents(200, 16, 4)
    on_nTF = torch.rand(800, 2, generator=seeded()).round()[document_nT]
    found = correlated(on_nTF, document_nT, lags=(1, 3, 4, 8)).result()
    torch.testing.assert_close(found.rho_LF[:2], torch.ones(2, 2, dtype=torch.float64))
    assert found.rho_LF[2:].isnan().all()
    assert found.half_life_F.isinf().all()
    torch.testing.assert_close(found.on_excess_F, 1 - found.rate_F)


def test_shuffled_rows_remember_nothing() -> None:
    codes_nTF, document_nT = markov_topics(0.95), documents(600, 64)
    found = correlated(shuffled(codes_nTF, document_nT, seeded()), document_nT).result()
    assert float(found.rho_LF.abs().max()) < 0.03
    assert float(found.on_excess_F.abs().max()) < 0.03
    assert found.half_life_F.mean() == pytest.approx(0.5, abs=0.02)


def test_shuffling_within_documents_leaves_what_whole_documents_differ_by() -> None:
    document_nT = documents(300, 16, 2)
    whole_nTF = torch.rand(600, 1, generator=seeded()).round()[document_nT]
    parity_nTF = (torch.arange(16) % 2).float().expand(300, 16)[..., None]
    codes_nTF = torch.cat([whole_nTF, parity_nTF], dim=-1)
    mixed_nTF = shuffled(codes_nTF, document_nT, seeded(), within_documents=True)
    assert torch.equal(mixed_nTF[..., 0], codes_nTF[..., 0])
    before, after = (correlated(x, document_nT, lags=(1,)).result().rho_LF[0] for x in (codes_nTF, mixed_nTF))
    torch.testing.assert_close(before, torch.tensor([1.0, -1.0], dtype=torch.float64))
    # Of 8 positions drawn without replacement, half of them on, two correlate by -1/7.
    torch.testing.assert_close(after, torch.tensor([1.0, -1 / 7], dtype=torch.float64), atol=0.05, rtol=0)


@pytest.mark.parametrize("within_documents", [False, True])
def test_shuffling_keeps_every_row_and_leaves_padding_alone(within_documents: bool) -> None:
    codes_nTF = torch.arange(6 * 10 * 2).float().reshape(6, 10, 2)
    document_nT = documents(6, 10, 2)
    document_nT[::2, 7:] = -1
    mixed_nTF = shuffled(codes_nTF, document_nT, seeded(), within_documents=within_documents)
    padding = document_nT < 0
    assert torch.equal(mixed_nTF[padding], codes_nTF[padding])
    assert sorted(mixed_nTF[~padding].tolist()) == sorted(codes_nTF[~padding].tolist())
    assert not torch.equal(mixed_nTF, codes_nTF)
    moved_out = document_nT.flatten()[mixed_nTF[..., 0].flatten().long() // 2].reshape(6, 10) != document_nT
    assert bool(moved_out.any()) is not within_documents


def test_latents_that_hardly_fire_are_not_judged() -> None:
    codes_nTF = torch.zeros(10, 20, 2)
    codes_nTF.view(-1, 2)[: MIN_ACTIVATIONS - 1, 0] = 1
    codes_nTF.view(-1, 2)[:MIN_ACTIVATIONS, 1] = 1
    found = correlated(codes_nTF, documents(10, 20)).result()
    assert found.rho_LF[0].isnan().tolist() == [True, False]
    assert found.half_life_F.isnan().tolist() == [True, False]
    assert found.summary()["share_above_half"] in (0, 1)


def test_the_summary_weighs_latents_by_how_often_they_fire() -> None:
    """Latent 0 is on in 4 of 5 documents and never changes; latent 1 alternates and is on in half the positions."""
    document_nT = documents(100, 10)
    steady_nT = (torch.arange(100) % 5 > 0).float()[:, None].expand(100, 10)
    alternating_nT = (torch.arange(10) % 2).float().expand(100, 10)
    summary = correlated(torch.stack([steady_nT, alternating_nT], dim=-1), document_nT, lags=(1,)).result().summary()
    assert summary["weighted_mean"] == pytest.approx((0.8 * 1 - 0.5 * 1) / 1.3, abs=1e-6)
    assert summary["share_above_half"] == 0.5


@pytest.mark.parametrize("lags", [(), (0, 1), (2, 1), (1, 1)])
def test_impossible_lags_are_refused(lags: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lags"):
        AutoCorrelation(3, lags=lags)


def test_nothing_added_is_nothing_to_correlate() -> None:
    with pytest.raises(ValueError, match="nothing to correlate"):
        AutoCorrelation(3).result()


def profiled(codes_nTF: Tensor, document_nT: Tensor) -> PositionProfile:
    profile = PositionProfile(codes_nTF.shape[1], codes_nTF.shape[2])
    for codes, document in zip(codes_nTF.split(30), document_nT.split(30), strict=True):
        profile.add(codes, document)
    return profile


def test_eta_squared_is_one_for_a_clock_and_chance_for_a_coin() -> None:
    clock_nT = torch.arange(20).float().expand(200, 20)
    coin_nT = torch.rand(200, 20, generator=seeded())
    half_nT = (torch.arange(20) < 10) + torch.randn(
        200, 20, generator=seeded(1)
    ) / 2  # half of its variance by position
    eta_F = profiled(torch.stack([clock_nT, coin_nT, half_nT], dim=-1), documents(200, 20)).eta_squared()
    assert float(eta_F[0]) == pytest.approx(1)
    assert float(eta_F[1]) == pytest.approx(19 / 3999, rel=0.8)
    assert float(eta_F[2]) == pytest.approx(0.5, abs=0.03)


def test_padding_tells_nothing_about_positions() -> None:
    codes_nTF = torch.rand(300, 10, 3, generator=seeded())
    document_nT = documents(300, 10)
    document_nT[:150, 5:] = -1
    codes_nTF[:150, 5:] = 100
    profile = profiled(codes_nTF, document_nT)
    assert float(profile.eta_squared().max()) < 0.02
    torch.testing.assert_close(profile.correlation().diagonal(), torch.ones(10, dtype=torch.float64))


def test_positions_correlate_as_their_codes_do() -> None:
    """Codes that alternate between two orthogonal patterns: cosine 1 at even distances, 0 at odd ones."""
    codes_nTF = torch.eye(2)[torch.arange(6) % 2].expand(40, 6, 2)
    correlation_TT = profiled(codes_nTF, documents(40, 6)).correlation()
    expected_TT = 1 - (torch.arange(6)[:, None] + torch.arange(6)) % 2
    torch.testing.assert_close(correlation_TT, expected_TT.double())


def test_positions_of_different_documents_are_not_compared() -> None:
    correlation_TT = profiled(torch.ones(40, 6, 2), documents(40, 6, 2)).correlation()
    same_TT = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)) > 0
    assert torch.equal(correlation_TT.isnan(), ~same_TT)
    torch.testing.assert_close(correlation_TT[same_TT], torch.ones(18, dtype=torch.float64))


def test_smoothness_is_the_steepest_slope_of_active_latents() -> None:
    """x moves by 2 a step. Latent 0 jumps by 3 once, latent 1 by 1 at every step, latent 2 never fires."""
    x_1TD = torch.arange(4).float()[None, :, None] * 2
    codes_1TF = torch.tensor([[[1.0, 1, 0], [1, 2, 0], [4, 3, 0], [4, 4, 0]]])
    smoothness = Smoothness()
    smoothness.add(codes_1TF, x_1TD, documents(1, 4))
    assert smoothness.result() == pytest.approx({"smoothness": (3 / 2 + 1 / 2) / 2, "latents_on": 2})
    silent = torch.zeros_like(codes_1TF)
    smoothness.add(silent, x_1TD, documents(1, 4))
    assert smoothness.result()["latents_on"] == 2
    split = Smoothness()
    split.add(codes_1TF, x_1TD, documents(1, 4, 2))  # the jump of latent 0 now lies between documents
    assert split.result()["smoothness"] == pytest.approx((0 + 1 / 2) / 2)


def test_dead_latents_are_not_called_smooth() -> None:
    smoothness = Smoothness()
    smoothness.add(torch.zeros(2, 4, 3), torch.rand(2, 4, 5, generator=seeded()), documents(2, 4))
    with pytest.raises(ValueError, match="dead"):
        smoothness.result()


def test_a_repeated_activation_has_no_slope() -> None:
    smoothness = Smoothness()
    smoothness.add(torch.ones(1, 3, 2), torch.ones(1, 3, 4), documents(1, 3))
    assert smoothness.result()["smoothness"] == 0
