"""Decoder geometry: blocked sums against dense ones, and dictionaries whose geometry is known."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from evals import geometry
from evals.geometry import active_condition, decoder_cosines, excess_frame_potential, group_separation, spectrum


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("block_bytes", [1, 8 * 90 * 7, 1 << 30])
def test_blocked_cosines_are_the_dense_ones(block_bytes: int) -> None:
    """One row at a time, seven at a time with a rest, and all at once."""
    w_FD = random_rows(90, 20)
    w_FD[40] = -w_FD[3]
    w_FD[41] = 2 * w_FD[5]
    dense_FF = (normalize(w_FD, dim=1) @ normalize(w_FD, dim=1).T).double()
    others_FF = dense_FF[~torch.eye(90, dtype=torch.bool)].reshape(90, 89)
    found = decoder_cosines(w_FD, block_bytes=block_bytes)
    assert found.mean_max == pytest.approx(float(others_FF.max(1).values.mean()), rel=1e-5)
    assert found.mean_max_absolute == pytest.approx(float(others_FF.abs().max(1).values.mean()), rel=1e-5)
    assert found.mean_absolute == pytest.approx(float(others_FF.abs().mean()), rel=1e-5)
    assert found.duplicated == pytest.approx(2 / 90)
    levels = torch.tensor(geometry.QUANTILES, dtype=torch.float64)
    assert found.max_quantiles == pytest.approx(others_FF.max(1).values.quantile(levels).tolist(), abs=1e-5)
    inverse = others_FF.flatten().quantile(levels, interpolation="higher")
    assert found.pair_quantiles == pytest.approx(inverse.tolist(), abs=0.0015)
    potential = float(dense_FF.square().sum())
    assert found.excess_frame_potential == pytest.approx(potential * 20 / 90**2 - 1, rel=1e-5)


def test_orthonormal_rows_have_no_cosines() -> None:
    found = decoder_cosines(torch.eye(30, 40))
    assert (found.mean_max, found.mean_max_absolute, found.mean_absolute, found.duplicated) == (0, 0, 0, 0)
    assert found.excess_frame_potential == 0
    assert max(map(abs, found.pair_quantiles)) < 1 / geometry.COSINE_BINS * 2


def test_an_equiangular_frame_has_the_cosine_of_welch_everywhere() -> None:
    """Four vertices of a tetrahedron: every cosine is −1/3, and the frame is tight."""
    rows_43 = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    found = decoder_cosines(rows_43)
    assert found.mean_max == pytest.approx(-1 / 3)
    assert found.mean_max_absolute == pytest.approx(1 / 3)
    assert found.mean_absolute == pytest.approx(1 / 3)
    assert found.pair_quantiles == pytest.approx([-1 / 3] * len(geometry.QUANTILES), abs=2.6e-4)
    assert found.excess_frame_potential == pytest.approx(0, abs=1e-6)


def test_random_rows_have_the_mean_cosine_of_their_dimension() -> None:
    found = decoder_cosines(random_rows(800, 256))
    assert found.mean_absolute == pytest.approx(math.sqrt(2 / (math.pi * 256)), rel=0.01)
    assert found.excess_frame_potential == pytest.approx(256 / 800, rel=0.05)
    assert found.duplicated == 0


def test_a_basis_written_twice_is_all_duplicates_and_yet_a_tight_frame() -> None:
    """The theorem of variants §2: the frame potential cannot see duplicates."""
    found = decoder_cosines(torch.eye(16).repeat(2, 1))
    assert found.mean_max == 1
    assert found.duplicated == 1
    assert found.excess_frame_potential == pytest.approx(0)


def test_no_cosine_exceeds_one_by_rounding() -> None:
    """Else equal rows would fall out of the histogram of all pairs."""
    found = decoder_cosines(random_rows(300, 37).repeat(2, 1))
    assert max(found.max_quantiles) == 1
    every = decoder_cosines(random_rows(1, 37, seed=5).repeat(300, 1))
    assert every.pair_quantiles == pytest.approx([1] * len(geometry.QUANTILES), abs=2.6e-4)


def test_opposite_rows_are_near_only_in_absolute_value() -> None:
    found = decoder_cosines(torch.tensor([[1.0, 0], [-1, 0]]))
    assert found.mean_max == -1
    assert found.mean_max_absolute == 1
    assert found.duplicated == 0


def test_a_lone_row_has_no_cosines_at_all() -> None:
    found = decoder_cosines(torch.ones(1, 3))
    assert all(math.isnan(x) for x in (found.mean_max, found.mean_absolute, found.duplicated, *found.pair_quantiles))


def test_parallel_rows_have_the_largest_frame_potential() -> None:
    assert excess_frame_potential(torch.ones(12, 4)) == pytest.approx(3)


def test_the_spectrum_is_that_of_the_rows_whether_few_or_many() -> None:
    for n, d in ((6, 20), (50, 20)):
        w_gD = random_rows(n, d)
        expected = torch.linalg.svdvals(w_gD.double()).square()
        torch.testing.assert_close(spectrum(w_gD).eigenvalues, expected, rtol=1e-5, atol=1e-6)
        assert float(spectrum(w_gD).eigenvalues.sum()) == pytest.approx(n, rel=1e-6)


def test_orthonormal_rows_are_conditioned_perfectly_and_have_full_rank() -> None:
    found = spectrum(torch.eye(40, 50))
    assert found.condition == pytest.approx(1)
    assert found.rank == 38  # the first count of equal eigenvalues that reaches 95 % of 40
    assert found.effective_rank == pytest.approx(40)


def test_a_repeated_row_weighs_as_often_as_it_occurs() -> None:
    """Nine copies of e1 and one e2: eigenvalues 9 and 1."""
    found = spectrum(torch.eye(2, 5)[[0] * 9 + [1]])
    torch.testing.assert_close(found.eigenvalues[:2], torch.tensor([9.0, 1.0], dtype=torch.float64))
    assert found.rank == 2
    assert found.condition == pytest.approx(3)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert found.effective_rank == pytest.approx(math.exp(entropy))


def test_parallel_rows_have_rank_one() -> None:
    found = spectrum(torch.ones(7, 3))
    assert (found.rank, found.condition) == (1, 1)
    assert found.effective_rank == pytest.approx(1)


@pytest.mark.parametrize("cosine", [0.0, 0.5, -0.9])
def test_two_active_rows_are_conditioned_by_their_cosine(cosine: float) -> None:
    """The Gram matrix of two unit rows at cosine c has eigenvalues 1 ± c."""
    w_FD = torch.tensor([[1.0, 0], [cosine, math.sqrt(1 - cosine**2)], [0, 1]])
    codes_nF = torch.tensor([[1.0, 2, 0], [3, 0, 0], [0, 0, 0]])
    both, alone, none = active_condition(codes_nF, w_FD).tolist()
    assert both == pytest.approx(math.sqrt((1 + abs(cosine)) / (1 - abs(cosine))), rel=1e-5)
    assert (alone, none) == (1, 1)


def test_active_rows_that_depend_on_one_another_have_no_finite_condition() -> None:
    w_FD = torch.cat([torch.eye(3), torch.tensor([[1.0, 1, 0]])])
    codes_nF = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 1]])
    assert active_condition(codes_nF, w_FD).tolist() == pytest.approx([1, math.inf, math.inf])


def test_active_condition_is_that_of_the_active_rows_alone() -> None:
    w_FD = random_rows(60, 30)
    codes_nF = torch.rand(20, 60, generator=torch.Generator().manual_seed(1)) * (random_rows(20, 60, 2) > 0.15)
    for condition, code_F in zip(active_condition(codes_nF, w_FD), codes_nF, strict=True):
        values = torch.linalg.svdvals(w_FD[code_F > 0].double())
        assert float(condition) == pytest.approx(float(values[0] / values[-1]), rel=1e-5)


def test_orthogonal_groups_are_apart_and_equal_ones_are_not() -> None:
    basis_DD = torch.eye(10)
    apart = group_separation(basis_DD[:4], basis_DD[4:])
    assert (apart.affinity, apart.max_cosine, apart.rms_cosine) == pytest.approx((0, 0, 0))
    torch.testing.assert_close(apart.angles, torch.full((4,), math.pi / 2, dtype=torch.float64))
    same = group_separation(basis_DD[:4], 3 * basis_DD[:4])
    assert (same.affinity, same.max_cosine) == pytest.approx((1, 1))
    assert same.rms_cosine == pytest.approx(math.sqrt(4 / 16))


def test_rotating_a_plane_by_an_angle_is_seen_as_that_angle() -> None:
    angle = 0.3
    plane = torch.eye(2, 4)
    turned = torch.tensor([[1.0, 0, 0, 0], [0, math.cos(angle), math.sin(angle), 0]])
    found = group_separation(plane, turned)
    torch.testing.assert_close(found.angles, torch.tensor([0, angle], dtype=torch.float64), atol=1e-3, rtol=0)
    assert found.affinity == pytest.approx((1 + math.cos(angle) ** 2) / 2, rel=1e-5)
    assert found.max_cosine == pytest.approx((1 + math.cos(angle)) / 2)


@pytest.mark.parametrize("block_bytes", [1, 1 << 30])
def test_cross_cosines_are_the_dense_ones(block_bytes: int) -> None:
    w_gD, w_hD = random_rows(25, 12, 0), random_rows(40, 12, 1)
    dense_gh = w_gD @ w_hD.T
    found = group_separation(w_gD, w_hD, block_bytes=block_bytes)
    assert found.max_cosine == pytest.approx(float(dense_gh.max(1).values.mean()), rel=1e-5)
    assert found.rms_cosine == pytest.approx(float(dense_gh.square().mean().sqrt()), rel=1e-5)


def test_random_subspaces_overlap_by_their_share_of_the_space() -> None:
    found = group_separation(random_rows(40, 400, 0), random_rows(40, 400, 1))
    assert found.affinity == pytest.approx(len(found.angles) / 400, rel=0.15)


def test_empty_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        spectrum(torch.empty(0, 4))
    with pytest.raises(ValueError, match="got 2 and 0"):
        group_separation(torch.eye(2, 4), torch.empty(0, 4))


def test_no_block_is_larger_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = geometry._blocks

    def watched(*args: object) -> object:
        for start, block in real(*args):  # type: ignore[arg-type]
            sizes.append(block.nbytes)
            yield start, block

    monkeypatch.setattr(geometry, "_blocks", watched)
    decoder_cosines(random_rows(100, 8), block_bytes=10_000)
    assert max(sizes) <= 10_000
    assert len(sizes) > 1
