"""Peak memory of one harvest beyond its model, in a process of its own: MODEL FOLDER TOKENS, one JSON list out."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.harvest import text_config
from harvest.ranks import Ranks
from harvest.run import Harvest


def peak() -> int:
    """Bytes that were resident at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    model, folder, tokens = sys.argv[1:]
    config = text_config(model, int(tokens), Path(folder))
    one = Harvest(config, Ranks())
    one.model.residuals(torch.zeros(config.batch, config.context, dtype=torch.long), layers=config.layers)
    before = peak()
    one.run()
    shard = config.shard_sequences * config.context * one.model.d_model * 2
    print(json.dumps([peak() - before, shard]))


if __name__ == "__main__":
    main()
