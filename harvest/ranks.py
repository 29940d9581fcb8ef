"""The processes of one harvest: who they are, and where they wait for each other."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from harvest.errors import HarvestError, PeerStopped

PATIENCE: Final = timedelta(days=7)
"""How long a process waits for a slower one, whose shards may take that long; one that dies is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that `torchrun` started; alone without it."""

    rank: int = 0
    world_size: int = 1
    session: str = ""
    """A name that these processes share and no other harvest has."""

    @classmethod
    def join(cls) -> "Ranks":
        """Meet the other processes, if there are any.

        Raises:
            HarvestError: `torchrun` set a world size that cannot be joined.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        try:
            dist.init_process_group("gloo", timeout=PATIENCE)  # nothing on a GPU is ever shared
        except (RuntimeError, ValueError) as error:
            raise HarvestError(f"cannot join {world_size} processes ({error}): start them with torchrun") from error
        names = [uuid.uuid4().hex]
        dist.broadcast_object_list(names)
        return cls(rank=dist.get_rank(), world_size=world_size, session=names[0])

    def wait(self) -> None:
        """Until every process is here.

        Raises:
            PeerStopped: one of them is gone.
        """
        if self.world_size > 1:
            _reach(dist.barrier)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what may fail in one process, or in all for the same reason: if it does, all stop, and one says why.

        Raises:
            PeerStopped: another process failed.
        """
        if self.world_size == 1:
            yield
            return
        try:
            yield
        except Exception:
            if self._first_failed(failed=True) != self.rank:
                raise PeerStopped("another process stopped") from None
            raise
        if self._first_failed(failed=False) is not None:
            raise PeerStopped("another process stopped")

    def agree_on_end(self, end: int | None) -> int | None:
        """Where the text ended, if any process met its end.

        Raises:
            PeerStopped: a process is gone.
        """
        return min((one for one in self._of_all(end) if one is not None), default=None)

    def _first_failed(self, *, failed: bool) -> int | None:
        return next((rank for rank, one in enumerate(self._of_all(failed)) if one), None)

    def _of_all(self, own: Any) -> list[Any]:
        found = [own] * self.world_size
        if self.world_size > 1:
            _reach(dist.all_gather_object, found, own)
        return found

    def leave(self) -> None:
        """Part from the others."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def _reach(collective: Callable[..., object], *arguments: Any) -> None:
    """Meet the others; that one of them is gone becomes the error that says no more than that."""
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise PeerStopped("another process is gone") from error


def local_device(device: str) -> str:
    """The device of this process: `auto` is the GPU if there is one; ranks of one machine take one each.

    Raises:
        HarvestError: more processes than GPUs.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise HarvestError(f"each process of a machine needs a GPU, got {gpus} GPUs: set --nproc-per-node to it")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    return device
