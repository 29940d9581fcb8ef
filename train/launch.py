"""From requests to finished runs: resolve, group by what can share a feed, skip what is complete, train the rest."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

import cache
from cache.reader import CacheReader
from train.config import RunConfig
from train.errors import TrainError
from train.inference import Scalar
from train.loop import Group, Options
from train.member import Member
from train.normalise import normalisation
from train.run_folder import RunFolder
from train.trackers import check
from train.variants import Request, resolve, widen
from train.world import ALONE, World

Say = Callable[[str], None]


def open_cache(path: str, *, force: bool = False) -> CacheReader:
    """A complete cache that may be trained on.

    Raises:
        CacheError: missing, incomplete or damaged.
        TrainError: it was made with random weights, for speed measurements.
    """
    reader = cache.open(path)
    if reader.meta.random_weights and not force:
        raise TrainError(
            f"{path} was harvested with random weights, for speed measurements: harvest a real model, or say --force"
        )
    return reader


def plan(
    requests: list[Request], reader: CacheReader, layers: Iterable[int], out: Path, world: World = ALONE
) -> list[tuple[RunConfig, Path]]:
    """The runs with their folders; those that can share a feed get one batch pattern.

    Where processes share the batches, the feed has a part for each unless a request says how many.

    Raises:
        TrainError: a request that no run can meet.
        CacheError: the cache has no such layer.
    """
    groups: dict[object, list[RunConfig]] = {}
    for layer in layers:
        reader.layer(layer)
        for request in requests:
            run = resolve(_with_parts(request, world.readers), reader, layer)
            _check_shares(run, world)
            groups.setdefault((layer, replace(run.feed, window=1)), []).append(run)
    widened = [run for group in groups.values() for run in widen(group)]
    return [(run, out / name) for name, run in {run.name: run for run in widened}.items()]


def _with_parts(request: Request, readers: int) -> Request:
    if readers == 1 or {"parts", "feed.parts"} & request.settings.keys():
        return request
    return replace(request, settings={**request.settings, "feed.parts": readers})


def _check_shares(run: RunConfig, world: World) -> None:
    world.latents(run.sae.d_sae)
    if run.feed.parts % world.readers:
        raise TrainError(
            f"feed.parts must be a multiple of the {world.readers} processes that share batches, got {run.feed.parts}:"
            f" start as many processes as divide it, or set feed.parts={world.readers} for a run of its own"
        )
    if world.shards > 1 and run.penalties:
        raise TrainError(
            f"{run.variant} has a penalty ({', '.join(run.penalties)}), which needs whole dictionaries: leave"
            " --shard-dictionary out"
        )


def train(
    planned: list[tuple[RunConfig, Path]],
    reader: CacheReader,
    cache_path: str,
    options: Options,
    world: World,
    say: Say,
) -> bool:
    """Train what is not complete yet; returns whether every run came to its end.

    Raises:
        TrainError, CacheError: naming what stood in the way.
    """
    with world.together():
        check(options.log)
    if options.device != "cpu":
        # TensorFloat-32: 10 bits of mantissa in products, sums in float32, at many times float32's rate.
        torch.set_float32_matmul_precision("high")
    complete = world.of_first(torch.tensor([RunFolder(folder).complete for _, folder in planned]))
    pending = [one for one, done in zip(planned, complete.tolist(), strict=True) if not done]
    if skipped := len(planned) - len(pending):
        say(f"{skipped} of {len(planned)} runs are complete and were skipped")
    patterns = dict.fromkeys((run.layer, run.feed) for run, _ in pending)
    ended = True
    for pattern in patterns:
        group = [(run, folder) for run, folder in pending if (run.layer, run.feed) == pattern]
        ended &= _train_group(group, reader, cache_path, options, world, say)
    return ended


def _train_group(
    group: list[tuple[RunConfig, Path]],
    reader: CacheReader,
    cache_path: str,
    options: Options,
    world: World,
    say: Say,
) -> bool:
    layer, pattern = group[0][0].layer, group[0][0].feed
    folders = [RunFolder(folder) for _, folder in group]
    try:
        with world.together():
            own = normalisation(reader, layer, pattern)
        scale = replace(
            own,
            mean_D=world.of_first(own.mean_D).to(options.device),
            scale=float(world.of_first(torch.tensor(own.scale, dtype=torch.float64))),
        )
        with world.together():
            for folder, (run, _) in zip(folders, group, strict=True):
                if world.rank == 0:
                    folder.begin(run, cache_path)
            members = [
                Member(run, folder, scale, device=options.device, world=world, metadata=_metadata(reader, run))
                for folder, (run, _) in zip(folders, group, strict=True)
            ]
        trained = Group(reader, members, scale, options, world)
        trained.run(say)
    finally:
        for folder in folders:
            folder.end()
    if trained.interrupted:
        raise KeyboardInterrupt
    return not any(member.diverged for member in members)


def _metadata(reader: CacheReader, run: RunConfig) -> Mapping[str, Scalar]:
    """What a saved SAE says about the place it belongs to, in SAELens' words."""
    meta = reader.meta
    return {
        "model_name": meta.model.rsplit("/", 1)[-1],
        "model_revision": meta.model_revision,
        "hook_name": f"blocks.{run.layer}.hook_{meta.hook}",
        "layer": run.layer,
        "context_size": meta.context,
        "prepend_bos": meta.bos_token_id >= 0,
        "dataset_path": ",".join(source.dataset for source in meta.sources),
        "variant": run.variant,
        "cache": meta.fingerprint,
    }


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
