"""Two kinds of rows and a dictionary whose latents belong to one of them, both, or the wrong one."""

import pytest
import torch
from torch import Tensor

from evals.analyses.separation import groups, separation


def rows(seed: int = 0, n: int = 400) -> tuple[Tensor, Tensor]:
    """Codes of both kinds: latents 0 and 1 fire on the first kind, 2 and 3 on the second, 4 on both, 5 never."""
    generator = torch.Generator().manual_seed(seed)
    rate_2F = torch.tensor([[0.5, 0.5, 0.01, 0.01, 0.3, 0], [0.01, 0.01, 0.5, 0.5, 0.3, 0]])
    first_nF, second_nF = ((torch.rand(n, 6, generator=generator) < rate_F).float() for rate_F in rate_2F)
    return first_nF, second_nF


def test_latents_join_the_kind_on_which_they_fire_more() -> None:
    found = groups(*rows())
    assert found.first_g.tolist() == [0, 1]
    assert found.second_h.tolist() == [2, 3]
    assert found.score_F[5] == 0


def test_orthogonal_kinds_are_told_apart_and_removed_without_a_trace() -> None:
    first_nF, second_nF = rows(1)
    w_dec_FD, b_dec_D = torch.eye(6), torch.full((6,), 0.5)
    found = separation(
        groups(*rows()), first_nF + 0.5, first_nF, second_nF + 0.5, second_nF, lambda f: f @ w_dec_FD + b_dec_D
    )
    assert found.leakage == pytest.approx(0.02 / 1.32, abs=0.01)
    assert found.own == pytest.approx(1 / 1.32, abs=0.05)
    assert found.auc > 0.9
    assert found.kept_signal == pytest.approx(1, abs=1e-5)
    assert found.residual_signal == pytest.approx(0.5, abs=0.05)  # the second kind's half of the difference stays
    assert 0 < found.retain_fvu_change < 0.05


def test_groups_that_tell_nothing_leave_everything() -> None:
    """Chosen from rows of which both kinds are the same: nobody joins, nothing is removed."""
    both_nF = torch.cat(rows())
    none = groups(both_nF, both_nF)
    assert len(none.first_g) == len(none.second_h) == 0
    first_nF, second_nF = rows(1)
    found = separation(none, first_nF, first_nF, second_nF, second_nF, lambda f: f)
    assert found.auc == 0.5
    assert (found.leakage, found.retain_fvu_change) == (0, 0)
    assert found.residual_signal == found.kept_signal


def test_one_direction_for_both_kinds_damages_what_should_stay() -> None:
    """Latent 0 fires on the first kind's rows but carries what the second kind's rows need, too."""
    first_nF = torch.tensor([[1.0, 0], [1, 0], [1, 1]])
    second_nF = torch.tensor([[0.0, 1], [0, 1], [0.5, 1]])
    chosen = groups(torch.tensor([[1.0, 0]] * 9), torch.tensor([[0.0, 1]] * 9))
    found = separation(chosen, first_nF, first_nF, second_nF, second_nF, lambda f: f)
    assert found.leakage == pytest.approx(0.5 / 3.5)
    assert found.retain_fvu_change > 1


def test_a_kind_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of both kinds, got 0 and 2"):
        groups(torch.ones(0, 3), torch.ones(2, 3))


def test_a_silent_sae_is_refused() -> None:
    chosen = groups(*rows())
    with pytest.raises(ValueError, match="no latent fires"):
        separation(
            chosen,
            torch.ones(2, 6),
            torch.zeros(2, 6),
            torch.ones(2, 6),
            torch.ones(2, 6),
            lambda f: f,
        )
