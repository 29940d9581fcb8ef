"""`python -m train --variant topk`: train sparse autoencoders from a cache, any number at once."""

import argparse
import os
import sys
from pathlib import Path

from cache.errors import CacheError
from train.errors import PeerStopped, TrainError

# Before torch is loaded: OpenMP's idle threads would spin on the cores that our own kernels work on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the request could not be met, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["export"]:
            return _export(_export_parser().parse_args(argv[1:]))
        return _train(_parser().parse_args(argv))
    except PeerStopped:
        return 2
    except (TrainError, CacheError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of many processes one speaks
            sys.stderr.write("interrupted: a checkpoint was written; run the same command again to go on\n")
        return 130


def _train(arguments: argparse.Namespace) -> int:
    from train import launch, plan, sweep, table  # torch takes seconds: not for --help
    from train.loop import Options
    from train.parallel import join, local_device
    from train.variants import VARIANTS

    if arguments.list:
        print("\n".join(f"{name:<20}{variant.summary}" for name, variant in VARIANTS.items()))
        return 0
    device = local_device(arguments.device if arguments.device != "auto" else launch.default_device())
    world = join(device, shard_dictionary=arguments.shard_dictionary)
    say = print if world.rank == 0 else _silent
    with world.together():
        pairs = [*_shorthand(arguments), *(part for text in arguments.set for part in text.split())]
        if arguments.sweep_file:
            requests = sweep.from_file(arguments.sweep_file, pairs)
        else:
            requests = sweep.from_flags(arguments.variant or "", arguments.base, pairs, arguments.sweep)
        path = arguments.cache or _only_cache()
        reader = launch.open_cache(path, force=arguments.force)
        layers = _layers(arguments.layer) if arguments.layer else (_only_layer(reader.layers, path),)
        out = arguments.out / Path(path.rstrip("/")).name
        planned = launch.plan(requests, reader, layers, out, world)
        options = Options(
            device=device,
            report_every=arguments.report_every,
            checkpoint_every=arguments.checkpoint_every,
            keep=arguments.keep,
            log=tuple(name for name in arguments.log.split(",") if name),
            progress=sys.stderr.isatty() and world.rank == 0,
        )
    where = f"layer {', '.join(map(str, layers))} of {path}"
    say(f"train    {len(planned)} SAE{'s' * (len(planned) > 1)} on {where} → {out}")
    with world.together():
        say(plan.describe(planned, reader, options))
    ended = launch.train(planned, reader, path, options, world, say)
    if world.rank == 0:
        print("\n" + table.table(folder for _, folder in planned))
        print("\nOn held-out rows, each SAE as it is saved; its folder is", planned[0][1].parent / "…")
        evaluate = f"make eval-harvest MODEL={reader.meta.model} LAYER={planned[0][0].layer}"
        print(f"Next: {evaluate}, then make eval RUN={planned[0][1]}")
        print(f"  or: {_python()} -m train export {planned[0][1]} --format sae_lens")
    world.leave()
    return 0 if ended else 2


def _python() -> str:
    """What calls this interpreter from this folder."""
    own, here = Path(sys.executable), Path.cwd()
    return str(own.relative_to(here)) if own.is_relative_to(here) else "python"


def _silent(text: str) -> None:
    """One process of many speaks."""


def _shorthand(arguments: argparse.Namespace) -> list[str]:
    """Flags that are settings too."""
    keys = {"d_sae": "sae.d_sae", "k": "sae.k", "steps": "training.steps", "batch": "feed.batch", "seed": "sae.seed"}
    return [f"{key}={value}" for name, key in keys.items() if (value := getattr(arguments, name)) is not None]


def _only_cache() -> str:
    found = sorted(path.parent for path in Path("caches").glob("*/zarr.json"))
    if len(found) == 1:
        return str(found[0])
    if not found:
        raise TrainError("there is no cache under caches/ yet: make one with `make harvest MODEL=miniature LAYER=2`")
    raise TrainError(f"say which cache: CACHE={' or CACHE='.join(map(str, found))}")


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise TrainError(f"LAYER must be a layer of the cache or several, such as 12 or 5,12, got {text!r}") from None


def _only_layer(layers: tuple[int, ...], path: str) -> int:
    if len(layers) == 1:
        return layers[0]
    raise TrainError(f"{path} has layers {', '.join(map(str, layers))}: say which, LAYER={layers[0]}")


def _export(arguments: argparse.Namespace) -> int:
    from train.exports import export

    for path in export(arguments.run, arguments.format.split(","), arguments.out or arguments.run / "exports"):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train sparse autoencoders from a cache, with no language model in memory. Several variants or a "
        "sweep share one feed; each ends with the bits it would have alone. A run that was stopped goes on with the "
        "same command; one that is complete is skipped.",
        epilog="Examples: python -m train --variant topk --k 64 · --variant topk,batchtopk --sweep k=32,64 --sweep "
        "seed=0,1,2 · --variant temporal --base topk --set 'temporal.coeff=0.1 lr=3e-4' · --sweep-file sweep.toml · "
        "python -m train export RUN --format sae_lens,sparsify. Exit codes: 0 done, 2 the request could not be met "
        "(one line says why) or a run diverged, 130 interrupted.",
    )
    add = parser.add_argument
    add("--variant", metavar="topk", help="name of a variant, or several: topk,batchtopk (--list shows them)")
    add("--cache", help="folder or URL of a cache (default: the only one under caches/)")
    add("--layer", metavar="12", help="which layer of it, or several: 5,12 (default: the only one)")
    add("--base", default="", help="architecture to use instead of the variant's own")
    add("--d-sae", type=int, help="number of latents (default: 8 × d_model)")
    add("--k", type=int, help="latents a row, where the architecture has it (default: 32)")
    add("--steps", type=int, help="optimiser steps (default: 4882)")
    add("--batch", type=int, help="rows a step (default: 2048)")
    add("--seed", type=int, help="of the initial weights (default: 0); feed.seed is that of the rows' order")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting, such as lr=3e-4 or "
        "temporal.coeff=0.1; several in one text or several times; a wrong key lists the right ones")  # fmt: skip
    add("--sweep", action="append", default=[], metavar="KEY=A,B", help="train every combination of these values")
    add("--sweep-file", type=Path, help="runs described in a TOML file; see train/sweep.py")
    add("--out", type=Path, default=Path("runs"), help="folder of the runs (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda (default: the GPU if there is one)")
    add("--log", default="", help="loggers beside metrics.jsonl: tensorboard, wandb")
    add("--report-every", type=int, default=50, help="steps between two lines of metrics (default: %(default)s)")
    add("--checkpoint-every", type=int, default=1000, help="steps between two checkpoints (default: %(default)s)")
    add("--keep", type=int, default=2, help="checkpoints that stay (default: %(default)s)")
    add("--shard-dictionary", action="store_true", help="under torchrun: each process has a share of every dictionary "
        "and sees whole batches (default: shares of batches, whole dictionaries; docs/train_parallel.md)")  # fmt: skip
    add("--force", action="store_true", help="train on a cache of random weights, for speed measurements")
    add("--list", action="store_true", help="list the variants")
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train export", description="Write a trained SAE in other formats.")
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--format", default="sae_lens", help="sae_lens, dictionary_learning, sparsify, or several")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN/exports)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
