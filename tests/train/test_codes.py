"""Codes: the sparse and the dense form say the same, and both carry gradients."""

import pytest
import torch
from torch import Tensor

from train.codes import Code, Entries

F = 7


def sparse() -> tuple[Code, Tensor]:
    """Three rows with two entries, none, and three, of which one is off."""
    values_n = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0], requires_grad=True)
    features_n = torch.tensor([1, 4, 0, 4, 6])
    return Code(F, entries=Entries(values_n, features_n, torch.tensor([0, 2, 2, 5]))), values_n


def dense() -> Tensor:
    return torch.tensor([[0, 1.0, 0, 0, 2.0, 0, 0], [0] * 7, [0.5, 0, 0, 0, 0, 0, 3.0]], requires_grad=True)


def test_both_forms_say_the_same() -> None:
    code = sparse()[0]
    assert torch.equal(code.dense, dense())
    back = Code(F, dense_BF=dense()).entries
    assert torch.equal(back.values_n, torch.tensor([1.0, 2.0, 0.5, 3.0]))
    assert torch.equal(back.features_n, torch.tensor([1, 4, 0, 6]))
    assert torch.equal(back.offsets, torch.tensor([0, 2, 2, 4]))


def test_gradients_go_through_either_conversion() -> None:
    code, values_n = sparse()
    weights_BF = torch.arange(21.0).reshape(3, 7)
    (code.dense * weights_BF).sum().backward()
    assert torch.equal(values_n.grad, torch.tensor([1.0, 4.0, 14.0, 18.0, 20.0]))
    full_BF = dense()
    (Code(F, dense_BF=full_BF).entries.values_n * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert torch.equal(full_BF.grad[full_BF > 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert full_BF.grad.sum() == 10


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_counts_and_sums_are_of_what_is_on(form: str) -> None:
    code = sparse()[0] if form == "sparse" else Code(F, dense_BF=dense())
    assert code.n_rows == 3
    assert float(code.l0()) == pytest.approx(4 / 3)
    assert float(code.l1().detach()) == pytest.approx(6.5 / 3)
    assert code.fired().tolist() == [1, 1, 0, 0, 1, 0, 1]
    assert code.l1().requires_grad
    assert not code.detach().l1().requires_grad


def test_the_row_of_each_entry_is_known() -> None:
    assert sparse()[0].rows.tolist() == [0, 0, 2, 2, 2]
    assert Code(F, dense_BF=dense()).rows.tolist() == [0, 0, 2, 2]


def test_a_code_in_which_nothing_is_on_is_a_code() -> None:
    code = Code(F, dense_BF=torch.zeros(2, F))
    assert code.entries.offsets.tolist() == [0, 0, 0]
    none = Code(F, entries=code.entries)
    assert torch.equal(none.dense, torch.zeros(2, F))
    assert (float(none.l0()), float(none.l1()), float(none.fired().sum())) == (0, 0, 0)


def test_a_code_is_made_from_one_form() -> None:
    with pytest.raises(ValueError, match="not from both or none"):
        Code(F)
    with pytest.raises(ValueError, match="not from both or none"):
        Code(F, entries=sparse()[0].entries, dense_BF=dense())
