"""One batch through the model, and its vectors on their way to the host.

Shapes: B sequences a batch, T positions, D d_model, R row sets.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cache.statistics import Moments, moments, row_masks
from harvest.model import ResidualModel
from harvest.tokens import TokenBlock


class InFlight(NamedTuple):
    """A batch whose vectors may still be under way from the device."""

    start: int
    """Number of its first sequence."""
    block: TokenBlock
    residuals: dict[int, Tensor]
    """Layer → bfloat16 [B, T, D] on the host, good after `arrive`."""
    sums: dict[int, list[Tensor]]
    done: torch.cuda.Event | None
    cursor: dict[str, Any]
    """Where the text stands after this batch; set where a shard ends."""

    def arrive(self) -> dict[int, Moments]:
        """Wait until everything is on the host; the moments of each layer, empty on the CPU."""
        if self.done is not None:
            self.done.synchronize()
        return {layer: Moments(*(part.numpy() for part in parts)) for layer, parts in self.sums.items()}


def forward(model: ResidualModel, start: int, block: TokenBlock, layers: tuple[int, ...], bos: int) -> InFlight:
    """Run the model on a batch and begin to copy what it gave; on a GPU nothing here waits.

    On a GPU the sums for the statistics are taken there, where they cost nothing; on the CPU the writer takes them.
    """
    residuals = model.residuals(torch.from_numpy(block.tokens), layers=layers)
    on_gpu = model.device.type == "cuda"
    mask_BRT = torch.from_numpy(row_masks(block.tokens, block.document, block.split, bos)).double().to(model.device)
    host, sums = {}, {}
    for layer, x_BTD in residuals.items():
        x_BTD = x_BTD.to(torch.bfloat16)
        if on_gpu:
            sums[layer] = [_to_host(one) for one in moments(x_BTD.double(), mask_BRT, torch.einsum)]
        host[layer] = _to_host(x_BTD) if on_gpu else x_BTD
    done = torch.cuda.Event() if on_gpu else None
    if done is not None:
        done.record()
    return InFlight(start, block, host, sums, done, {})


def _to_host(x: Tensor) -> Tensor:
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)  # the caching allocator keeps pinned blocks for reuse
    return host.copy_(x, non_blocking=True)
