"""AuxK: what dead latents learn from, and what they must leave alone."""

import pytest
import torch
from torch import Tensor

from tests.train.planted_training import D, F, context, random_rows, random_sae
from train.auxk import auxk
from train.sae import SAE

DEAD = (3, 4, 20, 21, 50)
ALIVE = [latent for latent in range(F) if latent not in DEAD]


def aux_gradients(sae: SAE, x_BD: Tensor) -> dict[str, Tensor]:
    term = sae.losses(x_BD, context(dead=DEAD)).terms["aux"]
    parameters = dict(sae.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(term.value, list(parameters.values())), strict=True))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_dead_latents_get_a_gradient_and_living_ones_none(architecture: str) -> None:
    gradients = aux_gradients(random_sae(architecture, k=5, k_aux=2), random_rows())
    for per_latent in (gradients["W_enc"].T, gradients["W_dec"], gradients["b_enc"]):
        assert (per_latent[list(DEAD)].reshape(len(DEAD), -1).abs().sum(1) > 0).all()
        assert not per_latent[ALIVE].any()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_b_dec_hears_of_aux_only_through_the_encoders_centring(architecture: str) -> None:
    """It is part of the error that is handed over, so ê has no bias and the error no gradient."""
    sae = random_sae(architecture, k=5, k_aux=2)
    gradients = aux_gradients(sae, random_rows())
    torch.testing.assert_close(gradients["b_dec"], -(sae.W_enc @ gradients["b_enc"]), rtol=1e-4, atol=1e-7)


def test_the_reconstruction_gets_no_gradient_from_aux() -> None:
    sae, x_BD = random_sae("topk"), random_rows()
    x_hat_BD = sae(x_BD).detach().requires_grad_()
    value = auxk(sae, x_BD, x_hat_BD, context(dead=DEAD), 2)
    assert torch.autograd.grad(value, x_hat_BD, allow_unused=True) == (None,)


def test_without_dead_latents_it_is_zero_and_the_step_is_that_of_a_run_without_it() -> None:
    x_BD = random_rows()
    with_aux, without = (random_sae("topk", k=5, aux=aux) for aux in (1 / 32, 0.0))
    for sae in (with_aux, without):
        sae.losses(x_BD, context()).total().backward()
    assert with_aux.losses(x_BD, context()).terms["aux"].value == 0
    named = dict(without.named_parameters())
    assert all(torch.equal(one.grad, named[name].grad) for name, one in with_aux.named_parameters())


def test_it_is_one_when_the_dead_predict_nothing_of_a_centred_error_and_zero_when_they_predict_all() -> None:
    sae = random_sae("topk", d_sae=2 * D)
    with torch.no_grad():
        sae.W_dec[:] = torch.cat([torch.eye(D), -torch.eye(D)])
        sae.W_enc[:] = sae.W_dec.T
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    x_BD = random_rows()
    x_BD = x_BD - x_BD.mean(0)
    everything = context(dead=tuple(range(2 * D)))
    nothing_BD = torch.zeros_like(x_BD)
    assert float(auxk(sae, x_BD, nothing_BD, everything, 2 * D).detach()) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert float(auxk(sae, x_BD, nothing_BD, everything, 2 * D).detach()) == pytest.approx(1, rel=1e-6)


def test_it_does_not_depend_on_the_size_of_the_error() -> None:
    sae, x_BD = random_sae("topk"), random_rows()
    with torch.no_grad():
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    values = [float(auxk(sae, s * x_BD, s * 0.5 * x_BD, context(dead=DEAD), 3).detach()) for s in (1.0, 1e-3)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_row_uses_at_most_k_aux_of_the_dead() -> None:
    """One dead latent is the best for every row: with k_aux = 1 the others get no gradient."""
    sae, x_BD = random_sae("topk", k=5, k_aux=1), random_rows()
    with torch.no_grad():
        sae.b_enc[DEAD[2]] = 100.0
    gradient_DF = aux_gradients(sae, x_BD)["W_enc"]
    assert gradient_DF[:, DEAD[2]].any()
    assert not gradient_DF[:, [latent for latent in DEAD if latent != DEAD[2]]].any()


def test_half_of_d_model_is_the_default_size() -> None:
    sae = random_sae("topk", k=5)
    everyone = context(dead=tuple(range(F)))
    values = [
        float(random_sae("topk", k=5, k_aux=k).losses(random_rows(), everyone).terms["aux"].value.detach())
        for k in (D // 2 - 1, D // 2)
    ]
    found = float(sae.losses(random_rows(), everyone).terms["aux"].value.detach())
    assert found == values[1] != values[0]
