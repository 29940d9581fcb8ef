"""Many processes, started by `torchrun`, that share each batch (`DataParallel`) or dictionary (`DictionaryParallel`).

Both give the result of one process up to the order of floating-point sums. Collectives are never in a backward pass:
gradients are reduced once, behind it, so no process can wait for one whose graph is another.
Shapes: R processes, B rows of this process, K candidates of a row, n entries, D d_model, F latents of this process.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from train.errors import PeerStopped, TrainError
from train.feed.state import merge_states
from train.kernels import Selected
from train.world import ALONE, Agreed, World

_PATIENCE: Final = timedelta(minutes=30)  # the first process writes and scores while the others wait


def join(device: str, *, shard_dictionary: bool = False) -> World:
    """Meet the processes that `torchrun` started; without it, or with one process, be alone.

    Raises:
        TrainError: they cannot be met, or one process was asked to share a dictionary.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if shard_dictionary and "WORLD_SIZE" not in os.environ:
            raise TrainError("--shard-dictionary needs several processes: start with torchrun --nproc-per-node N")
        return ALONE
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"cannot join {size} processes ({error}): start them with torchrun") from error
    return DictionaryParallel() if shard_dictionary else DataParallel()


def local_device(device: str) -> str:
    """The device of this process: the processes of one machine take one GPU each.

    Raises:
        TrainError: more processes than GPUs.
    """
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= gpus:
        raise TrainError(f"each process of a machine needs a GPU, got {gpus} GPUs: set --nproc-per-node to it")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


class Ranks(World):
    """What both kinds of worlds share."""

    def __init__(self) -> None:
        """The process group is there."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def largest(self, selected: Selected, n: int) -> Selected:
        """The n-th largest of all processes' selections is the cut; of equal values the first process's come first."""
        values_n = _ranked(selected.values_n)
        own_n = values_n.topk(n).values if len(values_n) > n else values_n
        own_n = torch.cat([own_n, own_n.new_full((n - len(own_n),), -torch.inf)])
        kept = kept_of(values_n[None], _gathered(own_n)[:, None], n, self.rank)[0]
        return _only(selected, kept | selected.values_n.isnan())

    def smallest(self, x: Tensor) -> Tensor:
        return _reduced(x, dist.ReduceOp.MIN)

    @contextmanager
    def together(self, stop: bool = False) -> Iterator[Agreed]:
        agreed = Agreed(stop)
        try:
            yield agreed
        except Exception:
            if self._agree(self.rank, stop)[0] == self.rank:
                raise
            raise PeerStopped("another process stopped") from None
        failed, agreed.stop = self._agree(self.size, stop)
        if failed < self.size:
            raise PeerStopped(f"process {failed} stopped")

    def _agree(self, failed: int, stop: bool) -> tuple[int, bool]:
        """The first process that failed (the number of processes: none did), and whether any was asked to stop."""
        failed, going = _reduced(torch.tensor([failed, not stop]), dist.ReduceOp.MIN).tolist()
        return failed, not going

    def of_first(self, x: Tensor) -> Tensor:
        shared = x.clone()
        _reach(dist.broadcast, shared, 0)
        return shared

    def leave(self) -> None:
        self._agree(self.size, False)  # nobody closes the connection while another still needs it
        dist.destroy_process_group()


class DataParallel(Ranks):
    """Each process has its share of every batch and the whole dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.readers, self.reader = self.size, self.rank

    def mean(self, x: Tensor) -> Tensor:
        return _shared(x, 1 / self.size)

    def minimum(self, x: Tensor) -> Tensor:
        return self.smallest(x)

    def gather_rows(self, x_BD: Float[Tensor, "B D"], parts: int) -> Tensor:
        # This process serves the parts rank, rank + R, rank + 2 R, …; one process would see 0, 1, 2, ….
        shares_RPID = _gathered(x_BD.detach()).unflatten(1, (parts // self.size, -1))
        rows_BD: Tensor = shares_RPID.transpose(0, 1).reshape(-1, x_BD.shape[1])
        return rows_BD

    def feed_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
        lengths = _gathered(torch.tensor([len(text)]))[:, 0].tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(text)] = text
        texts = zip(_gathered(padded), lengths, strict=True)
        return merge_states(json.loads(bytes(one[:length].tolist())) for one, length in texts)

    def reduce_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        for gradient in gradients.values():
            _sum_in_place(gradient)
            gradient.div_(self.size)


class DictionaryParallel(Ranks):
    """Each process has the whole batch and an equal run of the latents: their weights, moments and counters."""

    def __init__(self) -> None:
        super().__init__()
        self.shards, self.shard = self.size, self.rank

    def latents(self, d_sae: int) -> range:
        each, rest = divmod(d_sae, self.shards)
        if rest:
            raise TrainError(
                f"d_sae must be a multiple of the {self.shards} processes that share it, got {d_sae}:"
                f" take {(each + 1) * self.shards}"
            )
        return range(self.shard * each, (self.shard + 1) * each)

    def bias(self, b_dec_D: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        return b_dec_D if self.shard == 0 else b_dec_D * 0

    def total(self, x: Tensor) -> Tensor:
        return _shared(x, 1.0)

    def largest_in_rows(self, selected: Selected, k: int) -> Selected:
        values_BK = selected.values_n.unflatten(0, (len(selected.offsets) - 1, -1))
        kept_BK = self._kept(_ranked(values_BK), k) | values_BK.isnan()
        return _only(selected, kept_BK.flatten())

    def keep_in_rows(self, f_BK: Float[Tensor, "B K"], k: int) -> Float[Tensor, "B K"]:
        return f_BK * self._kept(_ranked(f_BK.detach()), k)

    def _kept(self, values_BK: Float[Tensor, "B K"], k: int) -> Bool[Tensor, "B K"]:
        own_Bk = values_BK.topk(min(k, values_BK.shape[1]), dim=1, sorted=False).values
        padded_Bk = torch.nn.functional.pad(own_Bk, (0, k - own_Bk.shape[1]), value=-torch.inf)
        return kept_of(values_BK, _gathered(padded_Bk), k, self.shard)

    def place(self, n: int) -> tuple[int, int]:
        counts = _gathered(torch.tensor([n]))[:, 0].tolist()
        return sum(counts[: self.shard]), sum(counts)

    def whole(self, tensor: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return tensor
        own = tensor.detach().cpu().contiguous()
        shares = [torch.empty_like(own) for _ in range(self.shards)] if self.shard == 0 else None
        _reach(dist.gather, own, shares, 0)
        return torch.cat(shares, axis) if shares else tensor

    def own(self, tensor: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return tensor
        # A copy: a view would keep the whole in memory.
        return tensor.chunk(self.shards, axis)[self.shard].clone()

    def reduce_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        # Each shard has the part of b_dec's gradient that runs through its own latents.
        if "b_dec" in gradients:
            _sum_in_place(gradients["b_dec"])

    def norm(self, squares: Mapping[str, Tensor]) -> Tensor:
        latents = [one for name, one in squares.items() if name != "b_dec"]
        square = _sum(torch.stack(latents).sum())
        return (square + squares["b_dec"]).sqrt() if "b_dec" in squares else square.sqrt()


def kept_of(values_BK: Float[Tensor, "B K"], all_RBk: Float[Tensor, "R B k"], k: int, rank: int) -> Bool[Tensor, "B K"]:
    """Which of this process's values are among the k largest of each row over all processes.

    Exactly k are kept where there are as many above −inf; of equal ones those of the first process, then the first.

    Args:
        values_BK: of this process; no NaN.
        all_RBk: of every process its k largest of each row, −inf where there are fewer.
        k: how many.
        rank: this process.
    """
    everything_BN = all_RBk.transpose(0, 1).flatten(1)
    cut_B1 = everything_BN.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    tied_RB = (all_RBk == cut_B1).sum(2)
    room_B = k - (everything_BN > cut_B1).sum(1) - tied_RB[:rank].sum(0)
    tied_BK = values_BK == cut_B1
    return (values_BK > cut_B1) | (tied_BK & (tied_BK.cumsum(1) <= room_B[:, None]))


def _ranked(values: Tensor) -> Tensor:
    """Values without NaN, which is kept apart: it must reach the loss, and must push nothing out."""
    return values.masked_fill(values.isnan(), -torch.inf)


def _only(selected: Selected, kept_n: Bool[Tensor, " n"]) -> Selected:
    before = torch.cat([selected.offsets.new_zeros(1), kept_n.cumsum(0)])
    return Selected(selected.values_n[kept_n], selected.features_n[kept_n], before[selected.offsets])


class _Sum(torch.autograd.Function):
    """Sum over the processes, times a factor; the gradient is handed on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return _sum(x) * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _shared(x: Tensor, factor: float) -> Tensor:
    summed: Tensor = _Sum.apply(x, factor)  # type: ignore[no-untyped-call]
    return summed


def _sum(x: Tensor) -> Tensor:
    return _reduced(x, dist.ReduceOp.SUM)


def _sum_in_place(x: Tensor) -> None:
    _reach(dist.all_reduce, x if x.is_contiguous() else x.T)  # W_enc's gradient lies latent by latent


def _reduced(x: Tensor, operation: Any) -> Tensor:
    result = x.detach().clone(memory_format=torch.contiguous_format)
    _reach(dist.all_reduce, result, operation)
    return result


def _gathered(x: Tensor) -> Tensor:
    """[R, …]: the same-shaped tensors of all processes."""
    shares = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    _reach(dist.all_gather, shares, x.contiguous())
    return torch.stack(shares)


def _reach(collective: Any, *arguments: Any) -> None:
    """Run a collective.

    Raises:
        TrainError: another process has gone away.
    """
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise TrainError(f"lost another process, whose own message says more ({error})") from error
