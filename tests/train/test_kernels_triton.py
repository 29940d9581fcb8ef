"""The Triton kernels, run by Triton's interpreter on the CPU, against their plain twins and dense float64."""

import re
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from train import kernels
from train.kernels import plain, sparse

pytest.importorskip("triton", minversion="3.7")  # older interpreters fail with numpy 2.4

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

D_SAE, CHUNK = 61, 16
TOLERANCE: Any = {"rtol": 1e-5, "atol": 2e-5}


class Codes(NamedTuple):
    values_n: Tensor
    features_n: Tensor
    offsets: Tensor


@pytest.fixture(scope="module")
def private_copy() -> ModuleType:
    """A copy of the module of its own: nobody else ever gets interpreted kernels."""
    spec = find_spec("train.kernels.triton_sparse")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is decorated
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def interpreted(private_copy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its kernels at work on small chunks, and a sum for them: triton's own was decorated for the compiler."""
    monkeypatch.setattr(private_copy, "_CHUNK", CHUNK)
    monkeypatch.setattr(tl, "sum", lambda values, axis: tl.reduce(values, axis, tl.standard._sum_combine))
    return private_copy


@pytest.fixture
def dispatched(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_kernels", lambda *which: interpreted)


def codes(counts: list[int], *, everywhere: int | None = None, seed: int = 0) -> Codes:
    """So many entries a row, latents ascending; values of both signs, some of them 0. `everywhere` is in all rows."""
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randperm(D_SAE, generator=generator)[:count] for count in counts]
    if everywhere is not None:
        latents = [torch.cat((one[one != everywhere], torch.tensor([everywhere]))) for one in latents]
    features_n = torch.cat([one.sort().values for one in latents] or [torch.empty(0, dtype=torch.int64)])
    values_n = torch.randn(len(features_n), generator=generator)
    values_n[::7] = 0
    sizes = torch.tensor([0, *(len(one) for one in latents)])
    return Codes(values_n, features_n, sizes.cumsum(0))


def tensors(rows: int, d_model: int, d_sae: int = D_SAE) -> tuple[Tensor, Tensor, Tensor]:
    """w [F, D], x [B, D], bias [D]."""
    generator = torch.Generator().manual_seed(1)
    shapes = (d_sae, d_model), (rows, d_model), (d_model,)
    w_FD, x_BD, bias_D = (torch.randn(shape, generator=generator) for shape in shapes)
    return w_FD, x_BD, bias_D


def all_operations(
    module: ModuleType, entries: Codes, w_FD: Tensor, x_BD: Tensor, bias_D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_FD, grad_F = module.scatter_sum(*entries, x_BD, len(w_FD))
    return (
        module.gather_sum(*entries, w_FD, bias_D),
        module.gather_dot(entries.features_n, entries.offsets, w_FD, x_BD),
        grad_FD,
        grad_F,
    )


def dense_operations(entries: Codes, w_FD: Tensor, x_BD: Tensor, bias_D: Tensor) -> tuple[Tensor, ...]:
    values_n, features_n, offsets = entries
    rows_n = torch.arange(len(x_BD)).repeat_interleave(offsets.diff())
    f_BF = torch.zeros(len(x_BD), len(w_FD), dtype=torch.float64)
    f_BF[rows_n, features_n] = values_n.double()
    products_BF = x_BD.double() @ w_FD.double().T
    return (
        f_BF @ w_FD.double() + bias_D.double(),
        products_BF[rows_n, features_n],
        f_BF.T @ x_BD.double(),
        f_BF.sum(0),
    )


CASES = {
    "a few entries a row, some none": codes([3, 0, 7, 8, 9, 0, 1, 15, 17, 0]),
    "one latent a row": codes([1] * 11),
    "a giant row between empty ones": codes([0, 2, D_SAE, 0, 1]),
    "rows that end where a chunk ends": codes([16, 16, 32, 15, 1, 17, 0, 31, 48]),
    "a latent of all rows": codes([2] * 53, everywhere=40),
    "all latents in all rows": codes([D_SAE] * 3),
    "no entries": codes([0, 0, 0]),
    "no rows": codes([]),
}


@pytest.mark.parametrize("d_model", [1, 19, 300])
@pytest.mark.parametrize("case", CASES)
def test_each_operation_gives_what_plain_and_dense_ones_give(interpreted: ModuleType, case: str, d_model: int) -> None:
    entries = CASES[case]
    operands = tensors(len(entries.offsets) - 1, d_model)
    got = all_operations(interpreted, entries, *operands)
    expected = all_operations(plain, entries, *operands)
    exact = dense_operations(entries, *operands)
    for one, other, true in zip(got, expected, exact, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **TOLERANCE)
        torch.testing.assert_close(one.double(), true, **TOLERANCE)


def test_a_row_of_several_chunks_of_the_usual_size_is_summed_once(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreted, "_CHUNK", 128)
    n = 700
    entries = Codes(torch.ones(n), torch.arange(n), torch.tensor([0, 5, n]))
    w_FD, _, bias_D = tensors(2, 4, n)
    expected_BD = torch.stack((w_FD[:5].sum(0), w_FD[5:].sum(0))) + bias_D
    torch.testing.assert_close(interpreted.gather_sum(*entries, w_FD, bias_D), expected_BD, rtol=1e-5, atol=1e-4)


def test_latents_that_no_row_uses_have_a_gradient_of_zero(interpreted: ModuleType) -> None:
    entries = codes([4, 5, 6])
    grad_FD, grad_F = interpreted.scatter_sum(*entries, torch.ones(3, 5), D_SAE)
    unused_F = torch.ones(D_SAE, dtype=torch.bool).index_fill(0, entries.features_n, False)
    assert unused_F.sum() >= D_SAE - 15
    assert not grad_FD[unused_F].any()
    assert not grad_F[unused_F].any()


def test_the_last_of_many_latents_is_found(interpreted: ModuleType) -> None:
    d_sae = 2**17
    entries = Codes(torch.tensor([1.0, -2.0]), torch.tensor([d_sae - 2, d_sae - 1]), torch.tensor([0, 2]))
    w_FD, x_BD, bias_D = tensors(1, 3, d_sae)
    got_BD = interpreted.gather_sum(*entries, w_FD, bias_D)
    torch.testing.assert_close(got_BD[0], w_FD[-2] - 2 * w_FD[-1] + bias_D)
    torch.testing.assert_close(interpreted.gather_dot(*entries[1:], w_FD, x_BD), w_FD[-2:] @ x_BD[0])


def a_value(entries: Codes, w_FD: Tensor, x_BD: Tensor, bad: float) -> None:
    entries.values_n[5] = bad


def a_row(entries: Codes, w_FD: Tensor, x_BD: Tensor, bad: float) -> None:
    x_BD[2, 1] = bad


def a_latent(entries: Codes, w_FD: Tensor, x_BD: Tensor, bad: float) -> None:
    w_FD[entries.features_n[-1], 0] = bad


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of 0 · inf
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("spoil", [a_value, a_row, a_latent])
@pytest.mark.parametrize("counts", [[3, 0, 5, 8, 9], [60, 4, 50, 3]])
def test_what_is_not_finite_comes_through_where_plain_lets_it_and_nowhere_else(
    interpreted: ModuleType, spoil: Callable[..., None], bad: float, counts: list[int]
) -> None:
    entries = codes(counts)
    w_FD, x_BD, bias_D = tensors(len(counts), 9)
    spoil(entries, w_FD, x_BD, bad)
    got = all_operations(interpreted, entries, w_FD, x_BD, bias_D)
    expected = all_operations(plain, entries, w_FD, x_BD, bias_D)
    assert not all(one.isfinite().all() for one in expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, **TOLERANCE)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_latent_or_row_without_entries_harms_nothing(interpreted: ModuleType, bad: float) -> None:
    values_n, features_n, offsets = codes([0, 3, 20, 8])
    w_FD, x_BD, bias_D = tensors(4, 9, D_SAE + 1)
    w_FD[0], x_BD[0] = bad, bad
    got = all_operations(interpreted, Codes(values_n, features_n + 1, offsets), w_FD, x_BD, bias_D)
    assert all(one.isfinite().all() for one in got)


def test_inputs_may_lie_in_memory_as_they_like(interpreted: ModuleType) -> None:
    entries = codes([3, 0, 40, 4])
    w_FD, _, bias_D = tensors(4, 10)
    x_BD = torch.arange(10.0).expand(4, 10)
    strided = Codes(*(one.repeat_interleave(2)[::2] for one in entries))
    spread_D = bias_D.repeat_interleave(3)[::3]
    together = all_operations(interpreted, entries, w_FD, x_BD.contiguous(), bias_D)
    apart = all_operations(interpreted, strided, w_FD.T.contiguous().T, x_BD, spread_D)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


def sparse_step(x_BD: Tensor, leaves: list[Tensor], n: int | None, k: int) -> tuple[kernels.Selected, Tensor]:
    """The k latents of each row, or the n of the batch, with the step's loss."""
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = leaves
    frozen = x_BD.detach(), w_enc_DF.detach(), b_enc_F.detach()
    selected = kernels.select_top_n(*frozen, n, 0.0) if n else kernels.select_top_k(*frozen, k)
    values_n = kernels.encode(x_BD, w_enc_DF, b_enc_F, selected)
    x_hat_BD = kernels.decode(values_n, selected.features_n, selected.offsets, w_dec_FD, b_dec_D)
    return selected, (x_hat_BD - x_BD).square().sum() + values_n.pow(3).sum()


def dense_step(x_BD: Tensor, leaves: list[Tensor], selected: kernels.Selected) -> Tensor:
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = leaves
    rows_n = torch.arange(len(x_BD)).repeat_interleave(selected.offsets.diff())
    chosen_BF = torch.zeros(len(x_BD), w_enc_DF.shape[1], dtype=torch.float64)
    chosen_BF[rows_n, selected.features_n] = 1
    f_BF = (x_BD @ w_enc_DF + b_enc_F).relu() * chosen_BF
    return (f_BF @ w_dec_FD + b_dec_D - x_BD).square().sum() + f_BF.pow(3).sum()


@pytest.mark.usefixtures("dispatched")
@pytest.mark.parametrize(("n", "k"), [(None, 1), (None, 6), (None, 40), (150, 0)])
def test_a_step_has_the_gradients_of_the_dense_formula(n: int | None, k: int) -> None:
    """With k 40 some of the selected are negative, and each latent is in most rows."""
    w_FD, x_BD, bias_D = tensors(17, 13)
    w_dec_FD, _, _ = tensors(1, 13)
    inputs = [x_BD, w_FD.flip(0).T / 4, torch.linspace(-1, 0.5, D_SAE), w_dec_FD / 4, bias_D]
    single = [one.clone().requires_grad_() for one in inputs]
    double = [one.double().requires_grad_() for one in inputs]
    selected, loss = sparse_step(single[0], single[1:], n, k)
    dense_loss = dense_step(double[0], double[1:], selected)
    torch.testing.assert_close(loss.double(), dense_loss, rtol=1e-5, atol=0)
    loss.backward()
    dense_loss.backward()
    for one, other in zip(single, double, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5 * float(other.grad.abs().max()))


def test_cuda_tensors_get_triton_where_it_is_installed_and_the_codes_are_sparse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeTensorMode():
        single = torch.empty(2, device="cuda")
        double = torch.empty(2, device="cuda", dtype=torch.float64)
    assert sparse._kernels(single, 64 * 8192, 8192, 65536).__name__ == "train.kernels.triton_sparse"
    assert sparse._kernels(single, 320 * 2048, 2048, 18432) is sparse.dense
    assert sparse._kernels(double) is plain
    monkeypatch.setattr(sparse, "_has_triton", lambda: False)
    assert sparse._kernels(single) is plain


FLOATS, INTEGERS, BLOCK = "*fp32", "*i64", {"ENTRIES": 8, "COLUMNS": 256}
BAG = {"out_BD": FLOATS, "firsts": INTEGERS, "lasts": INTEGERS, "values_n": FLOATS, "indices_n": INTEGERS}
TABLES = {"table_MD": FLOATS, "zeros_D": FLOATS, "sums_CD": FLOATS, "bias_D": FLOATS, "d_model": "i32"}
DOT = {"out_n": FLOATS, "features_n": INTEGERS, "rows_n": INTEGERS, "w_FD": FLOATS, "x_BD": FLOATS}
COMPILED = {
    "chunks": ("_bag_kernel", BAG | TABLES, {"CHUNK": 128, "sums_CD": None, "bias_D": None, **BLOCK}),
    "bags": ("_bag_kernel", BAG | TABLES, {"CHUNK": 128, **BLOCK}),
    "bags of numbers": ("_bag_kernel", BAG | TABLES, {"CHUNK": 128, "d_model": 1, "ENTRIES": 8, "COLUMNS": 1}),
    "totals": ("_total_kernel", {"out_F": FLOATS, "values_n": FLOATS, "offsets": INTEGERS}, {"SPAN": 256}),
    "dots": ("_dot_kernel", DOT | {"n": "i32", "d_model": "i32"}, BLOCK),
    "one dot of numbers": ("_dot_kernel", DOT, {"n": 1, "d_model": 1, "ENTRIES": 8, "COLUMNS": 1}),
}


@pytest.mark.parametrize("case", COMPILED)
def test_the_kernels_compile_for_an_h200_and_use_no_atomics(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the interpreter lets pass, the compiler may not; it needs no GPU."""
    from train.kernels import triton_sparse

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    name, types, constants = COMPILED[case]
    kernel = getattr(triton_sparse, name)
    signature = {one: "constexpr" if one in constants else types[one] for one in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, one in enumerate(signature) if one in types}
    source = ASTSource(kernel, signature, constants, {} if "d_model" in constants else aligned)
    assembly = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 2}).asm["ptx"]
    assert "ld.global" in assembly
    assert not re.search(r"\b(atom|red)\.", assembly)
