"""Codes: what an SAE's encoder gives for a batch of rows, sparse where the architecture is.

Shapes: B rows, F d_sae, n active entries of the whole batch.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Entries(NamedTuple):
    """The active entries of B rows in CSR order."""

    values_n: Float[Tensor, " n"]
    """Activations, ≥ 0; an entry that a top-k kept although it is not positive has value 0 and gets no gradient."""
    features_n: Int[Tensor, " n"]
    """Latent of each entry."""
    offsets: Int[Tensor, " B1"]
    """[B + 1]; row b owns entries offsets[b] to offsets[b + 1]."""


class Code:
    """The activations of B rows: given as entries or as a dense [B, F] matrix, each made from the other when asked.

    Both conversions keep gradients, so a penalty may use whichever form it likes.
    """

    def __init__(
        self, d_sae: int, *, entries: Entries | None = None, dense_BF: Float[Tensor, "B F"] | None = None
    ) -> None:
        """Hold exactly one form.

        Raises:
            ValueError: both or none given.
        """
        if (entries is None) == (dense_BF is None):
            raise ValueError("a Code is made from its entries or from a dense matrix, not from both or none")
        self.d_sae = d_sae
        self.is_sparse = entries is not None
        if entries is not None:
            self.entries = entries
        if dense_BF is not None:
            self.dense = dense_BF

    @property
    def n_rows(self) -> int:
        """B."""
        return len(self.entries.offsets) - 1 if self.is_sparse else len(self.dense)

    @cached_property
    def dense(self) -> Float[Tensor, "B F"]:
        """[B, F], zero where a latent is off."""
        values_n, features_n, _ = self.entries
        empty = values_n.new_zeros(self.n_rows, self.d_sae)
        return empty.index_put((self.rows, features_n.long()), values_n, accumulate=True)

    @cached_property
    def entries(self) -> Entries:
        """The positive entries."""
        rows, features_n = self.dense.detach().nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=self.n_rows)
        offsets = torch.zeros(self.n_rows + 1, dtype=torch.int64, device=rows.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return Entries(self.dense[rows, features_n], features_n, offsets)

    @cached_property
    def rows(self) -> Int[Tensor, " n"]:
        """Row of each entry."""
        offsets = self.entries.offsets
        rows = torch.arange(self.n_rows, device=offsets.device)
        return rows.repeat_interleave(offsets.diff(), output_size=len(self.entries.values_n))

    def detach(self) -> "Code":
        """The same code without its graph."""
        if self.is_sparse:
            return Code(self.d_sae, entries=self.entries._replace(values_n=self.entries.values_n.detach()))
        return Code(self.d_sae, dense_BF=self.dense.detach())

    def fired(self) -> Float[Tensor, " F"]:
        """Number of rows in which each latent is on (> 0)."""
        if not self.is_sparse:
            return (self.dense > 0).sum(0).float()
        values_n, features_n, _ = self.entries
        return values_n.new_zeros(self.d_sae).index_add_(0, features_n.long(), (values_n.detach() > 0).float())

    def l0(self) -> Float[Tensor, ""]:
        """Mean number of latents that are on (> 0) in a row."""
        values = self.entries.values_n if self.is_sparse else self.dense
        return (values.detach() > 0).sum() / self.n_rows

    def l1(self) -> Float[Tensor, ""]:
        """Mean over rows of the sum of activations."""
        values = self.entries.values_n if self.is_sparse else self.dense
        return values.sum() / self.n_rows
