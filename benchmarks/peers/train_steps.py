"""One trainer of TopK SAEs in a process of its own: JSON settings as argument, one order a line on stdin, JSON answers.

    {"trainer": "sparsify", "data": "rows.npy", "d_model": 512, "d_sae": 4096, "k": 32, "batch": 1024, "lr": 4e-4,
     "steps": 1000, "seed": 0, "threads": 2, "device": "cpu"}

Orders: `train N` runs N optimiser steps (forward, loss, backward, clipping where the library clips, Adam, unit norm
where it is kept) on the next batches of the file, in its order, from the start again at the end; `fvu` reconstructs the
last batch of the file, which `train` never uses. Each library's imports happen only for its own trainer, so that this
file runs in any environment.
"""

import json
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Trainer(ABC):
    """One library's TopK trainer at the settings asked for."""

    version: str

    @abstractmethod
    def step(self, x_BD: Tensor) -> object:
        """One optimiser step."""

    @abstractmethod
    def reconstruct(self, x_BD: Tensor) -> Tensor:
        """x̂ of the SAE as it is."""


class Silo(Trainer):
    """Our trainer's own step: everything that `python -m train` does between two batches."""

    def __init__(self, asked: dict[str, Any]) -> None:
        from train.architectures import ARCHITECTURES
        from train.config import RunConfig, TrainingConfig
        from train.feed.config import FeedConfig
        from train.member import Member
        from train.normalise import Normalisation
        from train.run_folder import RunFolder
        from train.world import World

        self.version = f"Silo {version('silo-sae')}"
        d_model, d_sae = asked["d_model"], asked["d_sae"]
        config = RunConfig(
            variant="topk",
            architecture="topk",
            sae=ARCHITECTURES["topk"].config(d_model=d_model, d_sae=d_sae, k=asked["k"], seed=asked["seed"]),
            training=TrainingConfig(steps=asked["steps"], lr=asked["lr"], warmup=0, decay=0.0, dead_after=10_000_000),
            feed=FeedConfig(batch=asked["batch"]),
            cache="benchmark",
            sequences=0,
            layer=0,
        )
        self.folder = tempfile.TemporaryDirectory()
        normalisation = Normalisation(torch.zeros(d_model, device=asked["device"]), 1.0, "benchmark")
        self.member = Member(
            config,
            RunFolder(Path(self.folder.name)),
            normalisation,
            device=asked["device"],
            world=World(),
            metadata={},
        )

    def step(self, x_BD: Tensor) -> object:
        from train.feed.batch import Batch
        from train.initialise import geometric_median
        from train.rows import Rows

        if not self.member.steps_done:
            self.member.sae.b_dec.data.copy_(geometric_median(x_BD))
        none = torch.zeros(0, dtype=torch.int64)
        rows = Rows(x_BD, 1, Batch(x_BD, none, none, none, none, none))
        return self.member.step(rows, report=False)

    def reconstruct(self, x_BD: Tensor) -> Tensor:
        return self.member.sae(x_BD)


class SaeLens(Trainer):
    """SAELens' `SAETrainer.step`; `rescale_acts_by_decoder_norm` and the rest at its defaults."""

    def __init__(self, asked: dict[str, Any], *, autocast: bool = False) -> None:
        from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.version = f"SAELens {version('sae-lens')}"
        torch.manual_seed(asked["seed"])
        config = TopKTrainingSAEConfig(
            d_in=asked["d_model"],
            d_sae=asked["d_sae"],
            k=asked["k"],
            device=asked["device"],
        )
        training = SAETrainerConfig(
            total_training_samples=asked["steps"] * asked["batch"],
            train_batch_size_samples=asked["batch"],
            lr=asked["lr"],
            lr_end=asked["lr"],
            device=asked["device"],
            autocast=autocast,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(training, TopKTrainingSAE(config), iter(()))

    def step(self, x_BD: Tensor) -> object:
        done = self.trainer.step(x_BD)
        self.trainer.n_training_steps += 1
        return done

    def reconstruct(self, x_BD: Tensor) -> Tensor:
        return self.trainer.sae.decode(self.trainer.sae.encode(x_BD))


class DictionaryLearning(Trainer):
    """dictionary_learning's `TopKTrainer.update`."""

    def __init__(self, asked: dict[str, Any], *, autocast: bool = False) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.version = f"dictionary_learning {version('dictionary-learning')}"
        self.trainer = TopKTrainer(
            steps=asked["steps"],
            activation_dim=asked["d_model"],
            dict_size=asked["d_sae"],
            k=asked["k"],
            layer=0,
            lm_name="",
            lr=asked["lr"],
            warmup_steps=0,
            seed=asked["seed"],
            device=asked["device"],
        )
        self.steps, self.autocast = 0, bfloat16(asked["device"]) if autocast else nullcontext()

    def step(self, x_BD: Tensor) -> object:
        with self.autocast:
            done = self.trainer.update(self.steps, x_BD)
        self.steps += 1
        return done

    def reconstruct(self, x_BD: Tensor) -> Tensor:
        return self.trainer.ae.decode(self.trainer.ae.encode(x_BD, use_threshold=False))


class Sparsify(Trainer):
    """sparsify's `SparseCoder` with the step of its trainer (which lives inside a hook of a language model).

    It does not clip. Adam is fused here, which its trainer does not ask for.
    """

    def __init__(self, asked: dict[str, Any], *, autocast: bool = False) -> None:
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder

        self.version = f"sparsify {version('eai-sparsify')}"
        torch.manual_seed(asked["seed"])
        config = SparseCoderConfig(num_latents=asked["d_sae"], k=asked["k"])
        self.sae = SparseCoder(asked["d_model"], config, device=asked["device"])
        self.adam = torch.optim.Adam(self.sae.parameters(), lr=asked["lr"], fused=True)
        self.silent_F = torch.zeros(asked["d_sae"], dtype=torch.long, device=asked["device"])
        self.steps, self.autocast = 0, bfloat16(asked["device"]) if autocast else nullcontext()

    def step(self, x_BD: Tensor) -> object:
        if not self.steps:
            self.sae.b_dec.data = x_BD.mean(0)
        self.steps += 1
        self.sae.set_decoder_norm_to_unit_norm()
        with self.autocast:
            out = self.sae(x_BD)
        out.fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.adam.step()
        self.adam.zero_grad()
        self.silent_F += len(x_BD)
        self.silent_F[out.latent_indices.flatten()] = 0
        return out.fvu

    def reconstruct(self, x_BD: Tensor) -> Tensor:
        return self.sae(x_BD).sae_out


TRAINERS = {
    "silo": Silo,
    "saelens": SaeLens,
    "saelens-bf16": lambda asked: SaeLens(asked, autocast=True),
    "dictionary_learning": DictionaryLearning,
    "dictionary_learning-bf16": lambda asked: DictionaryLearning(asked, autocast=True),
    "sparsify": Sparsify,
    "sparsify-bf16": lambda asked: Sparsify(asked, autocast=True),
}


def bfloat16(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


class Process:
    """One trainer and the rows it trains on, which are on the device before the clock starts."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(asked["threads"])
        rows = np.load(asked["data"], mmap_mode=None if asked["device"] == "cpu" else "r")
        self.rows_ND = torch.from_numpy(np.asarray(rows)).to(asked["device"])
        self.batch, self.at = asked["batch"], 0
        self.trainer: Trainer = TRAINERS[asked["trainer"]](asked)

    def train(self, steps: int) -> dict[str, Any]:
        last = len(self.rows_ND) // self.batch - 1
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            start = self.at % last * self.batch
            self.trainer.step(self.rows_ND[start : start + self.batch])
            self.at += 1
        self._wait()
        return {"seconds": time.perf_counter() - begin}

    @torch.no_grad()
    def fvu(self) -> dict[str, Any]:
        x_BD = self.rows_ND[-self.batch :]
        error = (self.trainer.reconstruct(x_BD).float() - x_BD).square().sum()
        return {"fvu": float(error / (x_BD - x_BD.mean(0)).square().sum())}

    def _wait(self) -> None:
        if self.rows_ND.is_cuda:
            torch.cuda.synchronize()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    process = Process(json.loads(sys.argv[1]))
    print(json.dumps({"version": process.trainer.version}), file=answers, flush=True)
    for line in sys.stdin:
        order, *number = line.split()
        answer = process.train(int(number[0])) if order == "train" else process.fvu()
        print(json.dumps(answer), file=answers, flush=True)
