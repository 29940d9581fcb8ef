"""`python -m harvest --layer 12`: run a language model once and keep its residual stream in a cache."""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from cache.errors import CacheError
from harvest.config import HarvestConfig, default_cache, default_sources, default_tokens, parse_layers, parse_tokens
from harvest.errors import HarvestError, PeerStopped


def main(argv: list[str] | None = None) -> int:
    """Run a harvest; returns the exit code: 0 complete, 2 the request could not be met, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's signal ends a harvest as Ctrl-C does
    first = os.environ.get("RANK", "0") == "0"  # of many processes one says what stops all
    try:
        config = _config(arguments)
    except HarvestError as error:
        return _refused(error) if first else 2
    try:
        return _harvest(config, dry_run=arguments.dry_run)
    except PeerStopped:
        return 2
    except (HarvestError, CacheError) as error:
        return _refused(error)
    except KeyboardInterrupt:
        if first:
            sys.stderr.write("interrupted: whole shards are safe; run the same command again to go on\n")
        return 130


def _refused(error: Exception) -> int:
    sys.stderr.write(f"error: {error}\n")
    return 2


def _config(arguments: argparse.Namespace) -> HarvestConfig:
    options = {
        "split": arguments.dataset_split,
        "revision": arguments.dataset_revision,
        "column": arguments.text_column,
        "separator": arguments.separator and arguments.separator.replace("\\n", "\n").replace("\\t", "\t"),
    }
    given = {name: value for name, value in options.items() if value}
    sources = default_sources(arguments.model, arguments.dataset, given)
    layers = parse_layers(arguments.layer)
    tokens = parse_tokens(arguments.tokens) if arguments.tokens else default_tokens(arguments.model)
    cache_path = arguments.cache or default_cache(arguments.model, sources, arguments.context)
    from harvest.ranks import local_device  # torch takes seconds: not for a wrong argument

    return HarvestConfig(
        model=arguments.model,
        revision=arguments.revision,
        layers=layers,
        sources=sources,
        tokens=tokens,
        context=arguments.context,
        packing=arguments.packing,
        cache=Path(cache_path),
        batch=arguments.batch,
        dtype=arguments.dtype,
        attention=arguments.attention,
        device=local_device(arguments.device),
        seed=arguments.seed,
        held_out_fraction=arguments.held_out_fraction,
        shard_sequences=arguments.shard_sequences,
        random_weights=arguments.random_weights,
    )


def _harvest(config: HarvestConfig, *, dry_run: bool) -> int:
    from transformers.utils import logging

    from harvest.ranks import Ranks
    from harvest.run import Harvest

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a log file has no use for it
    ranks = Ranks.join()
    try:
        with ranks.together():
            harvest = Harvest(config, ranks)
        reader = harvest.run(dry_run=dry_run, say=print)
        if reader is not None and ranks.rank == 0:
            print(f"\n{config.cache} is complete. Look at it: make info CACHE={config.cache}")
            print(f"Next: make train VARIANT=topk CACHE={config.cache} LAYER={config.layers[0]}")
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
    add("--dataset", help="hub id, file or folder (.txt .jsonl .parquet, .gz .zst), or miniature; several as "
        "NAME[:CONFIG][=DOMAIN][*WEIGHT],… where CONFIG is a configuration of a hub data set (default: "
        "monology/pile-uncopyrighted, or miniature for the miniature)")  # fmt: skip
    add("--dataset-split", help="split of hub data sets (default: train)")
    add("--dataset-revision", help="branch, tag or commit of hub data sets; the commit is recorded")
    add("--text-column", help="field that holds the text (default: text)")
    add("--separator", help=r"what stands between the documents of a .txt file, such as '\n\n' (default: one document)")
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
    add("--dry-run", action="store_true", help="say what is still to be done, and write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
