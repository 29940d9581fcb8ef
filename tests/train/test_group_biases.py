"""Group biases: what they compute and learn, where they live, and who refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_offsets import NORMALISATION, SOURCE, biased, grouped
from tests.train.planted_training import CASES, B, D, F, context, random_rows, untrained
from tests.train.planted_windows import drawn, train
from train.codes import Code, Entries
from train.config import RunConfig
from train.penalties.groups import Grouping
from train.penalties.ortho_groups import OrthoGroups
from train.sae import SAE, fvu

UNIT = {name: case for name, case in CASES.items() if name != "relu april"}


def by_hand(sae: SAE, f_BF: Tensor) -> Tensor:
    """x̂ in float64, row by row and group by group."""
    group_of_F, rows = sae.get_buffer("group_of"), []
    for f_F in f_BF.double():
        x_hat_D = f_F @ sae.W_dec.double() + sae.b_dec.double()
        for group in (1, 2):
            share = float(f_F[group_of_F == group].detach().sum() / f_F.detach().sum().clamp_min(1e-300))
            x_hat_D = x_hat_D + share * sae.group_bias[group - 1].double()
        rows.append(x_hat_D)
    return torch.stack(rows)


@pytest.mark.parametrize("case", UNIT)
def test_a_reconstruction_has_each_groups_bias_by_its_share_of_the_activation(case: str) -> None:
    architecture, settings = UNIT[case]
    sae, x_BD = grouped(architecture, **settings), random_rows()
    code = sae.encode(x_BD)
    found_BD, wanted_BD = sae.decode(code), by_hand(sae, code.dense)
    torch.testing.assert_close(found_BD, wanted_BD.float(), rtol=1e-5, atol=1e-5)
    assert (found_BD - (code.dense @ sae.W_dec + sae.b_dec)).detach().abs().mean() > 0.05
    last_BD = sae.losses(x_BD, context()).x_hat_BD
    torch.testing.assert_close(last_BD, found_BD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_biases_have_the_gradient_of_autograd_in_float64_and_the_shares_have_none(sparse: bool) -> None:
    sae, target_BD = grouped("relu"), random_rows(5)
    dense_BF = torch.relu(torch.randn(B, F, generator=torch.Generator().manual_seed(4)) - 1)
    entries = Code(F, dense_BF=dense_BF).entries
    values_n = entries.values_n.clone().requires_grad_()
    free_BF = dense_BF.clone().requires_grad_()
    code = Code(F, entries=entries._replace(values_n=values_n)) if sparse else Code(F, dense_BF=free_BF)
    (sae.decode(code) - target_BD).square().sum().backward()
    exact_BF = dense_BF.double().requires_grad_()
    bias_GD = sae.group_bias.detach().double().requires_grad_()
    share_BG = torch.stack([dense_BF[:, sae.get_buffer("group_of") == g].double().sum(1) for g in (1, 2)], 1)
    share_BG /= dense_BF.double().sum(1, keepdim=True)
    x_hat_BD = exact_BF @ sae.W_dec.detach().double() + sae.b_dec.detach().double() + share_BG @ bias_GD
    (x_hat_BD - target_BD).square().sum().backward()
    assert sae.group_bias.grad is not None
    assert bias_GD.grad is not None
    assert exact_BF.grad is not None
    torch.testing.assert_close(sae.group_bias.grad.double(), bias_GD.grad, rtol=1e-5, atol=1e-4)
    grad = values_n.grad if sparse else free_BF.grad
    wanted = exact_BF.grad[code.rows, entries.features_n] if sparse else exact_BF.grad
    assert grad is not None
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-4)


def test_a_row_without_activation_has_the_decoders_bias_alone() -> None:
    sae = grouped("relu")
    for code in (
        Code(F, dense_BF=torch.zeros(2, F)),
        Code(F, entries=Entries(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))),
    ):
        assert sae.decode(code).equal(sae.b_dec.detach().expand(2, D))


def test_each_nested_dictionary_has_the_shares_of_its_own_code() -> None:
    sae = grouped("matryoshka", k=5, prefixes=(0.125, 0.25, 0.5, 1.0))
    code = sae.encode(random_rows())
    for end, x_hat_BD in zip(sae.config.ends, sae.reconstructions(code), strict=True):  # type: ignore[operator]
        own_BF = code.dense * (torch.arange(F) < end)
        torch.testing.assert_close(x_hat_BD, by_hand(sae, own_BF).float(), rtol=1e-5, atol=1e-5)


def test_the_gates_reconstruction_knows_the_biases_and_does_not_train_them() -> None:
    sae, x_BD = grouped("gated"), random_rows()
    forward = sae.losses(x_BD, context())
    open_BF = torch.relu(sae.pre_activations(x_BD))
    expected = (by_hand(sae, open_BF) - x_BD).square().mean()
    assert float(forward.terms["aux"].value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    found = torch.autograd.grad(forward.terms["aux"].value, sae.group_bias, allow_unused=True, retain_graph=True)
    assert found == (None,)
    assert torch.autograd.grad(forward.terms["reconstruction"].value, sae.group_bias)[0].abs().sum() > 0


def test_who_is_in_a_group_changes_in_update_alone() -> None:
    one = biased(steps=5)
    train(one, SOURCE, rows=128, steps=4)
    assert not one.sae.get_buffer("group_of").any()
    assert not one.sae.group_bias.any()
    train(one, SOURCE, rows=128, steps=1)
    term = one.penalties["ortho_groups"]
    assert isinstance(term, OrthoGroups)
    assert one.sae.get_buffer("group_of").equal(term.groups.tensors["group"])
    assert len(term.groups.first)
    assert len(term.groups.second)


def test_clusters_that_change_places_keep_the_names_of_the_latents_they_were() -> None:
    sae = untrained("batchtopk", k=4)
    found = Grouping(sae, torch.Generator().manual_seed(0), clusters=True, enter=2.0, leave=1.5)
    rows_FR = found.tensors["co_activation"]
    rows_FR[:8, 0], rows_FR[8:16, 1] = 1.0, 1.0
    found.refresh()
    before = found.tensors["group"].clone()
    assert sorted(before.unique().tolist()) == [0, 1, 2]
    # Now the axis finds each of them at its other end.
    found.tensors["co_activation"] = rows_FR[:, [1, 0, *range(2, rows_FR.shape[1])]]
    found.refresh()
    assert found.tensors["group"].equal(before)


def learned(by: str, seed: int, **settings: Any) -> tuple[float, float, float]:
    """FVU with biases over that without, at equal steps; cosine and relative length of b₁ − b₂ to the truth."""
    error, rows = [], drawn(SOURCE, NORMALISATION, window=1, rows=4096, seed=9)
    for biases in (False, True):
        term = {"biases": biases, "coeff": 0.0, "refresh": 25, "by": by}
        one = biased(k=3, k_aux=8, warmup=20, seed=seed, term=term, **settings)
        train(one, SOURCE, rows=128, seed=seed)
        with torch.no_grad():
            error.append(float(fvu(rows.x_BD, one.sae.eval()(rows.x_BD))))
    # b_dec may take what the two have in common.
    apart_D, true_D = one.sae.group_bias.detach().diff(dim=0)[0] * NORMALISATION.scale, SOURCE.offsets.diff(dim=0)[0]
    print(f"\n{by} seed {seed}: FVU {error[0]:.4f}, with biases {error[1]:.4f}")  # noqa: T201
    cosine = float(torch.cosine_similarity(apart_D, true_D, dim=0))
    return error[1] / error[0], cosine, float(apart_D.norm() / true_D.norm())


def test_biases_go_where_the_rows_of_a_domain_have_something_in_common() -> None:
    ratio, cosine, _ = learned("domains", 0, steps=120, lr=1e-2)
    assert ratio < 0.9
    assert cosine > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("by", ["domains", "clusters"])
def test_biases_find_what_a_domain_has_in_common_and_fvu_falls_by_a_third(by: str, seed: int) -> None:
    ratio, cosine, length = learned(by, seed, steps=600, lr=6e-3)
    assert ratio < 0.67
    assert (cosine if by == "domains" else abs(cosine)) > 0.99  # clusters have no order
    assert 0.9 < length < 1.05


def test_forgetting_latents_leaves_the_moments_of_the_biases() -> None:
    one = train(biased(steps=12), SOURCE, rows=128)
    before = {key: value.clone() for key, value in one.optimiser.state().items()}
    one.optimiser.forget(torch.tensor([0, 7]))
    after = one.optimiser.state()
    assert after["group_bias.exp_avg"].any()
    for key in ("group_bias.exp_avg", "group_bias.exp_avg_sq", "b_dec.exp_avg"):
        assert after[key].equal(before[key])
    assert not after["W_dec.exp_avg"][[0, 7]].any()
    assert not after["W_enc.exp_avg_sq"][:, [0, 7]].any()


# --- without them -----------------------------------------------------------------------------------------------------


def test_without_biases_nothing_is_new_in_the_state_or_in_the_description(tmp_path: Path) -> None:
    one = biased(steps=6, term={"biases": False})
    train(one, SOURCE, rows=128)
    assert not [key for key in one.state() if "group_bias" in key or "group_of" in key]
    text = json.dumps(one.config.to_json())
    assert "biases" not in text
    assert RunConfig.from_json(json.loads(text)) == one.config
    one.inference(one.weights()).save(tmp_path)
    assert "group_bias" not in (tmp_path / "cfg.json").read_text()
