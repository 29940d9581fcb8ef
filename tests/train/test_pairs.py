"""The pair engine against dense references that look at all F × F pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from train.codes import Code, Entries
from train.penalties import pairs
from train.penalties.pairs import Neighbours, Pairs, overlap

F, D = 256, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram_of(w_FD: Tensor) -> Tensor:
    unit_FD = normalize(w_FD, dim=1)
    return unit_FD @ unit_FD.T


def sparse_code(n_rows: int = 40, d_sae: int = F, share: float = 0.05, seed: int = 0) -> Code:
    """Ragged rows, among them one that is empty and one that is far longer than the mean."""
    dense_BF = random(n_rows, d_sae, seed=seed).abs() * (
        torch.rand(n_rows, d_sae, generator=torch.Generator().manual_seed(seed + 1)) < share
    )
    dense_BF[3] = 0
    return as_entries(dense_BF)


def as_entries(dense_BF: Tensor) -> Code:
    values_n, features_n, offsets = Code(dense_BF.shape[1], dense_BF=dense_BF).entries
    return Code(dense_BF.shape[1], entries=Entries(values_n, features_n, offsets))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few pairs, so that tests see more than one."""
    monkeypatch.setattr(overlap, "_BYTES", {"cpu": 1000})


def gradient_of(value: Tensor, of: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, of)
    return gradient


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("floor", [0.0, 0.15, -0.1])
def test_the_hinge_and_its_gradient_are_autograds_of_the_dense_formula(floor: float) -> None:
    w_FD = (random(F, D).double() * (0.5 + torch.rand(F, 1))).requires_grad_()
    i, j = torch.triu_indices(F, F, 1)
    chosen = torch.randperm(len(i), generator=torch.Generator().manual_seed(1))[:300].sort().values
    weight_P = torch.rand(300, dtype=torch.float64)
    pairs_P = Pairs(i[chosen], j[chosen], torch.ones(300))
    value = pairs.hinge(w_FD, pairs_P, weight_P, floor=floor)
    dense = (weight_P * (gram_of(w_FD)[i[chosen], j[chosen]] - floor).clamp_min(0).square()).sum()
    torch.testing.assert_close(value, dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(3 * gradient_of(value, w_FD), gradient_of(3 * dense, w_FD), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
def test_sums_over_active_sets_are_the_coactivation_weighted_sum_over_all_pairs() -> None:
    """Σ_ij C_ij [cos_ij]₊² = E_b over the small Gram matrices of the active latents, values and gradients."""
    w_FD, code = random(F, D).double().requires_grad_(), sparse_code()
    features_sm, values_sm = pairs.active(code, torch.arange(40), F)
    value = pairs.gram(w_FD, features_sm, values_sm.double())
    together_FF = (code.dense.double().T @ code.dense.double()).fill_diagonal_(0)
    dense = (together_FF * gram_of(w_FD).clamp_min(0).square()).sum()
    torch.testing.assert_close(value, dense, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient_of(value, w_FD), gradient_of(dense, w_FD), rtol=1e-10, atol=1e-10)


def test_a_gradient_can_be_taken_twice_as_reports_do() -> None:
    w_FD = random(F, D).requires_grad_()
    features_sm, values_sm = pairs.active(sparse_code(), torch.arange(40), 8)
    value = pairs.gram(w_FD, features_sm, values_sm)
    (first,) = torch.autograd.grad(value, w_FD, retain_graph=True)
    kept = first.clone()
    torch.testing.assert_close(gradient_of(value, w_FD), kept, rtol=0, atol=0)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@pytest.mark.parametrize("most", [2, 5, 40])
def test_the_largest_entries_of_each_row_are_found_in_rows_of_any_length(most: int) -> None:
    code = sparse_code(share=0.02)
    rows = torch.tensor([0, 3, 7, 39])
    features_sm, values_sm = pairs.active(code, rows, most)
    for row, features_m, values_m in zip(rows, features_sm, values_sm, strict=True):
        expected = code.dense[row].sort(descending=True).values[: len(values_m)]
        torch.testing.assert_close(values_m.sort(descending=True).values, expected, rtol=0, atol=0)
        there = values_m > 0
        torch.testing.assert_close(code.dense[row][features_m[there]], values_m[there], rtol=0, atol=0)
        assert (features_m.diff() >= 0).all()


def test_dense_codes_have_the_same_largest_entries_as_sparse_ones() -> None:
    code = sparse_code()
    rows = torch.arange(0, 40, 3)
    sparse, dense = pairs.active(code, rows, 6), pairs.active(Code(F, dense_BF=code.dense), rows, 6)
    torch.testing.assert_close(sparse.values_sm.sum(1), dense.values_sm.sum(1))


def test_of_a_row_that_is_far_too_long_evenly_spaced_entries_are_looked_at() -> None:
    dense_BF = torch.zeros(50, F)
    dense_BF[:, 0] = 1.0
    dense_BF[7] = torch.arange(1.0, F + 1)
    features_sm, values_sm = pairs.active(as_entries(dense_BF), torch.tensor([7]), 3)
    mean = -(-(49 + F) // 50)
    looked_at = torch.arange(4 * mean) * F // (4 * mean)
    assert features_sm[0].tolist() == looked_at[-3:].tolist()
    assert values_sm[0].tolist() == (looked_at[-3:] + 1).tolist()


def test_a_batch_in_which_nothing_fires_has_no_active_pairs() -> None:
    code = as_entries(torch.zeros(5, F))
    features_sm, values_sm = pairs.active(code, torch.arange(5), 4)
    assert float(values_sm.sum()) == 0
    assert float(pairs.gram(random(F, D), features_sm, values_sm)) == 0
    assert float(pairs.coactive(code, random(F, D), 7, score="coactivation", rows=0, most=4).weight_P.sum()) == 0


@pytest.mark.parametrize("score", ["coactivation", "coactivation_cosine", "correlation"])
def test_the_pairs_that_share_most_are_those_of_the_dense_score(score: str) -> None:
    code, w_FD = sparse_code(n_rows=200), random(F, D)
    found = pairs.coactive(code, w_FD, 300, score=score, rows=0, most=F)
    together_FF = code.dense.T @ code.dense
    power_F = together_FF.diagonal()
    dense_FF = {
        "coactivation": together_FF,
        "coactivation_cosine": together_FF * gram_of(w_FD).clamp_min(0),
        "correlation": together_FF / (power_F[:, None] * power_F).sqrt().clamp_min(1e-12),
    }[score].triu(1)
    expected = dense_FF.flatten().topk(300).values
    assert (found.weight_P == 1).all()
    assert len({*zip(found.first_P.tolist(), found.second_P.tolist(), strict=True)}) == 300
    torch.testing.assert_close(dense_FF[found.first_P, found.second_P].sort(descending=True).values, expected)


def test_a_selection_from_a_batch_finds_nearly_all_of_the_pairs_that_overlap_most() -> None:
    """With the limits of training, on rows whose lengths vary as those of BatchTopK do."""
    code, w_FD = sparse_code(n_rows=512), random(F, D)
    overlap_FF = (code.dense.T @ code.dense * gram_of(w_FD).clamp_min(0)).triu(1)
    found = pairs.coactive(code, w_FD, 100, score="coactivation_cosine", rows=512, most=64)
    best = overlap_FF.flatten().topk(100).values
    assert float(overlap_FF[found.first_P, found.second_P].sum()) >= 0.98 * float(best.sum())


def test_a_selection_from_a_sample_of_rows_looks_at_every_position_of_windows() -> None:
    rows = pairs.spread(2048, 256, torch.device("cpu"))
    assert len(rows.unique()) == 256
    assert sorted((rows % 8).unique().tolist()) == list(range(8))
    assert pairs.spread(100, 256, torch.device("cpu")).tolist() == list(range(100))


@given(st.integers(0, 2**20), st.integers(1, 60), st.integers(2, 12), st.integers(0, 80))
@settings(deadline=None, max_examples=50)
def test_the_best_pairs_are_distinct_unordered_and_the_largest(seed: int, k: int, d_sae: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score_FF = torch.randn(d_sae, d_sae, generator=generator)
    score_FF = score_FF + score_FF.T
    first_n, second_n = torch.randint(d_sae, (2, n), generator=generator)
    found = pairs.best(first_n, second_n, score_FF[first_n, second_n], k, d_sae)
    candidates = {(min(a, b), max(a, b)) for a, b in zip(first_n.tolist(), second_n.tolist(), strict=True) if a != b}
    expected = sorted((float(score_FF[a, b]) for a, b in candidates if score_FF[a, b] > 0), reverse=True)[:k]
    there = found.weight_P > 0
    keys = [*zip(found.first_P[there].tolist(), found.second_P[there].tolist(), strict=True)]
    assert len(found.weight_P) == k
    assert keys == sorted(set(keys))
    assert sorted((float(score_FF[a, b]) for a, b in keys), reverse=True) == pytest.approx(expected)


def test_jaccard_counts_shared_pairs_and_ignores_empty_slots() -> None:
    def listed(*keys: tuple[int, int], empty: int = 0) -> Pairs:
        first, second = zip(*keys, *[(0, 0)] * empty, strict=True)
        return Pairs(torch.tensor(first), torch.tensor(second), torch.tensor([1.0] * len(keys) + [0.0] * empty))

    one, other = listed((0, 1), (0, 2), (3, 4), empty=2), listed((0, 2), (3, 4), (5, 6), (5, 7), empty=1)
    assert float(pairs.jaccard(one, other, 10)) == pytest.approx(2 / 5)
    assert float(pairs.jaccard(one, one, 10)) == 1
    nothing = pairs.no_pairs(3, torch.device("cpu"))
    assert float(pairs.jaccard(nothing, nothing, 10)) == 0


def cosine_of(w_FD: Tensor, neighbours: Neighbours) -> Tensor:
    return gram_of(w_FD).gather(1, neighbours.index_FN)


@pytest.mark.parametrize("n", [1, 8])
def test_the_nearest_in_blocks_are_the_nearest_of_the_whole_gram_matrix(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.penalties.pairs.neighbours._BLOCK_ENTRIES", {"cpu": 37 * F})
    w_FD = random(F, D) * (0.5 + torch.rand(F, 1))
    found = pairs.nearest(w_FD, n)
    expected = gram_of(w_FD).fill_diagonal_(-2).topk(n, dim=1).values
    assert (found.index_FN != torch.arange(F)[:, None]).all()
    torch.testing.assert_close(cosine_of(w_FD, found), expected, rtol=0, atol=2**-7)  # bfloat16 products choose


def test_the_nearest_in_a_chunk_is_of_the_same_chunk_and_the_nearest_there() -> None:
    w_FD = random(F, D)
    order_F = torch.randperm(F, generator=torch.Generator().manual_seed(2))
    found = pairs.nearest_in_chunks(w_FD, order_F, 100)
    gram_FF = gram_of(w_FD).fill_diagonal_(-2)
    parts = order_F.tensor_split(3)
    assert {len(part) for part in parts} == {85, 86}
    for part in parts:
        inside = gram_FF[part][:, part].max(1).values
        torch.testing.assert_close(cosine_of(w_FD, found)[part, 0], inside, rtol=0, atol=2**-7)
        assert torch.isin(found.index_FN[part], part).all()


def test_hashing_recalls_nine_of_ten_pairs_at_cosine_09_and_no_row_twice() -> None:
    """Of F = 4096 rows, 200 planted pairs; neighbours that are found have the cosines that they are said to have."""
    n_pairs, n_rows, cosine = 200, 4096, 0.9
    w_FD = normalize(random(n_rows, 64), dim=1)
    aside_nD = w_FD[n_pairs : 2 * n_pairs] - w_FD[:n_pairs] * (w_FD[n_pairs : 2 * n_pairs] * w_FD[:n_pairs]).sum(
        1, keepdim=True
    )
    w_FD[n_pairs : 2 * n_pairs] = cosine * w_FD[:n_pairs] + (1 - cosine**2) ** 0.5 * normalize(aside_nD, dim=1)
    found = pairs.nearest_by_hash(w_FD, 4, torch.Generator().manual_seed(3))
    first_n, second_n = pairs.pairs_of(found)
    keys = {*zip(first_n.tolist(), second_n.tolist(), strict=True)}
    recalled = sum((i, i + n_pairs) in keys or (i + n_pairs, i) in keys for i in range(n_pairs))
    assert recalled >= 0.9 * n_pairs
    there = found.cosine_FN > -1
    torch.testing.assert_close(cosine_of(w_FD, found)[there], found.cosine_FN[there], rtol=0, atol=2**-6)
    assert (found.index_FN != torch.arange(n_rows)[:, None])[there].all()


def test_hashing_compares_fewer_pairs_than_an_exact_search() -> None:
    w_FD = random(2048, 32)
    there = pairs.nearest_by_hash(w_FD, 64, torch.Generator().manual_seed(4), tables=1).cosine_FN > -1
    assert 0 < int(there.sum()) < 0.02 * 2048**2


def test_a_quantile_of_the_cosines_is_that_of_all_pairs() -> None:
    w_FD = random(F, D)
    i, j = torch.triu_indices(F, F, 1)
    exact = gram_of(w_FD)[i, j].quantile(0.99)
    assert float(pairs.quantile(w_FD, 0.99, torch.Generator().manual_seed(5))) == pytest.approx(float(exact), abs=0.02)


def test_a_duplicated_orthonormal_basis_is_a_tight_frame_that_only_pairs_can_see() -> None:
    """The frame potential ‖UᵀU‖² − F²/D is 0 there; the hinge over nearest neighbours is as large as it can be."""
    basis_DD = torch.linalg.qr(random(D, D).double()).Q
    w_FD = basis_DD.repeat(4, 1)
    potential = (w_FD.T @ w_FD).square().sum()
    assert float(potential) == pytest.approx(len(w_FD) ** 2 / D, rel=1e-12)
    first_F, second_F = pairs.pairs_of(pairs.nearest(w_FD, 1))
    value = pairs.hinge(w_FD, Pairs(first_F, second_F, torch.ones(len(w_FD)))) / len(w_FD)
    assert float(value) == pytest.approx(1, rel=1e-12)


def test_the_square_of_the_gram_matrix_needs_no_f_by_f_object() -> None:
    """‖UUᵀ − I‖² = ‖UᵀU‖² − 2 Σ‖u‖² + F, values and gradients (4 U(UᵀU) − 4 U)."""
    w_FD = random(F, D).double().requires_grad_()
    dense = (w_FD @ w_FD.T - torch.eye(F)).square().sum()
    small = (w_FD.T @ w_FD).square().sum() - 2 * w_FD.square().sum() + F
    torch.testing.assert_close(small, dense, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient_of(small, w_FD), gradient_of(dense, w_FD), rtol=1e-10, atol=1e-10)
