"""What a training step sees, and where it came from.

Shapes: B rows, n items (rows, or windows of W rows), L layers, D d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Int32, Int64, UInt8
from torch import Tensor

from train.feed.pool import expand
from train.feed.stream import Taken


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of rows, or of windows; their order within the batch is random too.

    `x` lies on the feed's device, everything else on the CPU.
    """

    x: BFloat16[Tensor, "..."]
    """[B, D], or windows [n, W, D]; of several layers [B, L, D] or [n, W, L, D], in the order asked for."""
    sequence: Int64[Tensor, " n"]
    """Number of the sequence of each row, or window."""
    position: Int32[Tensor, " n"]
    """Position of each row in its sequence; of a window, its first."""
    tokens: Int32[Tensor, "..."]
    """[B] or [n, W], token ids."""
    document: Int32[Tensor, "..."]
    """[B] or [n, W], the document of each row."""
    domain: UInt8[Tensor, " _"]
    """[B] or [n], index into the cache's `meta.domains`; empty where the cache has none."""


class Origin(NamedTuple):
    """Everything of a batch but its vectors, in the order of its fields."""

    sequence: Tensor
    position: Tensor
    tokens: Tensor
    document: Tensor
    domain: Tensor


def origin(taken: Sequence[Taken], window: int) -> Origin:
    """Where the items of a batch came from."""
    parts = [_origin(one, window) for one in taken]
    joined = (np.concatenate(values) if len(parts) > 1 else values[0] for values in zip(*parts, strict=True))
    return Origin(*map(torch.from_numpy, joined))


def _origin(one: Taken, window: int) -> tuple[np.ndarray, ...]:
    contents, item_n = one.chapter.contents, one.item_n
    place_n, position_n = np.divmod(item_n, contents.eligible_nT.shape[1])
    row_B, shape = expand(item_n, window), (-1,) if window == 1 else (-1, window)
    return (
        contents.number_n[place_n],
        position_n.astype(np.int32),
        contents.tokens_nT.reshape(-1)[row_B].reshape(shape),
        contents.document_nT.reshape(-1)[row_B].reshape(shape),
        contents.domain_n[place_n] if len(contents.domain_n) else contents.domain_n.copy(),
    )
