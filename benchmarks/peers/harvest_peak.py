"""Peak memory of a harvest beyond its model at work, in a process of its own: MODEL FOLDER TOKENS, a JSON list out."""

import json
import sys
from pathlib import Path

import torch

from benchmarks.harvest import text_config
from harvest.lanes import Lanes, lanes_for
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
    tokens_BT = torch.zeros(config.batch, config.context, dtype=torch.long)
    with Lanes(one.model.device, lanes_for(one.model.d_model)) as lanes:
        passes = [lanes.start(lambda: one.model.residuals(tokens_BT, layers=config.layers)) for _ in range(4 * lanes.n)]
        for one_pass in passes:
            one_pass.result()
    del passes
    before = peak()
    one.run()
    shard = config.shard_sequences * config.context * one.model.d_model * 2
    print(json.dumps([peak() - before, shard]))


if __name__ == "__main__":
    main()
