"""A harvest looks at its own cache: is it what the model says, and what did bfloat16 storage cost.

Shapes: n sequences, T positions, D d_model.
"""

from typing import NamedTuple

import torch

import cache
from harvest.model import ResidualModel


class Audit(NamedTuple):
    """What the first sequences showed; only positions of documents count, vectors at padding mean nothing."""

    lost: dict[str, float]
    """`layer_L/bf16_fvu`: share of the variance that rounding to bfloat16 took."""
    rows: int
    """Vectors compared, over all layers."""
    same: int
    """Of these, vectors whose bits in the cache are those of a fresh forward pass."""


def audit_name(layer: int) -> str:
    """What a cache calls the share of a layer's variance that storing took."""
    return f"layer_{layer}/bf16_fvu"


def audit(model: ResidualModel, reader: cache.CacheReader, layers: tuple[int, ...], n: int) -> Audit:
    """Compute the first n sequences of a cache again."""
    residuals = model.residuals(torch.from_numpy(reader.tokens(0, n)), layers=layers)
    member_nT = torch.from_numpy(reader.document(0, n) >= 0)
    lost, same = {}, 0
    for layer, x_nTD in residuals.items():
        exact_rD, stored_rD = x_nTD.float().cpu()[member_nT], reader.layer(layer).sequences(0, n)[member_nT]
        kept_rD = exact_rD.to(torch.bfloat16)
        same += int((kept_rD == stored_rD).all(-1).sum())
        x_rD = exact_rD.double()
        error = (x_rD - kept_rD.double()).square().sum()
        lost[audit_name(layer)] = float(error / (x_rD - x_rD.mean(0)).square().sum())
    return Audit(lost, int(member_nT.sum()) * len(layers), same)
