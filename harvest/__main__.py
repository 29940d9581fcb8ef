"""`python -m harvest --layer 12`: run a language model once and keep its residual stream in a cache."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from cache.errors import CacheError
from harvest.config import HarvestConfig, default_cache, default_sources, default_tokens, parse_layers, parse_tokens
from harvest.errors import HarvestError


def main(argv: list[str] | None = None) -> int:
    """Run a harvest; returns the exit code: 0 complete, 2 the request could not be met, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's signal ends a harvest as Ctrl-C does
    try:
        return _harvest(arguments)
    except (HarvestError, CacheError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: whole shards are safe; run the same command again to go on\n")
        return 130


def _harvest(arguments: argparse.Namespace) -> int:
    sources = default_sources(arguments.model, arguments.dataset)
    layers = parse_layers(arguments.layer)
    cache_path = arguments.cache or default_cache(arguments.model, sources, arguments.context)
    from harvest.ranks import Ranks, local_device  # torch and transformers take seconds: not for a wrong argument

    device = local_device(arguments.device)
    config = HarvestConfig(
        model=arguments.model,
        revision=arguments.revision,
        layers=layers,
        sources=sources,
        tokens=parse_tokens(arguments.tokens) if arguments.tokens else default_tokens(arguments.model),
        context=arguments.context,
        packing=arguments.packing,
        cache=Path(cache_path),
        batch=arguments.batch,
        dtype=arguments.dtype,
        attention=arguments.attention,
        device=device,
        seed=arguments.seed,
        held_out_fraction=arguments.held_out_fraction,
        shard_sequences=arguments.shard_sequences,
        random_weights=arguments.random_weights,
    )
    from transformers.utils import logging

    from harvest.run import Harvest

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a log file has no use for it
    ranks = Ranks.join(device)
    try:
        reader = Harvest(config, ranks).run(dry_run=arguments.dry_run, say=print)
        if reader is not None and ranks.rank == 0:
            print(f"\n{config.cache} is complete. Look at it: python -m cache info {config.cache}")
    finally:
        ranks.leave()
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harvest",
        description="Run a language model once over text and keep its residual stream, in order, in a cache that any "
        "number of trainings can read. A killed harvest goes on where it stopped; more tokens extend a cache; another "
        "layer is added beside the first.",
        epilog="Example, offline: python -m harvest --model miniature --layer 2. Several processes: torchrun "
        "--nproc-per-node 8 -m harvest --layer 12. Exit codes: 0 complete, 2 the request could not be met (one line "
        "says why), 130 interrupted.",
    )
    add = parser.add_argument
    add("--layer", required=True, metavar="12", help="block whose output is kept, or several: 5,12,19, in one pass")
    add("--model", default=HarvestConfig.model, help="hub id, local folder, or miniature (default: %(default)s)")
    add("--revision", help="branch, tag or commit of the model; the commit is recorded")
    add("--dataset", help="hub id, file or folder (.txt .jsonl .parquet, .gz), or miniature; several as "
        "NAME[=DOMAIN][*WEIGHT],… (default: monology/pile-uncopyrighted, or miniature for the miniature)")  # fmt: skip
    add("--tokens", help="how many, such as 10M (default: 10M; 1M for the miniature)")
    add("--context", type=int, default=128, help="positions a sequence (default: %(default)s)")
    add("--packing", default="pack", help="pack: documents joined; truncate: one a row (default: %(default)s)")
    add("--cache", help="folder of the cache (default: one under caches/ for this model, text and context)")
    add("--batch", type=int, default=32, help="sequences a forward pass (default: %(default)s)")
    add("--dtype", default="bfloat16", help="what the model computes in (default: %(default)s)")
    add("--attention", help="eager or sdpa (default: eager where attention is soft-capped, as in Gemma-2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: the GPU if there is one)")
    add("--seed", type=int, default=42, help="of the documents' order and the held-out split (default: %(default)s)")
    add("--held-out-fraction", type=float, default=0.05, help="documents never trained on (default: %(default)s)")
    add("--shard-sequences", type=int, default=512, help="sequences a shard file (default: %(default)s)")
    add("--random-weights", action="store_true", help="random weights and tokens, for speed measurements alone")
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
