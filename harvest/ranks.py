"""The processes of one harvest: who they are, and where they wait for each other."""

import os
import uuid
from dataclasses import dataclass

import torch
import torch.distributed as dist

from harvest.errors import HarvestError


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that `torchrun` started; alone without it."""

    rank: int = 0
    world_size: int = 1
    session: str = ""
    """A name that these processes share and no other harvest has."""

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Meet the other processes, if there are any.

        Raises:
            HarvestError: `torchrun` set a world size that cannot be joined.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        try:
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        except (RuntimeError, ValueError) as error:
            raise HarvestError(f"cannot join {world_size} processes ({error}): start them with torchrun") from error
        names = [uuid.uuid4().hex]
        dist.broadcast_object_list(names)
        return cls(rank=dist.get_rank(), world_size=world_size, session=names[0])

    def wait(self) -> None:
        """Until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def agree_on_end(self, end: int | None) -> int | None:
        """Where the text ended, if any process met its end."""
        if self.world_size == 1:
            return end
        ends: list[int | None] = [None] * self.world_size
        dist.all_gather_object(ends, end)
        return min((one for one in ends if one is not None), default=None)

    def leave(self) -> None:
        """Part from the others."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: `auto` is the GPU if there is one; ranks of one machine take one each."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    return device
