"""Run by `torchrun`: what two processes hold of each run, and what they do with a row that is not finite.

    planted_ranks_members.py RUNS STEP OUT

Writes each run's state, loaded and gathered again, to OUT/<way>/<run>.safetensors.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.train.planted_ranks import D
from train import checkpoint
from train.feed.batch import Batch
from train.member import Member
from train.normalise import Normalisation
from train.parallel import DataParallel, DictionaryParallel
from train.rows import Rows
from train.run_folder import RunFolder, read_config
from train.world import World


def member(folder: Path, world: World, out: Path) -> Member:
    """As training makes it."""
    units = Normalisation(torch.zeros(D), 1.0, "none")
    return Member(read_config(folder), RunFolder(out), units, device="cpu", world=world, metadata={})


def round_trip(folder: Path, step: int, world: World, out: Path) -> None:
    """Load a checkpoint and write what is gathered."""
    one = member(folder, world, out)
    fresh = member(folder, World(), out)
    for name, own in one.sae.named_parameters():
        whole = fresh.sae.get_parameter(name)
        assert own.numel() == whole.numel() // (world.shards if name != "b_dec" else 1), name
        if name == "W_dec":
            latents = world.latents(one.config.sae.d_sae)
            assert torch.equal(own, whole[latents.start : latents.stop])
    moments = sum(tensor.numel() for tensor in one.optimiser.state().values())
    assert moments <= 2 * sum(own.numel() for own in one.sae.parameters()) + 1
    one.load(checkpoint.load(folder, step))
    state = one.state()
    if world.rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, out / f"{folder.name}.safetensors")


def diverges_everywhere(folder: Path, world: World, out: Path) -> None:
    """A NaN that one process alone sees, of a batch that is shared; and that all see, of one that is not."""
    one = member(folder, world, out)
    x_BD = torch.randn(32, D, generator=torch.Generator().manual_seed(world.reader))
    if world.rank == 0 or world.readers == 1:
        x_BD[3, 2] = torch.nan
    zeros = torch.zeros(32, dtype=torch.int32)
    rows = Rows(x_BD, 1, Batch(x_BD.bfloat16(), zeros.long(), zeros, zeros, zeros, zeros[:0].to(torch.uint8)))
    one.step(rows, report=True)
    assert not one.check(rows), f"process {world.rank} did not see that {folder.name} diverged"


def main() -> None:
    """Both ways of sharing, on one process group."""
    runs, step, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo")
    for way in (DataParallel, DictionaryParallel):
        world = way()
        (out / way.__name__).mkdir(parents=True, exist_ok=True)
        for config in sorted(runs.glob("*/config.json")):
            round_trip(config.parent, step, world, out / way.__name__)
            diverges_everywhere(config.parent, world, out / way.__name__)
    world.leave()


if __name__ == "__main__":
    main()
