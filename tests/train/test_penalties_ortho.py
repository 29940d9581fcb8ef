"""The pair penalties: each moves what it says, the decoder alone, on a scale that does not depend on the data."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.train.planted_training import as_rows, planted_batches, planted_directions, random_rows, random_sae
from train import checkpoint
from train.architectures import ARCHITECTURES
from train.codes import Code, Entries
from train.config import RunConfig, TrainingConfig
from train.errors import TrainError
from train.feed.config import FeedConfig
from train.member import Member
from train.normalise import Normalisation
from train.penalties import PENALTIES, Penalty, PenaltyConfig
from train.penalties.ortho_importance import OrthoImportance
from train.penalties.ortho_pairs import OrthoPairs
from train.run_folder import RunFolder
from train.sae import SAE, Context, Forward
from train.world import World

ORTHO = ("ortho_active", "ortho_importance", "ortho_pairs", "ortsae")
D, F, B = 16, 64, 48
# Small dictionaries have few pairs: what is chosen of them is a larger share.
SETTINGS: dict[str, dict[str, Any]] = {
    "ortho_active": {"every": 1},
    "ortho_pairs": {"share": 0.05, "every": 1},
    "ortho_importance": {"every": 1, "refresh": 10},
    "ortsae": {"every": 1, "chunk": 32},
}


def penalty(name: str, sae: SAE, **settings: Any) -> Penalty:
    config = PENALTIES[name].config(**SETTINGS.get(name, {}) | settings)
    return PENALTIES[name].penalty(config, sae, torch.Generator().manual_seed(0))


def one_pass(sae: SAE, seed: int = 0) -> Forward:
    sae.train()
    return sae.losses(random_rows(seed), Context(3, 1.0, torch.zeros(0, dtype=torch.int64)))


def after_one_update(name: str, sae: SAE, forward: Forward, **settings: Any) -> Penalty:
    one = penalty(name, sae, **settings)
    one.update(sae, forward, as_rows(forward.x_BD), 0)
    return one


def value_of(one: Penalty, sae: SAE, forward: Forward) -> Tensor:
    return one.value(sae, forward, as_rows(forward.x_BD))


def number_of(one: Penalty, sae: SAE, forward: Forward) -> float:
    return float(value_of(one, sae, forward).detach())


def member(penalties: Mapping[str, PenaltyConfig], *, steps: int = 12, **settings: Any) -> Member:
    config = RunConfig(
        variant="planted",
        architecture="batchtopk",
        sae=ARCHITECTURES["batchtopk"].config(d_model=D, d_sae=F, **{"k": 5} | settings),
        penalties=penalties,
        training=TrainingConfig(steps=steps, lr=1e-2, warmup=0, resample_every=4, dead_after=200, dead_every=1),
        feed=FeedConfig(),
        cache="planted",
        sequences=1,
        layer=0,
    )
    unit = Normalisation(torch.zeros(D), 1.0, "planted")
    return Member(config, RunFolder(Path("nowhere")), unit, device="cpu", world=World(), metadata={})


def trained(one: Member, steps: int | None = None, *, report: bool = False) -> Member:
    batches = planted_batches(planted_directions(24, D), active=3)
    for x_BD in [next(batches) for _ in range(one.config.training.steps if steps is None else steps)][one.steps_done :]:
        one.step(as_rows(x_BD), report=report)
    return one


@pytest.mark.parametrize("name", ORTHO)
@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "relu", "jumprelu", "gated", "matryoshka"])
def test_the_decoder_feels_it_and_the_encoder_does_not(name: str, architecture: str) -> None:
    sae = random_sae(architecture)
    forward = one_pass(sae)
    value = value_of(after_one_update(name, sae, forward), sae, forward)
    parameters = dict(sae.named_parameters())
    gradients = torch.autograd.grad(value, [*parameters.values()], allow_unused=True)
    felt = {key for key, one in zip(parameters, gradients, strict=True) if one is not None and bool(one.any())}
    assert felt == {"W_dec"}
    assert 0 < float(value.detach()) < 1


@pytest.mark.parametrize("name", ORTHO)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    sae = random_sae("batchtopk").double()
    forward = one_pass(random_sae("batchtopk"))
    one = after_one_update(name, sae, forward)
    (gradient_FD,) = torch.autograd.grad(value_of(one, sae, forward), sae.W_dec)
    direction_FD = torch.randn(F, D, generator=torch.Generator().manual_seed(9)).double()
    values = []
    for step in (1e-6, -1e-6):  # small enough that no other pair is chosen
        moved = random_sae("batchtopk").double()
        moved.W_dec.data += step * direction_FD
        values.append(number_of(one, moved, forward))
    assert float((gradient_FD * direction_FD).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("name", ORTHO)
def test_a_value_is_pure(name: str) -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    one = after_one_update(name, sae, forward)
    before = {key: tensor.clone() for key, tensor in one.state().items()}
    random = one.generator.get_state()
    values = [value_of(one, sae, forward) for _ in range(2)]
    assert torch.equal(*values)
    assert torch.equal(one.generator.get_state(), random)
    assert all(torch.equal(tensor, before[key]) for key, tensor in one.state().items())


@pytest.mark.parametrize("name", ORTHO)
def test_a_value_does_not_change_with_the_scale_of_the_codes_or_the_decoder(name: str) -> None:
    """On the scale of the fraction of variance unexplained, whatever units activations have."""
    sae, scaled = random_sae("batchtopk"), random_sae("batchtopk")
    scaled.W_dec.data *= 7
    forward = one_pass(sae)
    values_n, features_n, offsets = forward.code.entries
    louder = forward._replace(code=Code(F, entries=Entries(100 * values_n, features_n, offsets)))
    value = value_of(after_one_update(name, sae, forward), sae, forward)
    again = value_of(after_one_update(name, scaled, louder), scaled, louder)
    torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ORTHO)
def test_a_coefficient_of_zero_changes_no_bit(name: str) -> None:
    """Not even where resampling draws from the same generator."""
    plain = trained(member({}))
    config = PENALTIES[name].config(**SETTINGS.get(name, {}) | {"coeff": 0.0})
    zero = trained(member({name: config}))
    for key, tensor in plain.sae.state_dict().items():
        assert torch.equal(tensor, zero.sae.state_dict()[key]), key
    assert torch.equal(plain.generator.get_state(), zero.generator.get_state())
    on = trained(member({name: replace(config, coeff=1.0)}))
    assert not torch.equal(on.sae.W_dec, plain.sae.W_dec)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ortho_active", {}),
        ("ortho_importance", {"refresh": 4}),
        ("ortho_importance", {"refresh": 4, "search": "lsh"}),
        ("ortho_pairs", {}),
        ("ortho_pairs", {"norm": "spectral", "tau_mode": "quantile", "refresh": 3}),
        ("ortsae", {}),
    ],
)
def test_a_run_that_is_resumed_ends_with_the_bits_of_one_that_was_not(name: str, settings: dict[str, Any]) -> None:
    config = PENALTIES[name].config(**SETTINGS.get(name, {}) | {"every": 2} | settings)
    whole = trained(member({name: config}))
    first = trained(member({name: config}), 7)
    second = member({name: config})
    second.sae.load_state_dict(first.sae.state_dict())
    second.optimiser.load_state(first.optimiser.state())
    second.silence.rows_F, second.silence.dead = first.silence.rows_F, first.silence.dead
    second.sae.guess = first.sae.guess
    second.draws[name].set_state(first.draws[name].get_state())
    second.penalties[name].load_state({key: one.clone() for key, one in first.penalties[name].state().items()})
    second.steps_done = 7
    trained(second)
    assert torch.equal(second.sae.W_dec, whole.sae.W_dec)
    assert second.penalties[name].state().keys() == whole.penalties[name].state().keys()
    for key, tensor in whole.penalties[name].state().items():
        assert torch.equal(second.penalties[name].state()[key], tensor), key


@pytest.mark.parametrize("name", ORTHO)
def test_its_state_goes_through_a_checkpoint_before_and_after_the_first_step(name: str, tmp_path: Path) -> None:
    one = member({name: PENALTIES[name].config(**SETTINGS.get(name, {}))})
    for steps in (0, 3):
        trained(one, steps)
        checkpoint.save(tmp_path, checkpoint.Checkpoint(steps, {}, one.state()), keep=2)
        saved = checkpoint.load(tmp_path, steps)
        other = member({name: one.penalties[name].config})
        other.load(saved)
        assert other.steps_done == steps
        for key, tensor in one.state().items():
            assert torch.equal(other.state()[key], tensor), key


@pytest.mark.parametrize("name", ORTHO)
def test_training_reports_the_term_its_weight_and_its_share_of_the_gradient(name: str) -> None:
    one = trained(member({name: PENALTIES[name].config(**SETTINGS.get(name, {}))}), 2, report=True)
    assert {f"term/{name}", f"weight/{name}", f"gradient/{name}"} <= one.last.keys()
    assert 0 < float(one.last[f"gradient/{name}"]) < 1
    assert all(tensor.ndim == 0 for tensor in one.last.values())


def mean_max_cosine(sae: SAE) -> float:
    unit_FD = normalize(sae.W_dec.detach(), dim=1)
    return float((unit_FD @ unit_FD.T).fill_diagonal_(-1).max(1).values.mean())


def active_cosine(sae: SAE) -> float:
    """Mean positive cosine of two latents that are active in one row, by what they share there."""
    code_BF = sae.encode(next(planted_batches(planted_directions(24, D), active=3, rows=512, seed=5))).dense.detach()
    together_FF = (code_BF.T @ code_BF).fill_diagonal_(0)
    unit_FD = normalize(sae.W_dec.detach(), dim=1)
    return float((together_FF * (unit_FD @ unit_FD.T).clamp_min(0)).sum() / together_FF.sum())


@cache
def plainly_trained() -> Member:
    return trained(member({}, steps=60))


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("ortho_active", active_cosine),
        ("ortho_importance", active_cosine),
        ("ortho_pairs", active_cosine),
        ("ortsae", mean_max_cosine),
    ],
)
def test_each_lowers_the_quantity_it_is_for(name: str, quantity: Callable[[SAE], float]) -> None:
    plain = quantity(plainly_trained().sae)
    config = PENALTIES[name].config(**SETTINGS.get(name, {}) | {"coeff": 3.0})
    assert quantity(trained(member({name: config}, steps=60)).sae) < 0.85 * plain


def hand_made(dense_BF: Tensor, w_dec_FD: Tensor) -> tuple[SAE, Forward]:
    """A decoder and a code of our own choice."""
    kind = ARCHITECTURES["batchtopk"]
    sae = kind.sae(kind.config(d_model=w_dec_FD.shape[1], d_sae=len(w_dec_FD), k=1))
    sae.W_dec.data.copy_(w_dec_FD)
    values_n, features_n, offsets = Code(len(w_dec_FD), dense_BF=dense_BF).entries
    code = Code(len(w_dec_FD), entries=Entries(values_n, features_n, offsets))
    x_BD = torch.zeros(len(dense_BF), w_dec_FD.shape[1])
    return sae, Forward(x_BD, code, x_BD, {})


PAIR = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0], [0, 0.6, 0.8]])  # cosines: 0.6, 0.48 and 0.8 among others


def test_ortho_active_is_the_mean_squared_cosine_of_what_is_active_together() -> None:
    """Latents 2 and 3 are nearer, but never meet."""
    sae, forward = hand_made(torch.tensor([[2.0, 3.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1.0]]), PAIR)
    assert number_of(penalty("ortho_active", sae, top=2), sae, forward) == pytest.approx(0.36)


def test_ortho_active_looks_at_rows_of_every_rank_once() -> None:
    """Two ranks' values, on equal shares of a batch, have as their mean the value of the whole."""

    class Two(World):
        size = 2

        def rows(self, n: int) -> int:
            return 2 * n

        def mean(self, x: Tensor) -> Tensor:
            return x.new_tensor(total / 2)

    sae = random_sae("topk")
    top_B5 = torch.rand(B, F, generator=torch.Generator().manual_seed(2)).topk(5, dim=1)
    dense_BF = torch.zeros(B, F).scatter(1, top_B5.indices, top_B5.values)
    whole, parts = (
        hand_made(dense_BF, sae.W_dec.detach()),
        [hand_made(one, sae.W_dec.detach()) for one in dense_BF.chunk(2)],
    )
    total = float((dense_BF.sum(1).square() - dense_BF.square().sum(1)).sum())
    value = value_of(penalty("ortho_active", sae, rows=B), *whole)
    shares = []
    for one, forward in parts:
        one.world = Two()
        shares.append(number_of(penalty("ortho_active", one, rows=B), one, forward))
    assert sum(shares) / 2 == pytest.approx(float(value.detach()), rel=1e-5)


def test_ortho_pairs_takes_the_pair_that_meets_over_the_pair_that_is_nearer() -> None:
    sae, forward = hand_made(torch.tensor([[2.0, 3.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1.0]]), PAIR)
    one = after_one_update("ortho_pairs", sae, forward, share=0.1, tau=0.1)
    assert isinstance(one, OrthoPairs)
    assert (int(one.pairs.first_P), int(one.pairs.second_P)) == (0, 1)
    assert number_of(one, sae, forward) == pytest.approx((0.6 - 0.1) ** 2 / 4)


def test_ortho_pairs_on_the_spectral_norm_is_the_row_form_over_sigma_to_the_fourth() -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    rows, spectral = (penalty("ortho_pairs", sae, norm=norm) for norm in ("rows", "spectral"))
    for step in range(60):  # the power iteration converges
        for one in (rows, spectral):
            one.update(sae, forward, as_rows(forward.x_BD), step)
    sigma = float(torch.linalg.matrix_norm(sae.W_dec.detach(), ord=2))
    assert float(spectral.metrics()["sigma2"]) == pytest.approx(sigma**2, rel=1e-2)
    expected = number_of(rows, sae, forward) / sigma**4
    assert number_of(spectral, sae, forward) == pytest.approx(expected, rel=3e-2)


def test_tau_stays_climbs_or_follows_the_quantile_of_the_cosines() -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    modes = {
        "fixed": penalty("ortho_pairs", sae, tau=0.1),
        "linear": penalty("ortho_pairs", sae, tau=0.01, tau_end=0.1, tau_mode="linear", tau_steps=100),
        "quantile": penalty("ortho_pairs", sae, tau_mode="quantile", refresh=1),
    }
    for step in range(60):
        for one in modes.values():
            one.update(sae, forward, as_rows(forward.x_BD), step)
    tau = {name: float(one.metrics()["tau"]) for name, one in modes.items()}
    unit_FD = normalize(sae.W_dec.detach(), dim=1)
    i, j = torch.triu_indices(F, F, 1)
    assert tau["fixed"] == pytest.approx(0.1)
    assert tau["linear"] == pytest.approx(0.01 + 0.09 * 0.6)
    assert tau["quantile"] == pytest.approx(float((unit_FD @ unit_FD.T)[i, j].quantile(0.999)), abs=0.05)


def test_importance_is_the_mean_activation_over_that_of_the_living_at_most_ten() -> None:
    rate_F = torch.cat([torch.tensor([100.0, 0.0]), torch.ones(38)])
    sae, forward = hand_made(rate_F.repeat(6, 1), torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    one = penalty("ortho_importance", sae)
    assert isinstance(one, OrthoImportance)
    for step in range(3):
        one.update(sae, forward, as_rows(forward.x_BD), step)
        mean = float(rate_F.sum()) / 39
        torch.testing.assert_close(one.importance(), (rate_F / mean).clamp_max(10), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("search", ["exact", "lsh"])
def test_the_queue_holds_the_pairs_with_the_largest_importance_times_cosine(search: str) -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    one = after_one_update("ortho_importance", sae, forward, queue=20, neighbours=F, search=search)
    assert isinstance(one, OrthoImportance)
    importance_F = one.importance()
    unit_FD = normalize(sae.W_dec.detach(), dim=1)
    score_FF = ((importance_F[:, None] * importance_F).sqrt() * (unit_FD @ unit_FD.T).clamp_min(0)).triu(1)
    found = score_FF[one.queue.first_P, one.queue.second_P].sort(descending=True).values
    best = score_FF.flatten().topk(20).values
    if search == "exact":
        torch.testing.assert_close(found, best)
    else:
        assert float(found.sum()) > 0.7 * float(best.sum())  # hashes miss some pairs


def test_the_queue_keeps_the_worst_pairs_that_a_new_search_misses() -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    one = after_one_update("ortho_importance", sae, forward, queue=20, refresh=1, neighbours=1)
    assert isinstance(one, OrthoImportance)
    worst = one.queue.weight_P.clone()
    for step in range(1, 4):
        one.update(sae, forward, as_rows(forward.x_BD), step)
    assert float(one.metrics()["jaccard"]) == 1
    assert torch.equal(one.queue.weight_P, worst)


def test_ortsae_is_the_mean_squared_largest_cosine_and_draws_new_chunks_for_every_use() -> None:
    sae = random_sae("batchtopk")
    forward = one_pass(sae)
    one = penalty("ortsae", sae, chunk=F, every=3)
    unit_FD = normalize(sae.W_dec.detach(), dim=1)
    largest_F = (unit_FD @ unit_FD.T).fill_diagonal_(-1).max(1).values.clamp_min(0)
    assert number_of(one, sae, forward) == pytest.approx(float(largest_F.square().mean()), rel=1e-2)
    orders = []
    for step in range(6):
        orders.append(one.state()["order_F"])
        one.update(sae, forward, as_rows(forward.x_BD), step)
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[2], orders[3])
    assert torch.equal(orders[5].sort().values, torch.arange(F))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ortho_active", {"top": 1}, "top at least 2"),
        ("ortho_pairs", {"share": 0.0}, "share must be above 0"),
        ("ortho_pairs", {"score": "cos"}, "coactivation_cosine"),
        ("ortho_pairs", {"refresh": 0}, "refresh must be at least 1"),
        ("ortho_importance", {"decay": 1.0}, "decay must be in"),
        ("ortho_importance", {"search": "all"}, "exact, lsh"),
        ("ortsae", {"chunk": 1}, "chunk must be at least 2"),
        ("ortsae", {"coeff": -1.0}, "coeff must not be negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        PENALTIES[name].config(**settings)
