"""The fused optimiser step against torch's own operations."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from train.kernels import Adam, sparse

F, D = 301, 23


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(sparse, "_has_numba", lambda: request.param == "compiled")


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    w_dec_FD = nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
    return {
        "W_enc": nn.Parameter(w_dec_FD.clone().T),
        "b_enc": nn.Parameter(torch.zeros(F)),
        "W_dec": nn.Parameter(w_dec_FD),
        "scale": nn.Parameter(torch.ones(())),
    }


def gradients(steps: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        size = 10.0 ** (step % 3 - 2)  # some steps are clipped, some are not
        yield {name: size * torch.randn(one.shape, generator=generator) for name, one in parameters().items()}


def reference(steps: int, lr: float, clip: float, *, unit: bool) -> tuple[dict[str, nn.Parameter], list[float]]:
    own = parameters()
    adam = torch.optim.Adam(own.values(), lr=lr, betas=(0.9, 0.98), eps=1e-8)
    w_FD, norms = own["W_dec"], []
    for grads in gradients(steps):
        for name, grad in grads.items():
            own[name].grad = grad.clone()
        if unit:
            assert w_FD.grad is not None
            w_FD.grad -= (w_FD.grad * w_FD).sum(1, keepdim=True) * w_FD.detach()
        norms.append(float(nn.utils.clip_grad_norm_(own.values(), clip)))
        adam.step()
        with torch.no_grad():
            w_FD.copy_(nn.functional.normalize(w_FD, dim=1) if unit else w_FD)
    return own, norms


def give(own: dict[str, nn.Parameter], grads: dict[str, Tensor]) -> None:
    for name, grad in grads.items():
        own[name].grad = grad.clone()


@pytest.mark.parametrize("unit", [True, False])
def test_steps_are_those_of_adam_with_clipping_and_unit_rows(unit: bool) -> None:
    expected, norms = reference(7, 0.01, 1.0, unit=unit)
    own = parameters()
    adam = Adam(own, betas=(0.9, 0.98), unit_rows="W_dec" if unit else None)
    got = []
    for grads in gradients(7):
        give(own, grads)
        got.append(float(adam.step(0.01, 1.0)))
    assert got == pytest.approx(norms, rel=1e-5)
    for name, one in expected.items():
        torch.testing.assert_close(own[name], one, rtol=1e-5, atol=1e-6, msg=name)
        assert own[name].grad is None
    if unit:
        torch.testing.assert_close(own["W_dec"].norm(dim=1), torch.ones(F), rtol=1e-6, atol=1e-6)


def test_the_state_goes_on_to_the_bit_in_another_object() -> None:
    own, again = parameters(), parameters()
    adam = Adam(own, unit_rows="W_dec")
    for grads in gradients(3):
        give(own, grads)
        adam.step(0.01, 1.0)
    other = Adam(again, unit_rows="W_dec")
    other.load_state_tensors({name: one.clone() for name, one in adam.state_tensors().items()})
    for name, one in own.items():
        again[name].data.copy_(one.data)
    for grads in gradients(2):
        for parameter_set, optimiser in ((own, adam), (again, other)):
            give(parameter_set, grads)
            optimiser.step(0.005, 0.1)
    assert all(torch.equal(own[name], again[name]) for name in own)


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    own = parameters()
    adam = Adam(own, unit_rows="W_dec")
    own["b_enc"].grad = torch.ones(F)
    adam.step(0.01)
    assert torch.equal(own["W_dec"], parameters()["W_dec"])
    assert torch.allclose(own["b_enc"], torch.full((F,), -0.01))


def test_a_gradient_may_lie_in_memory_otherwise_than_its_parameter() -> None:
    own, twin = parameters(), parameters()
    (grads,) = gradients(1)
    give(own, grads)
    give(twin, grads)
    for name in ("W_enc", "W_dec"):
        twin[name].grad = grads[name].T.contiguous().T if name == "W_dec" else grads[name].contiguous()
        own[name].grad = grads[name].contiguous() if name == "W_dec" else grads[name].T.contiguous().T
    Adam(own).step(0.01)
    Adam(twin).step(0.01)
    assert all(torch.allclose(own[name], twin[name]) for name in own)
