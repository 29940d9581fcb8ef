"""Sparse encode and decode against dense autograd, and top-k against torch.topk, on every implementation at hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from train.kernels import Selected, decode, encode, select_top_k, select_top_n, sparse, sparse_from_dense

ROWS, D_MODEL, D_SAE = 37, 19, 517


@pytest.fixture(params=["compiled", "plain"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(request.param, monkeypatch)


@pytest.fixture(params=["compiled", "plain", "dense"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(request.param, monkeypatch)


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if name == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(sparse, "_has_numba", lambda: name == "compiled")
    monkeypatch.setattr(sparse.dense, "pays", lambda *size: name == "dense")
    return name


def weights(seed: int = 0, d_model: int = D_MODEL, d_sae: int = D_SAE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w_enc_FD, w_dec_FD = torch.randn(2, d_sae, d_model, generator=generator) / d_model**0.5
    b_enc_F, b_dec_D = torch.randn(d_sae, generator=generator) / 4, torch.randn(d_model, generator=generator)
    return w_enc_FD.T, b_enc_F, w_dec_FD, b_dec_D


def rows(seed: int = 1, n_rows: int = ROWS, d_model: int = D_MODEL) -> Tensor:
    return torch.randn(n_rows, d_model, generator=torch.Generator().manual_seed(seed))


def dense(selected: Selected, d_sae: int = D_SAE) -> Tensor:
    counts_B = selected.offsets.diff()
    rows_n = torch.arange(len(counts_B)).repeat_interleave(counts_B)
    assert torch.equal(torch.unique(rows_n * d_sae + selected.features_n), rows_n * d_sae + selected.features_n)
    out_BF = torch.full((len(counts_B), d_sae), -torch.inf)
    out_BF[rows_n, selected.features_n] = selected.values_n
    return out_BF


def heavy_tailed(x_BD: Tensor) -> Tensor:
    return x_BD.sign() * x_BD.abs() ** 6


def repeated(x_BD: Tensor) -> Tensor:
    return x_BD[:1].expand_as(x_BD).contiguous()


def tiny(x_BD: Tensor) -> Tensor:
    return x_BD * 1e-25


def huge(x_BD: Tensor) -> Tensor:
    return x_BD * 1e15


def nearly_equal_columns(w_DF: Tensor) -> Tensor:
    return (w_DF[:, :1] + 1e-4 * w_DF.T.contiguous().T).T.contiguous().T


def one_large_column(w_DF: Tensor) -> Tensor:
    w_FD = w_DF.T.clone()
    w_FD[3] *= 1e4
    return w_FD.T


@pytest.mark.parametrize("k", [1, 7, 64, 200, D_SAE])
@pytest.mark.parametrize("of_rows", [torch.clone, heavy_tailed, repeated, tiny, huge])
@pytest.mark.parametrize("of_weights", [torch.clone, nearly_equal_columns, one_large_column])
def test_the_top_k_are_those_of_float32(
    implementation: str, k: int, of_rows: Callable[[Tensor], Tensor], of_weights: Callable[[Tensor], Tensor]
) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    x_BD, w_enc_DF = of_rows(rows()), of_weights(w_enc_DF)
    pre_BF = (x_BD.double() @ w_enc_DF.double() + b_enc_F.double()).float()
    selected = select_top_k(x_BD, w_enc_DF, b_enc_F, k)
    got_BF = dense(selected)
    expected_Bk = pre_BF.topk(k).values
    scale = pre_BF.abs().max()
    torch.testing.assert_close(got_BF.topk(k).values, expected_Bk, rtol=1e-5, atol=1e-6 * float(scale))
    chosen_BF = got_BF > -torch.inf
    torch.testing.assert_close(got_BF[chosen_BF], pre_BF[chosen_BF], rtol=1e-5, atol=1e-6 * float(scale))
    assert selected.offsets.tolist() == list(range(0, ROWS * k + 1, k))


def test_rows_with_negative_pre_activations_only_have_a_top_k_too(implementation: str) -> None:
    w_enc_DF, _, _, _ = weights()
    b_enc_F = torch.full((D_SAE,), -100.0)
    selected = select_top_k(rows(), w_enc_DF, b_enc_F, 5)
    pre_BF = rows() @ w_enc_DF + b_enc_F
    torch.testing.assert_close(dense(selected).topk(5).values, pre_BF.topk(5).values)
    assert not encode(rows(), w_enc_DF, b_enc_F, selected).any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_has_nan_values_and_the_others_are_untouched(implementation: str, bad: float) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    x_BD = rows()
    good = select_top_k(x_BD, w_enc_DF, b_enc_F, 6)
    x_BD[4, 2] = bad
    selected = select_top_k(x_BD, w_enc_DF, b_enc_F, 6)
    broken_n = torch.arange(ROWS * 6) // 6 == 4
    assert selected.values_n[broken_n].isnan().all()
    assert selected.features_n.max() < D_SAE
    assert torch.equal(selected.values_n[~broken_n], good.values_n[~broken_n])
    batch = select_top_n(x_BD, w_enc_DF, b_enc_F, 100, 0.5)
    assert batch.values_n.isnan().sum() == 1
    assert len(batch.values_n) == 101
    assert torch.equal(dense(batch)[4].isnan().nonzero().flatten(), torch.tensor([0]))


@pytest.mark.parametrize("weight", ["w_enc", "b_enc"])
def test_weights_that_are_not_finite_give_nan(implementation: str, weight: str) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    (w_enc_DF.T if weight == "w_enc" else b_enc_F)[11] = torch.nan
    assert select_top_k(rows(), w_enc_DF, b_enc_F, 6).values_n.isnan().all()
    assert select_top_n(rows(), w_enc_DF, b_enc_F, 50, 0.1).values_n.isnan().any()


@pytest.mark.parametrize("guess", [0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1e-9, 0.8, 1.5, 2.0, 50.0])
@pytest.mark.parametrize("n", [1, 100, 1000])
@pytest.mark.parametrize("of_rows", [torch.clone, heavy_tailed, repeated])
def test_the_top_n_of_a_batch_are_those_of_float32_for_any_guess(
    implementation: str, guess: float, n: int, of_rows: Callable[[Tensor], Tensor]
) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    x_BD = of_rows(rows())
    pre_BF = (x_BD.double() @ w_enc_DF.double() + b_enc_F.double()).float()
    selected = select_top_n(x_BD, w_enc_DF, b_enc_F, n, guess)
    torch.testing.assert_close(
        selected.values_n.sort(descending=True).values, pre_BF.flatten().topk(n).values, rtol=1e-5, atol=1e-5
    )
    got_BF = dense(selected)
    chosen_BF = got_BF > -torch.inf
    torch.testing.assert_close(got_BF[chosen_BF], pre_BF[chosen_BF], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guess", [0.0, 0.3])
def test_the_top_n_of_a_batch_stop_at_the_positive_ones(implementation: str, guess: float) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    b_enc_F = b_enc_F - 2
    n_positive = int((rows() @ w_enc_DF + b_enc_F > 0).sum())
    selected = select_top_n(rows(), w_enc_DF, b_enc_F, n_positive + 500, guess)
    assert len(selected.values_n) == n_positive > 50
    assert selected.values_n.min() > 0
    nothing = select_top_n(rows(), w_enc_DF, b_enc_F - 100, 50, guess)
    assert nothing.offsets.tolist() == [0] * (ROWS + 1)


def test_the_guess_changes_no_bit_of_the_top_n(implementation: str) -> None:
    w_enc_DF, b_enc_F, _, _ = weights()
    results = [select_top_n(rows(), w_enc_DF, b_enc_F, 300, guess) for guess in (torch.inf, 0.01, 1.0, 1.4, 9.0)]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_processor_without_fast_bfloat16_gets_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from train.kernels import selection

    w_enc_DF, b_enc_F, _, _ = weights()
    found = []
    for fast in (True, False):
        monkeypatch.setattr(selection, "bfloat16_is_fast", lambda fast=fast: fast)
        found.append([*select_top_k(rows(), w_enc_DF, b_enc_F, 6), *select_top_n(rows(), w_enc_DF, b_enc_F, 300, 1.2)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("guess", "products"), [(0.98, 1), (1.0, 1), (1.02, 1), (0.0, 2), (1.5, 2), (0.1, 2)])
def test_a_good_guess_saves_the_second_product(monkeypatch: pytest.MonkeyPatch, guess: float, products: int) -> None:
    pytest.importorskip("numba")
    from train.kernels.selection import Screen

    product, calls = Screen.product, []
    monkeypatch.setattr(Screen, "product", lambda screen, *tile: (calls.append(tile), product(screen, *tile))[1])
    w_enc_DF, b_enc_F, _, _ = weights()
    cut = float(select_top_n(rows(), w_enc_DF, b_enc_F, 200, 0.0).values_n.min())
    calls.clear()
    select_top_n(rows(), w_enc_DF, b_enc_F, 200, guess * cut)
    assert len(calls) == products


def one_step(x_BD: Tensor, parameters: list[Tensor], k: int) -> list[Tensor]:
    """Loss, x̂, and gradients of everything, with a penalty on the codes and one on W_dec beside the reconstruction."""
    x_BD = x_BD.clone().requires_grad_()
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = leaves = [one.detach().clone().requires_grad_() for one in parameters]
    bias_F = b_enc_F - b_dec_D @ w_enc_DF
    selected = select_top_k(x_BD, w_enc_DF, bias_F, k)
    values_n = encode(x_BD, w_enc_DF, bias_F, selected)
    x_hat_BD = decode(values_n, selected.features_n, selected.offsets, w_dec_FD, b_dec_D)
    loss = ((x_hat_BD - x_BD) ** 2).mean() + 0.1 * (values_n**2).mean() + 0.2 * (w_dec_FD**3).mean()
    loss.backward()
    return [loss.detach(), x_hat_BD.detach(), *(one.grad for one in (x_BD, *leaves) if one.grad is not None)]


def dense_step(x_BD: Tensor, parameters: list[Tensor], k: int) -> list[Tensor]:
    """The same in float64 and with dense codes."""
    x_BD = x_BD.double().requires_grad_()
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = leaves = [one.detach().double().requires_grad_() for one in parameters]
    values_Bk, features_Bk = ((x_BD - b_dec_D) @ w_enc_DF + b_enc_F).topk(k)
    f_BF = torch.zeros(len(x_BD), D_SAE, dtype=torch.float64).scatter(1, features_Bk, values_Bk.relu())
    x_hat_BD = f_BF @ w_dec_FD + b_dec_D
    loss = ((x_hat_BD - x_BD) ** 2).mean() + 0.1 * (f_BF**2).sum() / (len(x_BD) * k) + 0.2 * (w_dec_FD**3).mean()
    loss.backward()
    return [loss.detach(), x_hat_BD.detach(), *(one.grad for one in (x_BD, *leaves) if one.grad is not None)]


@pytest.mark.parametrize("k", [1, 6, 200])
def test_a_sparse_step_has_the_gradients_of_a_dense_one(product: str, k: int) -> None:
    parameters = list(weights())
    parameters[1] = parameters[1] - 1.0  # with k 200 some of the selected are negative
    got, expected = one_step(rows(), parameters, k), dense_step(rows(), parameters, k)
    assert len(got) == len(expected) == 7
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6)


def test_gradients_have_the_strides_of_their_parameters() -> None:
    _, _, w_enc_grad_DF, _, w_dec_grad_FD, _ = one_step(rows(), list(weights()), 6)[1:]
    assert w_enc_grad_DF.stride() == (1, D_MODEL)
    assert w_dec_grad_FD.stride() == (D_MODEL, 1)


def test_gradients_of_several_batches_add_up_and_old_ones_stay(product: str) -> None:
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = (one.clone().requires_grad_() for one in weights())

    def loss(seed: int) -> Tensor:
        selected = select_top_k(rows(seed), w_enc_DF, b_enc_F, 6)
        values_n = encode(rows(seed), w_enc_DF, b_enc_F, selected)
        return (decode(values_n, selected.features_n, selected.offsets, w_dec_FD, b_dec_D) ** 2).mean()

    apart = [torch.autograd.grad(loss(seed), (w_enc_DF, w_dec_FD)) for seed in (3, 4, 5)]
    for seed in (3, 4, 5):
        loss(seed).backward()
    for sparse_sum, parts in zip((w_enc_DF.grad, w_dec_FD.grad), zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(sparse_sum, parts[0] + parts[1] + parts[2])


def test_a_step_is_the_same_to_the_bit_whatever_the_number_of_threads() -> None:
    pytest.importorskip("numba")
    threads = torch.get_num_threads()
    x_BD, parameters = rows(n_rows=700, d_model=40), list(weights(d_model=40))
    parameters = [one.clone() for one in parameters]
    steps = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            batch = select_top_n(x_BD, parameters[0], parameters[1], 3000, 1.0)
            bias_F = parameters[1]
            selected = select_top_k(x_BD, parameters[0], bias_F, 6)
            kernels = sparse._kernels(x_BD)
            out_BD = kernels.gather_sum(*selected, parameters[2], parameters[3])
            steps.append(
                [
                    *batch,
                    *selected,
                    out_BD,
                    kernels.gather_dot(*selected[1:], parameters[2], out_BD),
                    *kernels.scatter_sum(*selected, out_BD, D_SAE),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in steps[1:] for a, b in zip(steps[0], other, strict=True))


@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
def test_dense_codes_decode_sparsely_to_the_same(product: str, density: float) -> None:
    _, _, w_dec_FD, b_dec_D = weights()
    generator = torch.Generator().manual_seed(5)
    f_BF = torch.rand(ROWS, D_SAE, generator=generator) * (torch.rand(ROWS, D_SAE, generator=generator) < density)
    f_BF.requires_grad_()
    selected = sparse_from_dense(f_BF)
    assert len(selected.values_n) == int((f_BF > 0).sum())
    decode(*selected, w_dec_FD, b_dec_D).pow(2).sum().backward()
    sparse_grad_BF, f_BF.grad = f_BF.grad, None
    (f_BF @ w_dec_FD + b_dec_D).pow(2).sum().backward()
    assert sparse_grad_BF is not None
    assert f_BF.grad is not None
    torch.testing.assert_close(sparse_grad_BF, f_BF.grad.where(f_BF > 0, 0), rtol=1e-4, atol=1e-4)


def test_an_empty_batch_is_an_empty_result(product: str) -> None:
    w_enc_DF, b_enc_F, w_dec_FD, b_dec_D = weights()
    selected = select_top_k(rows(n_rows=0), w_enc_DF, b_enc_F, 6)
    assert selected.offsets.tolist() == [0]
    assert decode(*selected, w_dec_FD, b_dec_D).shape == (0, D_MODEL)


def test_dense_products_take_over_on_a_gpu_where_the_codes_are_dense() -> None:
    cuda = torch.device("cuda")
    assert sparse.dense.pays(2048 * 320, 2048, 18432, cuda)
    assert not sparse.dense.pays(8192 * 64, 8192, 65536, cuda)
    assert not sparse.dense.pays(2048 * 320, 2048, 18432, torch.device("cpu"))
