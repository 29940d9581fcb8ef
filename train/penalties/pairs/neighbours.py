"""Near neighbours among decoder rows: exact in blocks, among the rows of random chunks, or by hashing.

Products are in bfloat16: a choice among neighbours whose cosines differ by less than 2⁻⁷ of them may go either way.
What is then paid for a pair is computed in float32 (`overlap.py`). No gradients here.
Shapes: F d_sae, D d_model, C rows of a chunk, N neighbours.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK_ENTRIES: Final = {"cpu": 2**22}  # cosines at a time
_BLOCK_ENTRIES_ELSEWHERE: Final = 2**27
_NONE: Final = -2.0


class Neighbours(NamedTuple):
    """For each latent the N with the largest signed cosines."""

    index_FN: Int64[Tensor, "F N"]
    cosine_FN: Float[Tensor, "F N"]
    """As the selection saw it, rounded; −2 where there are fewer than N neighbours."""


@torch.no_grad()
def nearest(w_FD: Float[Tensor, "F D"], n: int) -> Neighbours:
    """The N nearest of every row, from all cosines in blocks: 2 F² D operations, one block in memory."""
    rows_FD = _unit(w_FD)
    n_rows = len(rows_FD)
    n = min(n, n_rows)
    index_FN = torch.empty(n_rows, n, dtype=torch.int64, device=w_FD.device)
    cosine_FN = torch.empty(n_rows, n, device=w_FD.device)
    step = max(1, _BLOCK_ENTRIES.get(w_FD.device.type, _BLOCK_ENTRIES_ELSEWHERE) // n_rows)
    for start in range(0, n_rows, step):
        cosine_bF = rows_FD[start : start + step] @ rows_FD.T
        cosine_bF.diagonal(start).fill_(_NONE)
        top = cosine_bF.max(1, keepdim=True) if n == 1 else cosine_bF.topk(n, dim=1)
        index_FN[start : start + step], cosine_FN[start : start + step] = top.indices, top.values.float()
    return Neighbours(index_FN, cosine_FN)


@torch.no_grad()
def nearest_in_chunks(w_FD: Float[Tensor, "F D"], order_F: Int64[Tensor, " F"], size: int) -> Neighbours:
    """The nearest of each row within its own chunk: a permutation, cut into equal parts of at most `size` rows."""
    index_F1, cosine_F1 = order_F.new_empty(len(order_F), 1), torch.empty(len(order_F), 1, device=w_FD.device)
    for chunk_C in order_F.tensor_split(-(-len(order_F) // size)):
        found = nearest(w_FD[chunk_C], 1)
        index_F1[chunk_C], cosine_F1[chunk_C] = chunk_C[found.index_FN], found.cosine_FN
    return Neighbours(index_F1, cosine_F1)


@torch.no_grad()
def nearest_by_hash(
    w_FD: Float[Tensor, "F D"],
    n: int,
    generator: torch.Generator,
    *,
    bits: int = 10,
    tables: int = 16,
    window: int = 32,
) -> Neighbours:
    """Neighbours by random hyperplanes (SimHash; Charikar 2002, "Similarity estimation techniques from rounding").

    In each table rows are sorted by the signs of `bits` projections, and each is compared with the next `window` to
    2·`window` − 1 rows of its own bucket. Two rows of cosine c share a bucket with probability (1 − arccos(c)/π)^bits a
    table: 0.21 at c = 0.9, so that 16 tables find 98 % of such pairs, at 4 · F · window · D operations a table.

    Returns:
        N neighbours a table, [F, tables · N]: a pair may come up in several tables, and on one side only.
    """
    found = [_one_table(w_FD, n, generator, bits, window) for _ in range(tables)]
    return Neighbours(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))


def _one_table(w_FD: Tensor, n: int, generator: torch.Generator, bits: int, window: int) -> Neighbours:
    device, n_rows = w_FD.device, len(w_FD)
    planes_Db = torch.randn(w_FD.shape[1], bits, generator=generator).to(device)
    code_F = ((w_FD @ planes_Db > 0) * 2 ** torch.arange(bits, device=device)).sum(1)
    # Random among equal codes: which rows of a full bucket are compared must not depend on their numbers.
    shuffled_F = torch.randperm(n_rows, generator=generator).to(device)
    order_F = shuffled_F[code_F[shuffled_F].argsort(stable=True)]
    padded = -n_rows % window + window  # the last block needs one after it
    order_p = torch.cat([order_F, order_F.new_zeros(padded)]).view(-1, window)
    code_p = torch.cat([code_F[order_F], code_F.new_full((padded,), -1)]).view(-1, window)
    index_FN = order_F.new_zeros(n_rows, n)
    cosine_FN = torch.full((n_rows, n), _NONE, device=device)
    unit_FD = _unit(w_FD)
    after_wv = torch.ones(window, 2 * window, dtype=torch.bool, device=device).triu(1)
    largest = window * max(2 * window, 3 * w_FD.shape[1])  # cosines, or rows gathered, of one block
    step = max(1, _BLOCK_ENTRIES.get(device.type, _BLOCK_ENTRIES_ELSEWHERE) // largest)
    for start in range(0, len(order_p) - 1, step):
        stop = min(start + step, len(order_p) - 1)
        left_bw = order_p[start:stop]
        right_bv = torch.cat([left_bw, order_p[start + 1 : stop + 1]], dim=1)
        codes_bv = torch.cat([code_p[start:stop], code_p[start + 1 : stop + 1]], dim=1)
        allowed_bwv = (codes_bv[:, :window, None] == codes_bv[:, None]) & after_wv
        cosine_bwv = (unit_FD[left_bw] @ unit_FD[right_bv].mT).masked_fill_(~allowed_bwv, _NONE)
        top = cosine_bwv.topk(n, dim=2)
        place = slice(start * window, min(stop * window, n_rows))
        rows = order_F[place]
        index_FN[rows] = right_bv.gather(1, top.indices.flatten(1)).view(-1, n)[: len(rows)]
        cosine_FN[rows] = top.values.float().view(-1, n)[: len(rows)]
    return Neighbours(index_FN, cosine_FN)


def _unit(w_FD: Tensor) -> Tensor:
    norm_F1 = w_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.div(w_FD, norm_F1, out=torch.empty_like(w_FD, dtype=torch.bfloat16))  # no float32 copy on the way
