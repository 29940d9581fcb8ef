"""Reported numbers against their definitions, on cases small enough to work out."""

import pytest
import torch
from torch import Tensor

from tests.train.planted_training import CASES, as_rows, context, member, random_rows, random_sae
from train.codes import Code
from train.metrics import DEFINITIONS, decoder_metrics, detached, gradient_shares, step_metrics
from train.normalise import Normalisation
from train.sae import Forward, Term

MEAN_D, SCALE = torch.tensor([10.0, 0.0]), 2.0


def measured(x_BD: Tensor, x_hat_BD: Tensor, f_BF: Tensor | None = None) -> dict[str, float]:
    """Of raw rows and reconstructions, given to the trainer in its own units."""
    unit = Normalisation(MEAN_D, SCALE, "by hand")
    code = Code(3, dense_BF=torch.zeros(len(x_BD), 3) if f_BF is None else f_BF)
    x_BD, x_hat_BD = unit.apply(x_BD), unit.apply(x_hat_BD)
    terms = {"reconstruction": Term((x_BD - x_hat_BD).square().mean()), "sparsity": Term(torch.tensor(3.0), 0.5)}
    return detached(step_metrics(Forward(x_BD, code, x_hat_BD, terms), unit))


X_BD = torch.tensor([[12.0, 1.0], [8.0, 1.0], [12.0, -1.0], [8.0, -1.0]])
"""Mean (10, 0); squared distances from it 4 + 1 in each row; squared norms 145, 65, 145, 65."""


def test_every_number_by_hand() -> None:
    """Reconstructions miss the second entry of every row: an error of 1 of the 5 that vary, of norms² of 105."""
    found = measured(X_BD, X_BD * torch.tensor([1.0, 0.0]))
    assert found["fvu"] == pytest.approx(4 / 20)
    assert found["explained_variance"] == pytest.approx(1 - 4 / 20)
    assert found["fvu_uncentred"] == pytest.approx(4 / 420)
    assert found["mse"] == pytest.approx(1.0)
    assert found["cosine"] == pytest.approx((12 / 145**0.5 + 8 / 65**0.5) / 2)
    assert found["cosine_centred"] == pytest.approx(2 / 5**0.5)
    assert found["loss"] == pytest.approx(4 / (4 * 2 * 2**2) + 0.5 * 3)
    assert found["term/sparsity"] == 3.0
    assert found["weight/sparsity"] == 0.5


def test_a_perfect_reconstruction_explains_all_and_the_mean_nothing() -> None:
    perfect, nothing = measured(X_BD, X_BD.clone()), measured(X_BD, X_BD.mean(0).expand_as(X_BD))
    assert (perfect["fvu"], perfect["mse"], perfect["cosine"]) == pytest.approx((0, 0, 1), abs=1e-6)
    assert nothing["fvu"] == pytest.approx(1)
    assert nothing["fvu_uncentred"] == pytest.approx(20 / 420), "predicting a large mean looks good where it counts"


def test_ratios_do_not_depend_on_the_units_and_mse_is_in_raw_ones() -> None:
    x_BD, x_hat_BD = random_rows(0, d_model=2), random_rows(1, d_model=2)
    one, ten = measured(x_BD, x_hat_BD), measured(10 * x_BD, 10 * x_hat_BD)
    for name in ("fvu", "explained_variance", "fvu_uncentred", "cosine"):
        assert ten[name] == pytest.approx(one[name], rel=1e-4), name
    assert ten["mse"] == pytest.approx(100 * one["mse"], rel=1e-4)
    assert one["mse"] == pytest.approx(float((x_BD - x_hat_BD).square().sum(1).mean()), rel=1e-4)


def test_fvu_is_against_the_batchs_own_mean() -> None:
    """Rows far from the training mean: the shift is no variance."""
    shifted = measured(X_BD + 100, X_BD * torch.tensor([1.0, 0.0]) + torch.tensor([100.0, 100.0]))
    assert shifted["fvu"] == pytest.approx(4 / 20, rel=1e-4)


def test_l0_counts_what_is_on_and_l1_sums_it() -> None:
    found = measured(X_BD, X_BD, torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.5], [0.0] * 3, [0.0] * 3]))
    assert found["l0"] == pytest.approx(3 / 4)
    assert found["l1"] == pytest.approx(3.5 / 4)


def test_decoder_norms() -> None:
    sae = random_sae("relu")
    with torch.no_grad():
        sae.W_dec[0] *= 1.5
    found = detached(decoder_metrics(sae))
    assert found["decoder_norm"] == pytest.approx(1 + 0.5 / len(sae.W_dec))
    assert found["decoder_norm_drift"] == pytest.approx(0.5)


def test_gradient_shares_are_norms_of_each_terms_gradient() -> None:
    sae = random_sae("relu", l1=0.3)
    forward = sae.losses(random_rows(), context())
    norms = {}
    for name, term in sae.losses(random_rows(), context()).terms.items():
        found = torch.autograd.grad(term.weight * term.value, list(sae.parameters()), None, True, allow_unused=True)
        norms[name] = float(torch.cat([one.flatten() for one in found if one is not None]).norm())
    shares = detached(gradient_shares(sae, forward))
    assert shares.keys() == {"gradient/reconstruction", "gradient/sparsity"}
    for name, norm in norms.items():
        assert shares[f"gradient/{name}"] == pytest.approx(norm / sum(norms.values()), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_reporting_does_not_change_training(case: str) -> None:
    architecture, settings = CASES[case]
    loud, quiet = (member(architecture, steps=4, dead_every=2, dead_after=60, **settings) for _ in range(2))
    for step in range(4):
        loud.step(as_rows(random_rows(step)), report=True)
        quiet.step(as_rows(random_rows(step)), report=False)
    state = quiet.state()
    assert all(torch.equal(one, state[name]) for name, one in loud.state().items())


def test_every_metric_of_a_step_has_its_definition() -> None:
    one = member("topk", k=5, steps=2)
    one.step(as_rows(random_rows()), report=True)
    of_terms = ("term/", "weight/", "gradient/")
    assert {name for name in one.last if not name.startswith(of_terms)} <= DEFINITIONS.keys()
