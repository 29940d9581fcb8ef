"""`ortho_groups`: who belongs to a group, what the overlap of two groups is, and what the term moves."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals.planted import Domains
from tests.train.planted_windows import forward_of, member, normalisation_of, penalty, rows_of, train
from train.codes import Code
from train.errors import TrainError
from train.member import Member
from train.penalties import grams
from train.penalties.groups import condition, match
from train.penalties.ortho_groups import OrthoGroups, OrthoGroupsConfig
from train.penalties.pairs import cosine_sum
from train.penalties.ratios import co_activation, regroup

SOURCE = Domains(d_model=16, forget=6, retain=6, shared=4, p_home=0.25)
NORMALISATION = normalisation_of(SOURCE)
D, F, B = 16, 40, 128
FIRST, SECOND = torch.arange(5), torch.arange(5, 12)


def start(steps: int = 24, coeff: float = 0.3, **settings: Any) -> Member:
    settings = {"every": 1, "ramp": 0, "refresh": 5, "condition_every": 5, "coeff": coeff, **settings}
    penalties = {"ortho_groups": settings} if coeff >= 0 else {}
    return member("batchtopk", penalties, NORMALISATION, d_sae=F, k=4, steps=steps, warmup=2, lr=3e-3)


def plain(steps: int = 24) -> Member:
    return member("batchtopk", {}, NORMALISATION, d_sae=F, k=4, steps=steps, warmup=2, lr=3e-3)


def term_of(one: Member) -> OrthoGroups:
    found = one.penalties["ortho_groups"]
    assert isinstance(found, OrthoGroups)
    return found


def domain_codes(seed: int = 0) -> tuple[Code, Tensor]:
    """Latents 0–4 fire in domain 0, 5–11 in domain 1, the rest in both, all of them often."""
    generator = torch.Generator().manual_seed(seed)
    domain_B = torch.randint(0, 2, (B,), generator=generator)
    rate_BF = torch.full((B, F), 0.3)
    rate_BF[:, FIRST] = torch.where(domain_B == 0, 0.3, 0.01)[:, None]
    rate_BF[:, SECOND] = torch.where(domain_B == 1, 0.3, 0.01)[:, None]
    return Code(F, dense_BF=(torch.rand(B, F, generator=generator) < rate_BF).float()), domain_B


def grouped(one: Member, **settings: Any) -> OrthoGroups:
    """A penalty that has seen 20 batches of `domain_codes`, and chosen its groups."""
    found = penalty("ortho_groups", one.sae, refresh=20, condition_every=20, **settings)
    assert isinstance(found, OrthoGroups)
    for step in range(20):
        code, domain_B = domain_codes(step)
        found.update(one.sae, forward_of(one.sae, code), rows_of(torch.zeros(B, 1, D), domain_B), step)
    return found


def pass_of(one: Member) -> tuple[Any, Any]:
    code, domain_B = domain_codes()
    return forward_of(one.sae, code), rows_of(torch.zeros(B, 1, D), domain_B)


def test_groups_are_the_latents_that_fire_in_one_domain_alone() -> None:
    found = grouped(plain())
    assert found.groups.first.equal(FIRST)
    assert found.groups.second.equal(SECOND)


def test_the_other_domain_may_be_the_first() -> None:
    found = grouped(plain(), domain=1)
    assert found.groups.first.equal(SECOND)
    assert found.groups.second.equal(FIRST)


def test_windows_carry_the_domain_of_their_sequence() -> None:
    one = plain()
    found = penalty("ortho_groups", one.sae, refresh=1)
    code = torch.zeros(2, 4, F)
    code[0, :, :3] = 1.0
    code[1, :, 3:6] = 1.0
    rows = rows_of(torch.zeros(2, 4, D), torch.tensor([0, 1]))
    found.update(one.sae, forward_of(one.sae, Code(F, dense_BF=code.flatten(0, 1))), rows, 0)
    assert isinstance(found, OrthoGroups)
    assert found.groups.first.tolist() == [0, 1, 2]
    assert found.groups.second.tolist() == [3, 4, 5]


def test_a_batch_without_a_domain_leaves_its_rates_as_they_were() -> None:
    one = plain()
    found = grouped(one)
    rates_2F = found.groups.tensors["rates"].clone()
    code, domain_B = domain_codes(99)
    rows = rows_of(torch.zeros(B, 1, D), torch.zeros_like(domain_B))
    found.update(one.sae, forward_of(one.sae, code), rows, 20)
    assert found.groups.tensors["rates"][1].equal(rates_2F[1])
    assert not found.groups.tensors["rates"][0].equal(rates_2F[0])


def test_a_latent_between_the_two_thresholds_stays_where_it_is() -> None:
    between = torch.full((3,), math.log(1.7))
    assert regroup(between, torch.tensor([0, 1, 2]), 2.0, 1.5).tolist() == [0, 1, 0]
    assert regroup(-between, torch.tensor([0, 1, 2]), 2.0, 1.5).tolist() == [0, 0, 2]
    assert regroup(between * 2, torch.tensor([0, 1, 2]), 2.0, 1.5).tolist() == [1, 1, 1]
    assert regroup(between * 0.5, torch.tensor([0, 1, 2]), 2.0, 1.5).tolist() == [0, 0, 0]


def test_the_overlap_is_that_of_all_pairs_of_rows_in_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of three rows, so that groups end in the middle of one."""
    monkeypatch.setattr(grams, "_BYTES", 3 * 4 * 6)
    generator = torch.Generator().manual_seed(0)
    w_FD = (torch.randn(30, 6, generator=generator, dtype=torch.float64) * 1.5).requires_grad_()
    first_n, second_m = torch.randperm(30, generator=generator)[:23].split([9, 14])
    unit_FD = normalize(w_FD, dim=1)
    expected = (unit_FD[first_n] @ unit_FD[second_m].T).square().sum()
    found = grams.cross_squares(w_FD, first_n, second_m)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ((grad_FD,), (known_FD,)) = (torch.autograd.grad(one, w_FD) for one in (found, expected))
    torch.testing.assert_close(grad_FD, known_FD, rtol=1e-10, atol=1e-10)


def test_the_sum_of_the_cosines_of_pairs_has_autograds_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    w_FD = torch.randn(20, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    first_P, second_P = torch.arange(7), torch.randperm(20, generator=generator)[:7]
    expected = (normalize(w_FD, dim=1)[first_P] * normalize(w_FD, dim=1)[second_P]).sum()
    found = cosine_sum(w_FD, first_P, second_P)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    ((grad_FD,), (known_FD,)) = (torch.autograd.grad(one, w_FD) for one in (found, expected))
    torch.testing.assert_close(grad_FD, known_FD, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_value_is_the_distance_of_the_cross_gram_from_alpha_on_matched_pairs(alpha: float) -> None:
    one = train(plain(), SOURCE, rows=B, steps=4)
    found = grouped(one, alpha=alpha)
    forward, rows = pass_of(one)
    unit_FD = normalize(one.sae.W_dec.detach(), dim=1)
    cross_FF = unit_FD @ unit_FD.T
    if alpha:
        assert found.matched_2n.shape == (2, 5)
        cross_FF[found.matched_2n[0], found.matched_2n[1]] -= alpha
    expected = cross_FF[FIRST][:, SECOND].square().sum() / (5 * 7) ** 0.5
    torch.testing.assert_close(found.value(one.sae, forward, rows).detach(), expected, rtol=1e-4, atol=1e-5)


def test_matching_takes_the_largest_cosine_that_is_left() -> None:
    generator = torch.Generator().manual_seed(3)
    first_nD, second_mD = torch.randn(30, 8, generator=generator), torch.randn(21, 8, generator=generator)
    i_p, j_p = match(first_nD, second_mD)
    left_nm = normalize(first_nD, dim=1) @ normalize(second_mD, dim=1).T
    greedy = set()
    for _ in range(21):
        i, j = divmod(int(left_nm.argmax()), 21)
        greedy.add((i, j))
        left_nm[i], left_nm[:, j] = -math.inf, -math.inf
    assert set(zip(i_p.tolist(), j_p.tolist(), strict=True)) == greedy


def test_gradients_reach_the_decoder_rows_of_the_two_groups_alone() -> None:
    one = train(plain(), SOURCE, rows=B, steps=4)
    found = grouped(one)
    forward, rows = pass_of(one)
    found.value(one.sae, forward, rows).backward()
    assert {name for name, tensor in one.sae.named_parameters() if tensor.grad is not None} == {"W_dec"}
    assert one.sae.W_dec.grad is not None
    assert (one.sae.W_dec.grad.abs().sum(1) > 0).nonzero()[:, 0].equal(torch.arange(12))


def test_training_with_the_term_pulls_the_groups_apart() -> None:
    free, bound = (train(start(80, coeff=coeff), SOURCE, rows=B) for coeff in (0.0, 3.0))
    groups = term_of(free).groups
    assert min(len(groups.first), len(groups.second)) >= 3
    overlaps = []
    for one in (free, bound):
        first, second = term_of(one).groups.first, term_of(one).groups.second
        unit_FD = normalize(one.sae.W_dec.detach(), dim=1)
        overlaps.append(float((unit_FD[first] @ unit_FD[second].T).square().mean()))
    assert overlaps[1] < 0.7 * overlaps[0]


def test_clusters_are_the_latents_that_fire_together_where_no_domain_is_known() -> None:
    one, generator = plain(), torch.Generator().manual_seed(1)
    found = penalty("ortho_groups", one.sae, by="clusters", refresh=21)
    for step in range(21):
        topic_B = torch.rand(B, 1, generator=generator) < 0.5
        f_BF = (torch.rand(B, F, generator=generator) < 0.3).float()
        f_BF[:, FIRST] *= topic_B
        f_BF[:, SECOND] *= ~topic_B
        f_BF[:, 12:] = 0
        found.update(one.sae, forward_of(one.sae, Code(F, dense_BF=f_BF)), rows_of(torch.zeros(B, 1, D)), step)
    assert isinstance(found, OrthoGroups)
    groups = {tuple(found.groups.first.tolist()), tuple(found.groups.second.tolist())}
    assert groups == {tuple(FIRST.tolist()), tuple(SECOND.tolist())}


def test_projected_co_activation_is_the_matrix_without_its_diagonal_times_the_directions() -> None:
    code, _ = domain_codes()
    directions_FR = torch.randn(F, 7, generator=torch.Generator().manual_seed(0))
    together_FF = code.dense.T @ code.dense / B
    expected_FR = (together_FF - together_FF.diag().diag()) @ directions_FR
    torch.testing.assert_close(co_activation(code, directions_FR), expected_FR, rtol=1e-4, atol=1e-5)


def test_the_term_rests_while_a_group_is_ill_conditioned() -> None:
    one = plain()
    assert grouped(one).weight(5000) > 0
    resting = grouped(one, condition_max=1.01)
    assert resting.metrics()["rests"] == 1
    assert resting.weight(5000) == 0.0
    restored = penalty("ortho_groups", one.sae, condition_max=1.01)
    restored.load_state(resting.state())
    assert restored.weight(5000) == 0.0


def test_the_condition_number_is_that_of_the_eigenvalues_which_hold_the_energy() -> None:
    scale_D = torch.tensor([2.0, 2.0, 1.0, 0.01])  # the last one is beyond 95 % of 9
    assert float(condition(torch.diag(scale_D), 0.0)) == pytest.approx(2.0, rel=1e-4)
    assert float(condition(torch.eye(4), 0.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.2}, {"by": "clusters"}])
def test_a_saved_state_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    whole = train(start(**settings), SOURCE, rows=B, steps=18)
    half = train(start(**settings), SOURCE, rows=B, steps=12)
    resumed = start(**settings)
    resumed.sae.load_state_dict(half.sae.state_dict())
    resumed.optimiser.load_state(half.optimiser.state())
    resumed.silence.rows_F, resumed.steps_done = half.silence.rows_F.clone(), 12
    term_of(resumed).load_state({key: value.clone() for key, value in term_of(half).state().items()})
    train(resumed, SOURCE, rows=B, steps=6)
    for key, value in whole.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[key], value), key
    for key, value in term_of(whole).state().items():
        assert torch.equal(term_of(resumed).state()[key], value), key


@pytest.mark.parametrize(
    ("by", "wanted"), [("domains", (1.6403680, 1.3040563, 9, 10)), ("clusters", (1.5560770, 1.2995023, 11, 9))]
)
def test_without_biases_the_term_trains_as_it_did_before_there_were_any(by: str, wanted: tuple[float, ...]) -> None:
    one = train(start(alpha=0.2, by=by), SOURCE, rows=B)
    groups = term_of(one).groups
    found = (float(one.sae.W_dec.detach()[:, 3].sum()), float(one.sae.b_enc.detach().sum()))
    assert (*found, len(groups.first), len(groups.second)) == pytest.approx(wanted, rel=1e-4)


def test_a_coefficient_of_zero_changes_no_bit() -> None:
    with_term, without = train(start(coeff=0.0), SOURCE, rows=B), train(plain(), SOURCE, rows=B)
    for key, value in without.sae.state_dict().items():
        assert torch.equal(with_term.sae.state_dict()[key], value), key


def test_value_changes_no_state() -> None:
    one = plain()
    found = grouped(one)
    before = {key: value.clone() for key, value in found.state().items()}
    forward, rows = pass_of(one)
    assert found.value(one.sae, forward, rows).equal(found.value(one.sae, forward, rows))
    for key, value in found.state().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": "colour"}, "by must be one of domains, clusters"),
        ({"leave": 3.0}, "1 <= leave <= enter"),
        ({"refresh": 0}, "refresh and condition_every >= 1"),
    ],
)
def test_settings_that_make_no_groups_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        OrthoGroupsConfig(**settings)
