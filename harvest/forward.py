"""One batch through the model, and its vectors on their way to the host.

Shapes: B sequences a batch, T positions, D d_model, R row sets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cache.statistics import Moments, moments, row_masks
from harvest.batches import Batch
from harvest.model import ResidualModel


class InFlight(NamedTuple):
    """A batch whose vectors may still be under way from the device."""

    batch: Batch
    residuals: dict[int, Tensor]
    """Layer → bfloat16 [B, T, D] on the host, good after `arrive`."""
    sums: dict[int, list[Tensor]]
    done: torch.cuda.Event | None

    def arrive(self) -> dict[int, Moments]:
        """Wait until everything is on the host; the moments of each layer, empty on the CPU."""
        if self.done is not None:
            self.done.synchronize()
        return {layer: Moments(*(part.numpy() for part in parts)) for layer, parts in self.sums.items()}


def forward(model: ResidualModel, batch: Batch, bos: int) -> InFlight:
    """Run the model on a batch and begin to copy what it gave; on a GPU nothing here waits.

    On a GPU the sums for the statistics are taken there, where they cost nothing; on the CPU the writer takes them.
    """
    residuals = model.residuals(torch.from_numpy(batch.block.tokens), layers=batch.layers)
    vectors = {layer: x_BTD.to(torch.bfloat16) for layer, x_BTD in residuals.items()}
    if model.device.type != "cuda":
        return InFlight(batch, vectors, {}, None)
    mask = row_masks(batch.block.tokens, batch.block.document, batch.block.split, bos)
    mask_BRT = torch.from_numpy(mask).double().to(model.device)
    host, sums = {}, {}
    for layer, x_BTD in vectors.items():
        sums[layer] = [_to_host(one) for one in moments(x_BTD.double(), mask_BRT, torch.einsum)]
        host[layer] = _to_host(x_BTD)
    done = torch.cuda.Event()
    done.record()
    return InFlight(batch, host, sums, done)


def _to_host(x: Tensor) -> Tensor:
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)  # the caching allocator keeps pinned blocks for reuse
    return host.copy_(x, non_blocking=True)
