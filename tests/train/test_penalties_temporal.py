"""What `temporal`, `temporal_variance` and `tsae` do to codes in time, and what they leave alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from evals.planted import Temporal
from tests.train.planted_windows import drawn, forward_of, member, normalisation_of, penalty, rows_of, train
from train.codes import Code, Entries
from train.member import Member
from train.penalties.contrast import (
    dense_similarities,
    info_nce,
    kinship,
    pairs_at,
    similarities,
    sparse_similarities,
)
from train.penalties.slow import SlowSet, moments
from train.sae import SAE, Forward

SOURCE = Temporal(d_model=16, topics=3, words=2, fast=6)
NORMALISATION = normalisation_of(SOURCE)
D, F, W, N = 16, 40, 4, 24
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "temporal": ("batchtopk", "temporal", {"start": 4, "refresh": 3, "coeff": 0.3}),
    "temporal, topk": ("topk", "temporal", {"start": 4, "refresh": 3, "coeff": 0.3}),
    "temporal, relu": ("relu", "temporal", {"start": 4, "refresh": 3, "coeff": 0.3}),
    "temporal, random lag": ("batchtopk", "temporal", {"lag": 0, "slow": "prefix", "start": 0, "coeff": 0.3}),
    "temporal_variance": ("matryoshka", "temporal_variance", {}),
    "temporal_variance, literal": ("batchtopk", "temporal_variance", {"variance": "literal"}),
    "tsae": ("matryoshka", "tsae", {}),
    "tsae, code": ("matryoshka", "tsae", {"source": "code"}),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def start(architecture: str, name: str = "", **settings: Any) -> Member:
    own = {} if architecture == "relu" else {"k": 4}
    penalties = {name: settings} if name else {}
    return member(architecture, penalties, NORMALISATION, d_sae=F, steps=12, warmup=2, lr=3e-3, **own)


def sae_of(architecture: str = "batchtopk", steps: int = 8) -> SAE:
    return train(start(architecture), SOURCE, window=W, rows=N * W, steps=steps).sae


def one_pass(sae: SAE, seed: int = 3) -> tuple[Forward, Any]:
    batch = drawn(SOURCE, NORMALISATION, window=W, rows=N * W, seed=seed)
    return forward_of(sae, sae.encode(batch.x_BD), batch.x_BD), batch


def dense_code(z_nWF: Tensor) -> Code:
    return Code(z_nWF.shape[-1], dense_BF=z_nWF.flatten(0, 1))


def random_codes(n: int = N, d_sae: int = F, share: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z_nWF = torch.rand(n, W, d_sae, generator=generator)
    return z_nWF * (torch.rand(z_nWF.shape, generator=generator) < share)


@cases
def test_a_coefficient_of_zero_changes_no_bit(case: tuple[str, str, dict[str, Any]]) -> None:
    architecture, name, settings = case
    with_term = train(start(architecture, name, **settings | {"coeff": 0.0}), SOURCE, window=W, rows=N * W)
    plain = train(start(architecture), SOURCE, window=W, rows=N * W)
    for key, value in plain.sae.state_dict().items():
        assert torch.equal(with_term.sae.state_dict()[key], value), key


@cases
def test_the_term_changes_the_training_unless_it_is_the_literal_one(case: tuple[str, str, dict[str, Any]]) -> None:
    architecture, name, settings = case
    with_term = train(start(architecture, name, **settings), SOURCE, window=W, rows=N * W)
    plain = train(start(architecture), SOURCE, window=W, rows=N * W)
    same = all(torch.equal(with_term.sae.state_dict()[key], value) for key, value in plain.sae.state_dict().items())
    assert same == (settings.get("variance") == "literal")


@cases
def test_value_is_a_pure_function(case: tuple[str, str, dict[str, Any]]) -> None:
    architecture, name, settings = case
    one = train(start(architecture, name, **settings), SOURCE, window=W, rows=N * W, steps=6)
    term = one.penalties[name]
    before = {key: value.clone() for key, value in term.state().items()}
    drawn_before = term.generator.get_state().clone()
    forward, batch = one_pass(one.sae)
    first, second = (term.value(one.sae, forward, batch).detach() for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(term.generator.get_state(), drawn_before)
    for key, value in term.state().items():
        assert torch.equal(value, before[key]), key


@cases
def test_a_saved_state_goes_on_bit_for_bit(case: tuple[str, str, dict[str, Any]]) -> None:
    architecture, name, settings = case
    whole = train(start(architecture, name, **settings), SOURCE, window=W, rows=N * W, steps=11)
    half = train(start(architecture, name, **settings), SOURCE, window=W, rows=N * W, steps=7)
    resumed = start(architecture, name, **settings)
    resumed.sae.load_state_dict(half.sae.state_dict())
    resumed.optimiser.load_state(half.optimiser.state())
    resumed.penalties[name].generator.set_state(half.penalties[name].generator.get_state())
    resumed.silence.rows_F, resumed.steps_done = half.silence.rows_F.clone(), 7
    resumed.penalties[name].load_state({key: value.clone() for key, value in half.penalties[name].state().items()})
    train(resumed, SOURCE, window=W, rows=N * W, steps=4)
    for key, value in whole.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[key], value), key
    for key, value in whole.penalties[name].metrics().items():
        assert torch.equal(resumed.penalties[name].metrics()[key], value), key


@pytest.mark.parametrize("name", ["temporal", "temporal_variance", "tsae"])
def test_gradients_reach_the_encoder_and_never_the_decoder(name: str) -> None:
    sae = sae_of("matryoshka")
    forward, batch = one_pass(sae)
    settings = {"slow": "prefix"} if name == "temporal" else {}
    penalty(name, sae, share=0.5, **settings).value(sae, forward, batch).backward()
    assert sae.W_dec.grad is None
    assert sae.W_enc.grad is not None
    assert sae.b_enc.grad is not None
    moved_F = sae.b_enc.grad != 0
    assert moved_F.any()
    assert not moved_F[F // 2 :].any()
    assert not (moved_F & (forward.code.fired() == 0)).any()


def slow_of(sae: SAE, share: float = 1.0) -> SlowSet:
    return SlowSet(sae, auto=False, share=share, refresh=1, start=0)


def test_the_contrast_is_the_symmetric_cross_entropy_of_neighbours() -> None:
    q_nWh = random_codes()
    none_nn, pairs = torch.zeros(N, N, dtype=torch.bool), pairs_at(1, W, 0.0)
    similarity_pnn = similarities(slow_of(sae_of()), dense_code(q_nWh), pairs, window=W, cosine=True)
    found = info_nce(similarity_pnn, 0.1, none_nn)
    unit_nWh, label_n = normalize(q_nWh, dim=2), torch.arange(N)
    losses = []
    for t in range(1, W):
        logits_nn = unit_nWh[:, t] @ unit_nWh[:, t - 1].T / 0.1
        losses += [cross_entropy(logits_nn, label_n), cross_entropy(logits_nn.T, label_n)]
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("lag", [1, 2, 0])
def test_sparse_and_dense_similarities_agree_in_value_and_gradient(lag: int, cosine: bool) -> None:
    slow, pairs = slow_of(sae_of(), share=0.3), pairs_at(lag, W, 0.6)
    z_BF = random_codes().flatten(0, 1).requires_grad_()
    z_BF.data[5] = 0  # a row without any entry
    weight_pnn = torch.randn(len(pairs), N, N, generator=torch.Generator().manual_seed(0))
    results = []
    for form in (sparse_similarities, dense_similarities):
        found_pnn = form(slow, Code(F, dense_BF=z_BF), pairs, window=W, cosine=cosine)
        results.append((found_pnn, torch.autograd.grad((found_pnn * weight_pnn).sum(), z_BF)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert results[0][1].any()


def test_entries_that_a_top_k_kept_at_zero_spoil_no_gradient() -> None:
    values_n = torch.tensor([0.0, 1.0, 2.0, 0.0], requires_grad=True)
    entries = Entries(values_n, torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 3, 4]))
    for form in (sparse_similarities, dense_similarities):
        found_pnn = form(slow_of(sae_of()), Code(F, entries=entries), [(1, 0)], window=2, cosine=True)
        (grad_n,) = torch.autograd.grad(found_pnn.sum(), values_n)
        assert grad_n.isfinite().all()


def test_windows_that_nothing_tells_apart_cost_the_log_of_their_number() -> None:
    sae = sae_of()
    batch = rows_of(drawn(SOURCE, NORMALISATION, window=1, rows=1, seed=1).x_BD.expand(N * W, -1).reshape(N, W, D))
    forward = forward_of(sae, sae.encode(batch.x_BD))
    value = penalty("temporal", sae, slow="prefix", share=1.0).value(sae, forward, batch).detach()
    assert float(value) == pytest.approx(math.log(N), abs=1e-4)


def test_windows_of_one_document_are_no_negatives_of_one_another() -> None:
    sae = sae_of()
    forward, batch = one_pass(sae)
    term = penalty("temporal", sae, slow="prefix", share=1.0)
    alone = rows_of(batch.x_BD.view(N, W, D), document_n=torch.zeros(N))
    assert float(term.value(sae, forward, alone).detach()) == pytest.approx(0, abs=1e-5)
    assert term.value(sae, forward, batch) > 1
    kin_nn = kinship(rows_of(batch.x_BD.view(N, W, D), document_n=torch.arange(N) // 2).batch, torch.device("cpu"))
    assert kin_nn.sum() == N
    assert not kin_nn.diagonal().any()


def test_descending_the_contrast_makes_neighbours_more_alike_than_strangers() -> None:
    sae = sae_of(steps=12)
    term = penalty("temporal", sae, slow="prefix", share=1.0)
    optimiser = torch.optim.SGD([sae.W_enc, sae.b_enc], lr=0.5)

    def contrast() -> float:
        forward, _ = one_pass(sae)
        q_nWF = normalize(forward.code.dense.detach().view(N, W, F), dim=2)
        near = (q_nWF[:, 1:] * q_nWF[:, :-1]).sum(2).mean()
        far = (q_nWF[1:] * q_nWF[:-1]).sum(2).mean()
        return float(near - far)

    before = contrast()
    for seed in range(20):
        optimiser.zero_grad()
        forward, batch = one_pass(sae, seed=10 + seed)
        term.value(sae, forward, batch).backward()
        optimiser.step()
    assert contrast() > 1.5 * before > 0


@pytest.mark.parametrize("lag", [1, 3])
def test_a_fixed_lag_pairs_each_position_with_the_one_that_far_before(lag: int) -> None:
    assert pairs_at(lag, 5, 0.9) == [(t, t - lag) for t in range(lag, 5)]


def test_a_random_lag_reaches_every_earlier_position_equally_often() -> None:
    seen: dict[tuple[int, int], int] = {}
    for step in range(600):
        for pair in pairs_at(0, 4, (step + 0.5) / 600):
            seen[pair] = seen.get(pair, 0) + 1
    assert seen == {(1, 0): 600, (2, 1): 300, (2, 0): 300, (3, 2): 200, (3, 1): 200, (3, 0): 200}


def test_moments_are_those_of_the_dense_codes_and_never_join_two_windows() -> None:
    z_nWF = random_codes(share=0.6)
    found_3F = moments(dense_code(z_nWF), W)
    mean_F, square_F = z_nWF.mean((0, 1)), z_nWF.square().mean((0, 1))
    product_F = (z_nWF[:, 1:] * z_nWF[:, :-1]).mean((0, 1))
    torch.testing.assert_close(found_3F, torch.stack([mean_F, square_F, product_F]))


def test_auto_chooses_the_latents_that_stay_on_wherever_they_stand() -> None:
    generator = torch.Generator().manual_seed(2)
    n, slow = 200, torch.tensor([7, 19, 31, 38])
    z_nWF = (torch.rand(n, W, F, generator=generator) < 0.3).float()
    stays_nW4 = torch.rand(n, W, 4, generator=generator) < 0.9
    z_nWF[..., slow] = torch.where(stays_nW4, z_nWF[:, :1, slow], z_nWF[..., slow])
    z_nWF[..., 11] = 0.0
    z_nWF[0, :, 11] = 1.0  # all through one window, and never again
    sae = sae_of(steps=1)
    chosen = SlowSet(sae, auto=True, share=0.1, refresh=10, start=6)
    for step in range(6):
        chosen.update(sae, dense_code(z_nWF), W, step)
    assert (chosen.slot_F < chosen.size).nonzero()[:, 0].tolist() == slow.tolist()
    assert chosen.codes(dense_code(z_nWF)).equal(z_nWF[..., slow].flatten(0, 1))


def test_a_window_that_never_changes_has_no_variance_and_one_that_does_has_its_own() -> None:
    sae = sae_of()
    term = penalty("temporal_variance", sae, share=1.0)
    batch = rows_of(torch.zeros(N, W, D))
    z_nWF = random_codes()
    still = forward_of(sae, dense_code(z_nWF[:, :1].expand(N, W, F).clone()))
    assert float(term.value(sae, still, batch)) == pytest.approx(0, abs=1e-5)
    moving = forward_of(sae, dense_code(z_nWF))
    expected = (z_nWF - z_nWF.mean(1, keepdim=True)).square().sum() / z_nWF.square().sum()
    torch.testing.assert_close(term.value(sae, moving, batch), expected)


def test_the_variance_within_windows_is_a_contrast_of_all_pairs_of_positions_without_negatives() -> None:
    one = start("batchtopk")
    term, z_nWF = penalty("temporal_variance", one.sae, share=1.0), random_codes()
    found = term.value(one.sae, forward_of(one.sae, dense_code(z_nWF)), rows_of(torch.zeros(N, W, D)))
    apart = (z_nWF[:, :, None] - z_nWF[:, None]).square().sum() / (2 * W)
    torch.testing.assert_close(found, apart / z_nWF.square().sum())


def test_the_alarm_goes_off_once_the_group_has_fallen_silent() -> None:
    sae = sae_of()
    term = penalty("temporal_variance", sae, share=0.5)
    batch, z_nWF = rows_of(torch.zeros(N, W, D)), random_codes()
    term.update(sae, forward_of(sae, dense_code(z_nWF)), batch, 0)
    assert term.metrics()["alarm"] == 0
    z_nWF[..., : F // 2] = 0
    term.update(sae, forward_of(sae, dense_code(z_nWF)), batch, 5)
    assert term.metrics()["slow_l0"] == 0
    assert term.metrics()["alarm"] == 1


def test_the_literal_form_has_a_value_and_no_gradient() -> None:
    one = train(start("batchtopk", "temporal_variance", variance="literal"), SOURCE, window=W, rows=N * W, steps=9)
    forward, batch = one_pass(one.sae)
    value = one.penalties["temporal_variance"].value(one.sae, forward, batch)
    assert forward.code.entries.values_n.requires_grad
    assert float(value) > 0
    assert not value.requires_grad


def test_only_the_released_code_s_contrast_depends_on_the_scale_of_the_codes() -> None:
    sae = sae_of("matryoshka")
    batch, z_nWF = rows_of(torch.zeros(N, W, D)), random_codes()
    small, large = forward_of(sae, dense_code(z_nWF)), forward_of(sae, dense_code(3 * z_nWF))
    paper, code = (penalty("tsae", sae, share=0.5, source=source) for source in ("paper", "code"))
    torch.testing.assert_close(paper.value(sae, small, batch), paper.value(sae, large, batch), rtol=1e-4, atol=1e-4)
    assert abs(float(code.value(sae, small, batch) - code.value(sae, large, batch))) > 0.01


def test_without_a_temperature_cosines_never_tell_windows_apart_by_more_than_one_nat() -> None:
    n = 64
    best_pnn, none_nn = torch.eye(n)[None], torch.zeros(n, n, dtype=torch.bool)
    values = [info_nce(best_pnn, temperature, none_nn) for temperature in (1.0, 0.1)]
    assert float(values[0]) > math.log(n) - 1
    assert float(values[1]) < 0.01
