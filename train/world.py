"""What one process knows of the others: the reductions that make a loss of many processes the loss of one.

Processes may share a batch (each has some rows: `readers`) or a dictionary (each has some latents: `shards`). A single
process is a world of one, in which every reduction returns its argument. `train/parallel.py` has the others.
Shapes: B rows, K candidates of a row, n entries, D d_model, F latents of this process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from train.kernels import Selected


@dataclass
class Agreed:
    """What the processes agreed on at the end of `together`."""

    stop: bool
    """Whether any of them was asked to stop."""


class World:
    """One process alone."""

    rank: int = 0
    size: int = 1
    readers: int = 1
    """Processes that share each batch."""
    reader: int = 0
    shards: int = 1
    """Processes that share each dictionary."""
    shard: int = 0

    # Shares of a batch.

    def rows(self, n: int) -> int:
        """Rows of the global batch where this process sees n."""
        return n * self.readers

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the equal shares of the batch; its gradient is that of the local share."""
        return x

    def minimum(self, x: Tensor) -> Tensor:
        """Element-wise minimum over the shares of the batch; no gradient."""
        return x

    def gather_rows(self, x_BD: Float[Tensor, "B D"], parts: int) -> Tensor:
        """The global batch's rows [rows(B), D] in the order in which one process would see them; no gradient.

        Args:
            x_BD: this process's share, part after part.
            parts: of the feed.
        """
        return x_BD

    def feed_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of the whole feed, for the first process to save."""
        return state

    # Shares of a dictionary.

    def latents(self, d_sae: int) -> range:
        """Which of d_sae latents this process holds.

        Raises:
            TrainError: d_sae is not divisible by the number of shards.
        """
        return range(d_sae)

    def bias(self, b_dec_D: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """b_dec for one shard and 0 for the others, so that reconstructions can be summed."""
        return b_dec_D

    def total(self, x: Tensor) -> Tensor:
        """Sum over the shards; its gradient is that of the local part, as every shard computes the same loss."""
        return x

    def largest_in_rows(self, selected: Selected, k: int) -> Selected:
        """Of what every shard selected, each row's k largest: this shard's part."""
        return selected

    def keep_in_rows(self, f_BK: Float[Tensor, "B K"], k: int) -> Float[Tensor, "B K"]:
        """Activations (≥ 0) with 0 where they are not among the k largest of the row over all shards."""
        if k >= f_BK.shape[1]:
            return f_BK
        top = f_BK.topk(k, dim=1, sorted=False)
        return torch.zeros_like(f_BK).scatter(1, top.indices, top.values)

    def place(self, n: int) -> tuple[int, int]:
        """Where this shard's n things stand among all shards': how many come before, and how many there are."""
        return 0, n

    def whole(self, tensor: Tensor, axis: int | None) -> Tensor:
        """The tensor of all latents, in the first process's host memory (elsewhere meaningless); None: not shared."""
        return tensor

    def own(self, tensor: Tensor, axis: int | None) -> Tensor:
        """This shard's latents of a tensor of all latents."""
        return tensor

    # Both.

    def largest(self, selected: Selected, n: int) -> Selected:
        """Of what every process selected, its own part of the n largest."""
        return selected

    def smallest(self, x: Tensor) -> Tensor:
        """Element-wise minimum over all processes; no gradient."""
        return x

    def reduce_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Make the gradients of parameters, by name and in place, those of the whole batch and dictionary."""

    def norm(self, squares: Mapping[str, Tensor]) -> Tensor:
        """Norm of the whole gradient, from the sums of squares of each parameter's."""
        return torch.stack(list(squares.values())).sum().sqrt()

    # The processes themselves.

    @contextmanager
    def together(self, stop: bool = False) -> Iterator[Agreed]:
        """Do what may fail in one process (files, memory): if it does, all stop. No reductions inside.

        Args:
            stop: whether this process was asked to stop; what comes out says whether any was.

        Raises:
            PeerStopped: another process failed, and says why.
        """
        yield Agreed(stop)

    def of_first(self, x: Tensor) -> Tensor:
        """What the first process has in x, which has the same shape everywhere."""
        return x

    def leave(self) -> None:
        """Part from the others once all is done."""


ALONE: Final = World()


def latent_axis(parameter: str, tensor: Tensor) -> int | None:
    """Along which axis of a parameter (or its moments) the latents lie; None where it has no latents."""
    if parameter in ("b_dec", "group_bias") or not tensor.ndim:
        return None
    return 1 if parameter == "W_enc" else 0
