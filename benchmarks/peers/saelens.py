"""How SAELens' cache runner is called: files that it and we can both read, and a process in its own environment."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from torch import Tensor

from harvest.config import HarvestConfig
from harvest.miniature import documents
from harvest.model import ResidualModel

BUFFER_SEQUENCES = 1024
"""What the runner holds in memory before it writes a file."""
CHARACTERS_A_TOKEN = 6
"""More than there are, so that a text written for so many tokens holds them."""


def write_text(path: Path, tokens: int) -> None:
    """Documents of the miniature's generator that hold at least so many tokens, one JSON object a line."""
    held, number = 0, 0
    with path.open("w") as file:
        while held < CHARACTERS_A_TOKEN * tokens:
            for one in documents(1, 1000, start=number):
                held += len(one.text)
                file.write(json.dumps({"text": one.text}) + "\n")
            number += 1000


def write_ids(path: Path, tokens_BT: np.ndarray) -> None:
    """Sequences that are tokenised already, one JSON object a line."""
    with path.open("w") as file:
        file.writelines(json.dumps({"input_ids": one.tolist()}) + "\n" for one in tokens_BT)


class SaeLens:
    """SAELens' `CacheActivationsRunner` at the settings of one of our harvests."""

    def __init__(self, python: str, config: HarvestConfig, model: ResidualModel, folder: Path) -> None:
        """Nothing runs yet; `folder` is for its files."""
        self.python, self.folder, self.layer = python, folder, config.layers[0]
        self.tokens = config.sequences * config.context
        self.version = "SAELens"
        self.settings = {
            "model": model.model.config._name_or_path,
            "out": str(folder / "saelens"),
            "layer": self.layer,
            "d_model": model.d_model,
            "context": config.context,
            "batch": config.batch,
            "sequences": config.sequences,
            "buffer_sequences": min(BUFFER_SEQUENCES, config.sequences),
            "device": config.device,
            "threads": torch.get_num_threads(),
        }

    def seconds(self, data: Path, expected: Tensor | None = None) -> float:
        """Of one run, for as many tokens as we harvest; where the first sequence is known, its vectors must be ours."""
        peer = Path(__file__).parent / "saelens_harvest.py"
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(self.folder / "datasets"), "WANDB_MODE": "disabled"}
        command = [self.python, str(peer), json.dumps(self.settings | {"data": str(data)})]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline)
        if done.returncode:
            raise SystemExit(f"SAELens failed:\n{done.stderr[-3000:]}")
        said = json.loads(done.stdout.splitlines()[-1])
        out = self.settings["out"]
        if expected is not None:
            theirs = torch.tensor(load_from_disk(out)[0][f"model.layers.{self.layer}"])
            torch.testing.assert_close(theirs, expected.float(), rtol=0.05, atol=0.05)
        shutil.rmtree(out)
        self.version = said["version"]
        return float(said["seconds"] * self.tokens / said["tokens"])
