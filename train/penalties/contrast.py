"""InfoNCE between two positions of the same window against other windows' positions (van den Oord, Li & Vinyals 2018,
"Representation learning with contrastive predictive coding", arXiv 1807.03748, eq. 4), in both directions.

Shapes: n windows of W positions, B = n · W rows, e slow entries, h slow latents, p pairs of positions in a window.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train import kernels
from train.codes import Code
from train.feed.batch import Batch
from train.kernels.sparse import compiled_for
from train.penalties.slow import SlowSet

Pairs = Sequence[tuple[int, int]]


def info_nce(
    similarity_pnn: Float[Tensor, "p n n"], temperature: float, kin_nn: Bool[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of similarity / temperature against "the same window", a mean over pairs, in nats.

    `kin_nn` says which windows come from one document: they are no negatives of one another.
    """
    logits_pnn = (similarity_pnn / temperature).masked_fill(kin_nn, -torch.inf)
    right_pn = logits_pnn.diagonal(dim1=1, dim2=2)
    return (0.5 * (logits_pnn.logsumexp(1) + logits_pnn.logsumexp(2)) - right_pn).mean()


def similarities(slow: SlowSet, code: Code, pairs: Pairs, *, window: int, cosine: bool) -> Float[Tensor, "p n n"]:
    """q_t · q_s of every window's slow code at t with every window's at s; cosines, or raw dot products.

    As sparse sums where kernels are compiled: a slow code has a few entries in a thousand. Elsewhere as dense products.
    """
    if compiled_for(code.entries.values_n):
        return sparse_similarities(slow, code, pairs, window=window, cosine=cosine)
    return dense_similarities(slow, code, pairs, window=window, cosine=cosine)


def dense_similarities(slow: SlowSet, code: Code, pairs: Pairs, *, window: int, cosine: bool) -> Float[Tensor, "p n n"]:
    """The same by products of [n, h] matrices."""
    q_Bh = slow.codes(code)
    if cosine:
        q_Bh = q_Bh / _norm(q_Bh.square().sum(1, keepdim=True))
    q_nWh = q_Bh.unflatten(0, (-1, window))
    later_pnh, earlier_pnh = (torch.stack([q_nWh[:, pair[side]] for pair in pairs]) for side in (0, 1))
    return later_pnh @ earlier_pnh.transpose(1, 2)


def sparse_similarities(
    slow: SlowSet, code: Code, pairs: Pairs, *, window: int, cosine: bool
) -> Float[Tensor, "p n n"]:
    """The same, each entry at t against its latent's row in a table [W · h, n] of all windows."""
    values_e, slot_e, row_e = slow.entries(code)
    if cosine:
        square_B = values_e.new_zeros(code.n_rows).index_add(0, row_e, values_e.square())
        values_e = values_e / _norm(square_B)[row_e]
    window_e, t_e, n = row_e // window, row_e % window, code.n_rows // window
    table = values_e.new_zeros(window, slow.size, n).index_put((t_e, slot_e, window_e), values_e)
    partner_W = torch.zeros(window, dtype=torch.int64)
    for t, s in pairs:
        partner_W[t] = s
    offsets = torch.searchsorted(row_e, torch.arange(code.n_rows + 1))
    line_e = partner_W[t_e] * slow.size + slot_e
    products_Bn = kernels.decode(values_e, line_e, offsets, table.flatten(0, 1), values_e.new_zeros(n))
    return torch.stack([products_Bn.unflatten(0, (n, window))[:, t] for t, _ in pairs])


def kinship(batch: Batch, device: torch.device) -> Bool[Tensor, "n n"]:
    """Which windows of a batch come from one document, apart from each itself."""
    document_n: Int[Tensor, " n"] = batch.document.reshape(len(batch.document), -1)[:, 0]
    document_n = on(device, document_n)
    return (document_n[:, None] == document_n) & ~torch.eye(len(document_n), dtype=torch.bool, device=device)


def on(device: torch.device, origin: Tensor) -> Tensor:
    """A batch's origin on a device, without waiting for it."""
    return origin.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else origin.to(device)


def pairs_at(lag: int, window: int, uniform: float) -> list[tuple[int, int]]:
    """Each position of a window with the one `lag` before it; with lag 0, with one that is 1 to t before it.

    Args:
        lag: r, or 0.
        window: W.
        uniform: a number from [0, 1) that decides the random lags, each of them uniform.
    """
    if lag:
        return [(t, t - lag) for t in range(lag, window)]
    return [(t, t - 1 - int(uniform * t)) for t in range(1, window)]


def _norm(square: Tensor) -> Tensor:
    # Its gradient is 0, not NaN, where nothing is on.
    return square.clamp_min(1e-12).sqrt()
