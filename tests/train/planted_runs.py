"""Small real runs for the tests of the loop: a planted cache, and one call that trains on it."""

from pathlib import Path
from typing import Any

import cache
from evals.planted.caches import write_cache
from evals.planted.dictionary import Dictionary
from train import launch
from train.loop import Options
from train.variants import Request
from train.world import World

STEPS = 24
SETTINGS: dict[str, Any] = {
    "d_sae": 48,
    "steps": STEPS,
    "batch": 96,
    "lr": 3e-3,
    "dead_after": 300,
    "dead_every": 5,
    "pool_sequences": 16,
}


def make_cache(path: Path, *, sequences: int = 48) -> Path:
    """48 sequences of 16 rows in 12 dimensions: the pool of 16 sequences is refilled several times a run."""
    write_cache(path, Dictionary(d_model=12, features=24), sequences=sequences, context=16, shard_sequences=10)
    return path


def request(variant: str, **settings: Any) -> Request:
    """A run of this variant; k where the architecture has it."""
    own = {} if variant in ("relu", "relu_april", "gated") else {"k": 4}
    return Request(variant=variant, settings=SETTINGS | own | settings)


def run(cache_path: Path, out: Path, requests: list[Request], **options: Any) -> list[Path]:
    """Train on layer 0; returns the runs' folders."""
    said: list[str] = []
    reader = launch.open_cache(str(cache_path))
    planned = launch.plan(requests, reader, (0,), out)
    chosen = Options(**{"report_every": 4, "checkpoint_every": 7, "progress": False, **options})
    launch.train(planned, reader, str(cache_path), chosen, World(), said.append)
    return [folder for _, folder in planned]


def reader_of(cache_path: Path) -> cache.CacheReader:
    """The cache, open."""
    return cache.open(str(cache_path))
