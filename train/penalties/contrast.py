"""InfoNCE between two positions of the same window against other windows' positions (van den Oord, Li & Vinyals 2018,
"Representation learning with contrastive predictive coding", arXiv 1807.03748, eq. 4), in both directions.

Shapes: n windows of W positions, B = n · W rows, h latents, p pairs of positions in a window.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.batch import Batch


def info_nce(
    q_nWh: Float[Tensor, "n W h"],
    pairs: Sequence[tuple[int, int]],
    *,
    cosine: bool,
    temperature: float,
    kin_nn: Bool[Tensor, "n n"],
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of q_t q_sᵀ / temperature against "the same window", a mean over pairs (t, s).

    Args:
        q_nWh: codes of the windows.
        pairs: positions (t, s) to compare.
        cosine: compare directions; else raw dot products, whose scale is that of the codes squared.
        temperature: of the softmax.
        kin_nn: windows that come from one document; they are no negatives of one another.
    """
    if cosine:
        q_nWh = q_nWh / (q_nWh.norm(dim=2, keepdim=True) + 1e-6)
    later, earlier = torch.tensor(pairs, device=q_nWh.device).T
    q_Wnh = q_nWh.transpose(0, 1)
    logits_pnn = q_Wnh[later] @ q_Wnh[earlier].transpose(1, 2) / temperature
    logits_pnn = logits_pnn.masked_fill(kin_nn, -torch.inf)
    right_pn = logits_pnn.diagonal(dim1=1, dim2=2)
    return (0.5 * (logits_pnn.logsumexp(1) + logits_pnn.logsumexp(2)) - right_pn).mean()


def kinship(batch: Batch, device: torch.device) -> Bool[Tensor, "n n"]:
    """Which windows of a batch come from one document, apart from each itself."""
    document_n: Int[Tensor, " n"] = batch.document.reshape(len(batch.document), -1)[:, 0]
    document_n = on(device, document_n)
    return (document_n[:, None] == document_n) & ~torch.eye(len(document_n), dtype=torch.bool, device=device)


def on(device: torch.device, origin: Tensor) -> Tensor:
    """A batch's origin on a device, without waiting for it."""
    return origin.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else origin


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
