"""Products of rounded operands: what they change, what they leave alone, and that a run keeps to what it was asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_runs import make_cache, request, run
from tests.train.planted_training import D, as_rows, member, planted_batches, planted_directions, train
from tests.train.test_loop import final
from train import kernels
from train.errors import TrainError
from train.kernels import dense, products, sparse
from train.kernels.products import PRODUCTS
from train.member import Member
from train.sae import fvu

CPU = torch.device("cpu")
ROUNDING = 2**-8


@pytest.fixture(autouse=True)
def dense_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU at dense codes; on a CPU without numba they run too."""
    monkeypatch.setattr(sparse, "_kernels", lambda *_: dense)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_rounded_products_are_those_of_rounded_operands_in_float32() -> None:
    a_MK, b_KN, bias_N = normal(40, 300), normal(300, 50), normal(50)
    with products.using("bfloat16", CPU):
        found_MN = products.addmm(bias_N, a_MK, b_KN)
    wanted_MN = a_MK.bfloat16().double() @ b_KN.bfloat16().double() + bias_N.double()
    assert found_MN.dtype == torch.float32
    assert (found_MN - wanted_MN).abs().max() < 1e-4
    assert (found_MN - (a_MK.double() @ b_KN.double() + bias_N)).abs().max() > 1e-3, "the operands were rounded"


@pytest.mark.parametrize("asked", ["auto", "float32", "tf32"])
def test_on_a_cpu_all_others_are_float32s_own(asked: str) -> None:
    a_MK, b_KN, bias_N = normal(40, 300), normal(300, 50), normal(50)
    before = torch.get_float32_matmul_precision()
    with products.using(asked, CPU):
        assert torch.get_float32_matmul_precision() == before
        assert torch.equal(products.mm(a_MK, b_KN), a_MK @ b_KN)
        assert torch.equal(products.addmm(bias_N, a_MK, b_KN), torch.addmm(bias_N, a_MK, b_KN))


def test_on_a_gpu_float32s_precision_is_set_for_the_step_alone() -> None:
    before = torch.get_float32_matmul_precision()
    for asked, inside in (("float32", "highest"), ("tf32", "high"), ("auto", before), ("bfloat16", before)):
        with products.using(asked, torch.device("cuda")):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before
        assert products._asked == "auto"


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "top_k": lambda x_BD, w_FD: dense.top_k(x_BD, w_FD, torch.zeros(200), 200)[0],
    "top_n": lambda x_BD, w_FD: dense.top_n(x_BD, w_FD, torch.full((200,), 100.0), 60 * 200, 0.0)[0],
    "gather_sum": lambda x_BD, w_FD: dense.gather_sum(x_BD.flatten(), *EVERY, w_FD[:48], torch.zeros(48)),
    "gather_dot": lambda x_BD, w_FD: dense.gather_dot(*EVERY, w_FD[:48], x_BD),
    "scatter_sum": lambda x_BD, w_FD: dense.scatter_sum(w_FD[:60].flatten(), *EVERY, x_BD, 48)[0],
}
EVERY = torch.arange(48).repeat(60), torch.arange(0, 60 * 48 + 1, 48)
"""Latents and offsets of codes that are on everywhere."""


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_dense_product_has_its_operands_rounded(name: str) -> None:
    operation, x_BD, w_FD = OPERATIONS[name], normal(60, 48), normal(200, 48)
    with products.using("bfloat16", CPU):
        found = operation(x_BD, w_FD)
    wanted = operation(x_BD.bfloat16().float(), w_FD.bfloat16().float())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert (found - operation(x_BD, w_FD)).abs().max() > 1e-3


def gradients(dtype: torch.dtype) -> list[Tensor]:
    """Of a sparse encode and decode, by hand in float64 or by the kernels, at the same selection."""
    x_BD, w_enc_DF, w_dec_FD = normal(60, 48), normal(48, 400), normal(400, 48)
    bias_F, bias_D = 0.1 * normal(400), 0.1 * normal(48)
    selected = kernels.select_top_k(x_BD, w_enc_DF, bias_F, 20)
    leaves = [one.to(dtype).requires_grad_() for one in (w_enc_DF, bias_F, w_dec_FD, bias_D)]
    encoder, offset, decoder, shift = leaves
    rows_n = torch.arange(60).repeat_interleave(20)
    if dtype == torch.float64:
        pre_n = (x_BD.double() @ encoder + offset)[rows_n, selected.features_n]
        f_BF = torch.zeros(60, 400, dtype=dtype).index_put((rows_n, selected.features_n), pre_n.relu())
        x_hat_BD = f_BF @ decoder + shift
    else:
        with products.using("bfloat16", CPU):
            chosen = kernels.select_top_k(x_BD, encoder.detach(), offset.detach(), 20)
            assert (chosen.features_n == selected.features_n).float().mean() > 0.9
            selected = selected._replace(values_n=products.addmm(bias_F, x_BD, w_enc_DF)[rows_n, selected.features_n])
            values_n = kernels.encode(x_BD, encoder, offset, selected)
            x_hat_BD = kernels.decode(values_n, selected.features_n, selected.offsets, decoder, shift)
            (x_hat_BD - x_BD).square().mean().backward()
            return [x_hat_BD.detach(), *(one.grad for one in leaves if one.grad is not None)]
    (x_hat_BD - x_BD).square().mean().backward()
    return [x_hat_BD.detach(), *(one.grad for one in leaves if one.grad is not None)]


def test_reconstructions_and_gradients_are_those_of_float64_but_for_rounding() -> None:
    for found, wanted in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        off = (found - wanted).norm() / wanted.norm()
        assert off < ROUNDING
        assert off > ROUNDING / 2**8, "something was rounded"


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_a_short_run_explains_as_much_variance_as_in_float32(architecture: str) -> None:
    found = {}
    for asked in ("float32", "bfloat16"):
        one = member(architecture, d_sae=2 * D, k=4, steps=300, lr=3e-3, warmup=10, products=asked)
        batches = planted_batches(planted_directions(24), active=3)
        sae = train(one, batches)
        x_BD = torch.cat([next(batches) for _ in range(20)])
        found[asked] = float(fvu(x_BD, sae(x_BD).detach()))
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.01)


def test_rounded_selection_chooses_nearly_the_same_latents() -> None:
    x_BD, w_DF, bias_F = normal(256, 256), torch.nn.functional.normalize(normal(256, 4096), dim=0), torch.zeros(4096)
    with products.using("bfloat16", CPU):
        rounded = kernels.select_top_k(x_BD, w_DF, bias_F, 32)
    exact = kernels.select_top_k(x_BD, w_DF, bias_F, 32)
    rows_n = torch.arange(256).repeat_interleave(32)
    on_BF = torch.zeros(256, 4096).index_put((rows_n, exact.features_n), torch.ones(()))
    assert on_BF[rows_n, rounded.features_n].mean() > 0.985
    assert (rounded.values_n.sort().values / exact.values_n.sort().values - 1).abs().max() < ROUNDING


def test_members_that_take_turns_keep_their_own_precision() -> None:
    together = {asked: member("topk", k=4, products=asked) for asked in PRODUCTS}
    alone = {asked: member("topk", k=4, products=asked) for asked in PRODUCTS}
    batches = planted_batches(planted_directions(), active=3)
    rows = [as_rows(next(batches)) for _ in range(5)]
    for one in rows:
        for each in together.values():
            each.step(one, report=False)
    for each in alone.values():
        for one in rows:
            each.step(one, report=False)
    weights = {asked: one.sae.W_dec.detach() for asked, one in together.items()}
    assert all(torch.equal(weights[asked], alone[asked].sae.W_dec) for asked in PRODUCTS)
    assert torch.equal(weights["auto"], weights["tf32"])
    assert not torch.equal(weights["auto"], weights["bfloat16"])


def test_a_rounded_run_that_is_cut_off_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = make_cache(tmp_path / "cache")
    requests = [request("topk", products="bfloat16")]
    (whole,) = run(planted, tmp_path / "whole", requests)
    step, count = Member.step, iter(range(10**6))

    def cut(one: Member, *given: Any, **named: Any) -> None:
        if next(count) == 17:
            raise KeyError
        step(one, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "step", cut)
        with pytest.raises(KeyError):
            run(planted, tmp_path / "cut", requests)
    (resumed,) = run(planted, tmp_path / "cut", requests)
    a, b = final(whole), final(resumed)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert json.loads((whole / "config.json").read_text())["training"]["products"] == "bfloat16"
    assert resumed.name == whole.name != run(planted, tmp_path / "other", [request("topk")])[0].name


def test_what_has_dense_codes_refuses_rounded_products() -> None:
    with pytest.raises(TrainError, match="products=bfloat16 needs sparse codes"):
        member("gated", products="bfloat16")
    with pytest.raises(TrainError, match="products must be one of auto, float32, tf32, bfloat16, got 'half'"):
        member("topk", k=4, products="half")
