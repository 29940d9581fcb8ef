"""Weights that tune themselves: what each of them tends to, and the frame potential that they weigh by default."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals.planted import Hierarchy
from tests.train.planted_windows import forward_of as forward_of_code
from tests.train.planted_windows import member, normalisation_of, rows_of, train
from train.codes import Code
from train.errors import TrainError
from train.member import Member
from train.penalties.grams import frame_potential
from train.penalties.ortho_adaptive import OrthoAdaptiveConfig
from train.penalties.weights import Weight

SOURCE = Hierarchy(d_model=16, parents=4, children=2, independents=8)
NORMALISATION = normalisation_of(SOURCE)
F = 48
ZERO = torch.zeros(())


def lambert(x: float) -> float:
    """W(x), by Newton's method: w eʷ = x."""
    w = math.log1p(x)
    for _ in range(50):
        w -= (w * math.exp(w) - x) / (math.exp(w) * (w + 1))
    return w


def weight(**settings: Any) -> Weight:
    config = OrthoAdaptiveConfig(**{"every": 1, **settings})
    return Weight(config, config.bound, torch.device("cpu"))


def settled(one: Weight, violation: float, steps: int = 4000) -> float:
    """λ once a term of constant value has worked on it for long."""
    for _ in range(steps):
        one.update(torch.tensor(violation), ZERO, 0)
    return float(one.at(0))


def start(name: str = "", steps: int = 12, **settings: Any) -> Member:
    penalties = {name: settings} if name else {}
    return member("batchtopk", penalties, NORMALISATION, d_sae=F, k=4, steps=steps, warmup=2, lr=3e-3)


@pytest.mark.parametrize("violation", [0.1, 1.0, 10.0])
def test_the_literal_weight_falls_where_the_violation_grows(violation: float) -> None:
    expected = 0.2 / violation * lambert(violation / 0.2)
    assert settled(weight(mode="literal", rate=3e-3), violation) == pytest.approx(expected, rel=0.02)


def test_the_literal_weight_all_but_vanishes_under_a_raw_sum_over_all_pairs() -> None:
    assert settled(weight(mode="literal", rate=3e-3), 2000.0) == pytest.approx(1e-3)


@pytest.mark.parametrize("violation", [0.01, 0.1])
def test_the_uncertainty_weight_is_its_pull_over_the_violation(violation: float) -> None:
    one = weight(mode="uncertainty", rate=3e-3, pull=0.01)
    assert settled(one, violation) == pytest.approx(0.01 / violation, rel=0.02)


@pytest.mark.parametrize("first", [0.1, 1.0, 10.0])
def test_the_dual_holds_a_term_at_its_bound_from_any_start(first: float) -> None:
    # The least of (O − 0.5)² + λ O over O is 0.5 − λ/2, so O = 0.2 needs λ = 0.6.
    one = weight(bound=0.2, mode="dual", first=first, rate=0.05)
    for _ in range(2000):
        one.update(torch.tensor(max(0.0, 0.5 - float(one.at(0)) / 2)), ZERO, 0)
    assert float(one.at(0)) == pytest.approx(0.6, rel=0.02)


def test_geco_takes_pressure_off_while_reconstruction_suffers_and_puts_it_on_again() -> None:
    one = weight(bound=0.1, mode="geco")
    for _ in range(50):
        one.update(ZERO, torch.tensor(0.2), 0)
    low = float(one.at(0))
    assert low < 1
    for _ in range(200):
        one.update(ZERO, torch.tensor(0.05), 0)
    assert float(one.at(0)) > low


def test_schedules_run_from_first_to_last_and_stay_there() -> None:
    settings = {"first": 0.1, "last": 10.0, "schedule_steps": 100}
    linear, logarithmic = weight(mode="linear", **settings), weight(mode="log_linear", **settings)
    for one in (linear, logarithmic):
        assert [float(one.at(step)) for step in (0, 100, 500)] == pytest.approx([0.1, 10.0, 10.0])
    assert float(linear.at(50)) == pytest.approx(5.05)
    assert float(logarithmic.at(50)) == pytest.approx(1.0)
    assert weight(mode="fixed", first=7.0).at(3) == 1.0


def test_a_term_used_every_fifth_step_moves_its_weight_as_fast_as_one_used_always() -> None:
    always, seldom = (weight(bound=0.1, mode="dual", every=every) for every in (1, 5))
    for step in range(100):
        always.update(torch.tensor(1.0), ZERO, 0)
        if step % 5 == 0:
            seldom.update(torch.tensor(1.0), ZERO, 0)
    assert float(seldom.at(0)) == pytest.approx(float(always.at(0)), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "clever"}, "mode must be one of dual, fixed"),
        ({"mode": "geco"}, "mode=geco needs bound"),
        ({"first": 0.0}, "first must be positive"),
        ({"term": "cosine"}, "term must be one of frame"),
        ({"term": "ortho_active"}, "needs bound"),
    ],
)
def test_what_no_weight_can_do_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        OrthoAdaptiveConfig(**settings)


@pytest.mark.parametrize("mode", ["dual", "fixed", "linear", "literal", "uncertainty", "geco"])
def test_a_coefficient_of_zero_changes_no_bit(mode: str) -> None:
    bound = {"bound": 0.1} if mode == "geco" else {}
    with_term = train(start("ortho_adaptive", mode=mode, coeff=0.0, every=1, **bound), SOURCE, rows=64)
    plain = train(start(), SOURCE, rows=64)
    assert with_term.penalties["ortho_adaptive"].weight(5) == 0.0
    assert isinstance(with_term.penalties["ortho_adaptive"].weight(5), float)
    for key, value in plain.sae.state_dict().items():
        assert torch.equal(with_term.sae.state_dict()[key], value), key


def test_the_weight_enters_the_loss_as_a_constant() -> None:
    one = train(start("ortho_adaptive", every=1), SOURCE, rows=64, steps=3)
    found = one.penalties["ortho_adaptive"].weight(3)
    assert isinstance(found, Tensor)
    assert not found.requires_grad
    assert one.penalties["ortho_adaptive"].metrics()["lambda"].float() == found


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "literal"}, {"mode": "geco", "bound": 0.3}, {"term": "ortsae", "mode": "fixed"}]
)
def test_a_saved_state_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    whole = train(start("ortho_adaptive", every=1, **settings), SOURCE, rows=64, steps=11)
    half = train(start("ortho_adaptive", every=1, **settings), SOURCE, rows=64, steps=7)
    resumed = start("ortho_adaptive", every=1, **settings)
    resumed.sae.load_state_dict(half.sae.state_dict())
    resumed.optimiser.load_state(half.optimiser.state())
    resumed.draws["ortho_adaptive"].set_state(half.draws["ortho_adaptive"].get_state())
    resumed.silence.rows_F, resumed.steps_done = half.silence.rows_F.clone(), 7
    resumed.penalties["ortho_adaptive"].load_state(
        {key: value.clone() for key, value in half.penalties["ortho_adaptive"].state().items()}
    )
    train(resumed, SOURCE, rows=64, steps=4)
    for key, value in whole.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[key], value), key
    for key, value in whole.penalties["ortho_adaptive"].state().items():
        assert torch.equal(resumed.penalties["ortho_adaptive"].state()[key], value), key


@pytest.mark.parametrize("first", [0.1, 10.0])
def test_the_dual_brings_a_dictionary_that_resists_to_its_bound_from_weights_far_apart(first: float) -> None:
    wanted_FD = normalize(torch.randn(48, 16, generator=torch.Generator().manual_seed(0)) + 0.4, dim=1)
    w_FD = wanted_FD.clone().requires_grad_()
    one = weight(mode="dual", bound=0.3, first=first, rate=0.02)
    optimiser = torch.optim.SGD([w_FD], lr=0.1)
    assert float(frame_potential(wanted_FD)) > 0.6
    for _ in range(800):
        violation = frame_potential(w_FD)
        optimiser.zero_grad()
        ((w_FD - wanted_FD).square().sum() + one.at(0) * 10 * violation).backward()
        optimiser.step()
        one.update(violation, ZERO, 0)
    assert float(frame_potential(w_FD.detach())) == pytest.approx(0.3, rel=0.05)


def test_random_rows_have_a_frame_potential_of_about_d_over_f() -> None:
    w_FD = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    assert float(frame_potential(w_FD)) == pytest.approx(40 / 2000, rel=0.1)


def test_the_frame_potential_cannot_see_that_every_latent_has_three_duplicates() -> None:
    basis_DD = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    repeated_FD = basis_DD.repeat(4, 1)
    cosine_FF = repeated_FD @ repeated_FD.T - 2 * torch.eye(64)
    assert float(cosine_FF.amax(1).min()) == pytest.approx(1)
    assert float(frame_potential(repeated_FD)) == pytest.approx(0, abs=1e-5)
    tight_FD = repeated_FD.clone().requires_grad_()
    frame_potential(tight_FD).backward()
    assert tight_FD.grad is not None
    assert float(tight_FD.grad.abs().max()) < 1e-6


def test_the_gradient_of_the_frame_potential_is_that_of_all_pairs_of_cosines() -> None:
    w_FD = torch.randn(24, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    (found_FD,) = torch.autograd.grad(frame_potential(w_FD), w_FD)
    unit_FD = normalize(w_FD, dim=1)
    plain = 6 / 24**2 * (unit_FD @ unit_FD.T).square().sum() - 1
    (expected_FD,) = torch.autograd.grad(plain, w_FD)
    torch.testing.assert_close(found_FD, expected_FD, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(frame_potential(w_FD), plain, rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_decoder_alone() -> None:
    one = train(start("ortho_adaptive"), SOURCE, rows=64, steps=2)
    code = Code(F, dense_BF=torch.rand(8, F))
    forward = forward_of_code(one.sae, code)
    one.penalties["ortho_adaptive"].value(one.sae, forward, rows_of(forward.x_BD[:, None])).backward()
    reached = {name for name, tensor in one.sae.named_parameters() if tensor.grad is not None}
    assert reached == {"W_dec"}


@pytest.mark.parametrize("mode", ["fixed", "linear", "log_linear"])
def test_looking_at_a_scheduled_weight_changes_nothing_and_a_step_keeps_it_for_the_log(mode: str) -> None:
    one = weight(mode=mode, first=2.0, last=8.0, schedule_steps=10)
    before = {name: tensor.clone() for name, tensor in one.tensors.items()}
    expected = one.at(5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.tensors.items())
    one.update(ZERO, ZERO, 5)
    assert float(one.tensors["value"]) == pytest.approx(expected)


def test_the_term_that_is_held_does_its_part_at_every_use() -> None:
    one = start("ortho_adaptive", every=1, term="ortsae", bound=0.05)
    orders = []
    for _ in range(4):
        train(one, SOURCE, rows=64, steps=1)
        orders.append(tuple(one.penalties["ortho_adaptive"].state()["term.order_F"].tolist()))
    assert len(set(orders)) == 4
