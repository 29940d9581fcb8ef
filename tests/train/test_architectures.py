"""Losses and gradients of every architecture against plain dense autograd, written from the papers' formulas.

The references run in float64 on plain tensors: select by a mask, multiply matrices, let autograd differentiate.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.train.planted_training import CASES, B, D, F, context, random_rows, random_sae
from train.architectures import ARCHITECTURES
from train.sae import SAE, Context

DEAD = (1, 9, 17, 30, 31, 40, 55, 63)
Parameters = dict[str, Tensor]


def pre(p: Parameters, x_BD: Tensor) -> Tensor:
    return (x_BD - p["b_dec"]) @ p["W_enc"] + p["b_enc"]


def error(p: Parameters, f_BF: Tensor, x_BD: Tensor) -> Tensor:
    return (f_BF @ p["W_dec"] + p["b_dec"] - x_BD).square().sum(1).mean() / D


def keep(p_BF: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row."""
    return torch.zeros_like(p_BF).scatter(1, p_BF.topk(k, dim=1).indices, 1.0)


def aux(p: Parameters, f_BF: Tensor, x_BD: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    """Gao et al. §A.2: the dead latents' top k_aux against the detached error, normalised by its variance."""
    if not len(dead):
        return torch.zeros(())
    e_BD = (x_BD - f_BF @ p["W_dec"] - p["b_dec"]).detach()
    alive_F = torch.ones(F).index_fill(0, dead, 0.0).bool()
    p_BF = pre(p, x_BD).masked_fill(alive_F, -torch.inf)
    chosen_BF = keep(p_BF, min(k_aux, len(dead))) * ~alive_F
    g_BF = torch.where(chosen_BF > 0, torch.relu(p_BF), 0.0)
    return (g_BF @ p["W_dec"] - e_BD).square().sum() / (e_BD - e_BD.mean(0)).square().sum()


def relu(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    f_BF = torch.relu(pre(p, x_BD))
    return error(p, f_BF, x_BD) + at.sparsity * 0.04 / D**0.5 * f_BF.sum(1).mean()


def april(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    f_BF = torch.relu(x_BD @ p["W_enc"] + p["b_enc"])
    l1 = (f_BF * p["W_dec"].norm(dim=1)).sum(1).mean()
    return error(p, f_BF, x_BD) + at.sparsity * 0.04 / D**0.5 * l1


def topk(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    p_BF = pre(p, x_BD)
    f_BF = torch.relu(p_BF) * keep(p_BF, 5)
    multi = sae.config.multi * error(p, torch.relu(p_BF) * keep(p_BF, 20), x_BD)
    return error(p, f_BF, x_BD) + aux(p, f_BF, x_BD, at.dead, 4) / 32 + multi


def batchtopk(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    f_BF = torch.relu(pre(p, x_BD))
    f_BF = f_BF * keep(f_BF.reshape(1, -1), 5 * B).reshape(B, F)
    return error(p, f_BF, x_BD) + aux(p, f_BF, x_BD, at.dead, 4) / 32


def matryoshka(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    f_BF = torch.relu(pre(p, x_BD))
    f_BF = f_BF * keep(f_BF.reshape(1, -1), 5 * B).reshape(B, F)
    prefixes = [(torch.arange(F) < end) * f_BF for end in (8, 16, 32, 64)]
    return sum(error(p, one, x_BD) for one in prefixes) / 4 + aux(p, f_BF, x_BD, at.dead, 4) / 32


def gated(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    gate_BF = pre(p, x_BD)
    magnitude_BF = (x_BD - p["b_dec"]) @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    frozen = {name: p[name].detach() for name in ("W_dec", "b_dec")}
    open_BF = torch.relu(gate_BF)
    l1 = at.sparsity * 0.04 / D**0.5 * open_BF.sum(1).mean()
    return error(p, (gate_BF > 0) * torch.relu(magnitude_BF), x_BD) + l1 + error(frozen, open_BF, x_BD)


def jumprelu(p: Parameters, x_BD: Tensor, sae: SAE, at: Context) -> Tensor:
    """The jump's pseudo-derivatives as constants times θ − detached θ, which is 0 and has the gradient 1."""
    p_BF, theta_F, epsilon, norm_F = pre(p, x_BD), p["log_threshold"].exp(), 0.4, p["W_dec"].norm(dim=1)
    near_BF = ((p_BF - theta_F).abs() < epsilon / 2).double()
    moved_BF = (near_BF / epsilon).detach() * (theta_F - theta_F.detach())
    f_BF = p_BF * (p_BF > theta_F) - theta_F.detach() * moved_BF
    l0 = ((p_BF > theta_F).double() - moved_BF).sum(1).mean()
    if sae.config.sparsity == "tanh":
        short = (torch.relu(theta_F - p_BF) * norm_F).sum(1).mean()
        tanh = torch.tanh(4 * f_BF * norm_F).sum(1).mean()
        return error(p, f_BF, x_BD) + at.sparsity * 20 / D * tanh + 0.1 / D * short
    penalty = (l0 / 5 - 1) ** 2 if sae.config.sparsity == "target" else 0.03 * l0
    return error(p, f_BF, x_BD) + at.sparsity * penalty


Reference = Callable[[Parameters, Tensor, SAE, Context], Tensor]
REFERENCES: dict[str, Reference] = {
    "relu": relu,
    "relu april": april,
    "topk": topk,
    "topk multi": topk,
    "batchtopk": batchtopk,
    "matryoshka": matryoshka,
    "gated": gated,
    "jumprelu target": jumprelu,
    "jumprelu l0": jumprelu,
    "jumprelu tanh": jumprelu,
}


def sae_of(case: str) -> SAE:
    architecture, settings = CASES[case]
    return random_sae(architecture, **settings)


def gradients(loss: Tensor, parameters: Parameters) -> Parameters:
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    named = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(one) if gradient is None else gradient for (name, one), gradient in named}


def assert_near(found: Parameters, wanted: Parameters, tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        off = (found[name].double() - one).norm() / one.norm()
        assert off < tolerance, f"{name} is off by {off:.1e}"


def test_every_architecture_has_a_reference() -> None:
    assert {architecture for architecture, _ in CASES.values()} == set(ARCHITECTURES)
    assert CASES.keys() == REFERENCES.keys()


@pytest.mark.parametrize("dead", [(), DEAD[:3], DEAD], ids=["none dead", "fewer dead than k_aux", "more"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_are_those_of_the_papers_formula(case: str, dead: tuple[int, ...]) -> None:
    sae, x_BD, at = sae_of(case), random_rows(), context(dead=dead)
    exact = {name: one.detach().double().requires_grad_() for name, one in sae.named_parameters()}
    wanted = REFERENCES[case](exact, x_BD.double(), sae, at)
    loss = sae.losses(x_BD, at).total()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0.0)
    expected = gradients(wanted, exact)
    assert all(one.norm() > 0 for one in expected.values()), "a parameter that the loss cannot see proves nothing"
    assert_near(gradients(loss, dict(sae.named_parameters())), expected)


@pytest.mark.parametrize("case", CASES)
def test_b_dec_learns_through_the_decoder_and_through_the_encoders_centring(case: str) -> None:
    """With W_enc at 0 only the decoder's path is left; `april` does not centre."""
    sae, x_BD = sae_of(case), random_rows()
    whole_D = torch.autograd.grad(sae.losses(x_BD, context()).terms["reconstruction"].value, sae.b_dec)[0]
    forward = sae.losses(x_BD, context())
    by_decoder_D = 2 * (forward.x_hat_BD - x_BD).mean(0).detach() / D
    if case == "matryoshka":
        x_hats = [x_hat_BD.detach() for x_hat_BD in sae.reconstructions(forward.code)]
        by_decoder_D = torch.stack([2 * (one - x_BD).mean(0) / D for one in x_hats]).mean(0)
    by_encoder_D = whole_D - by_decoder_D
    if case == "relu april":
        torch.testing.assert_close(by_encoder_D, torch.zeros(D), atol=1e-7, rtol=0.0)
    else:
        assert by_encoder_D.norm() > 0.01 * whole_D.norm()


@pytest.mark.parametrize("case", CASES)
def test_losses_change_no_state(case: str) -> None:
    sae, x_BD = sae_of(case), random_rows()
    before = {name: one.clone() for name, one in sae.state_dict().items()}
    random, guess = torch.get_rng_state(), getattr(sae, "guess", None)
    first = sae.losses(x_BD, context(dead=DEAD)).total()
    second = sae.losses(x_BD, context(dead=DEAD)).total()
    assert torch.equal(first, second)
    assert torch.equal(random, torch.get_rng_state())
    assert getattr(sae, "guess", None) == guess
    assert all(torch.equal(one, before[name]) for name, one in sae.state_dict().items())
    assert all(one.grad is None for one in sae.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_saved_sae_computes_what_the_trained_one_does_in_eval_mode(case: str) -> None:
    sae, x_BD = sae_of(case), random_rows(1)
    sae.observe(sae.losses(random_rows(), context()), context())
    saved, f_BF = sae.inference(), sae.eval().encode(x_BD).dense.detach()
    if case == "relu april":  # saved with decoder rows of norm 1
        f_BF = f_BF * sae.W_dec.detach().norm(dim=1)
    assert 0.01 < (f_BF > 0).float().mean() < 0.9
    torch.testing.assert_close(saved.encode(x_BD), f_BF, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved.forward(x_BD), sae(x_BD).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_shares_no_memory_with_what_goes_on_learning(case: str) -> None:
    sae = sae_of(case)
    saved = sae.inference()
    before = {name: one.clone() for name, one in saved.tensors().items()}
    with torch.no_grad():
        for one in sae.parameters():
            one += 1
    assert all(torch.equal(one, before[name]) for name, one in saved.tensors().items())
