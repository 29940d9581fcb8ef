"""Small SAEs in training: random ones whose every weight matters, and ones that learn a planted dictionary."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from train.architectures import ARCHITECTURES
from train.config import RunConfig, TrainingConfig
from train.feed.batch import Batch
from train.feed.config import FeedConfig
from train.member import Member
from train.normalise import Normalisation
from train.rows import Rows
from train.run_folder import RunFolder
from train.sae import SAE, Context
from train.world import World

D, F, B = 16, 64, 48
CASES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "relu": ("relu", {}),
    "relu april": ("relu", {"form": "april"}),
    "topk": ("topk", {"k": 5, "k_aux": 4}),
    "topk multi": ("topk", {"k": 5, "k_aux": 4, "multi": 0.125}),
    "batchtopk": ("batchtopk", {"k": 5, "k_aux": 4}),
    "matryoshka": ("matryoshka", {"k": 5, "k_aux": 4, "prefixes": (0.125, 0.25, 0.5, 1.0)}),
    "gated": ("gated", {}),
    "jumprelu target": ("jumprelu", {"k": 5, "bandwidth": 0.4}),
    "jumprelu l0": ("jumprelu", {"sparsity": "l0", "bandwidth": 0.4, "weight": 0.03}),
    "jumprelu tanh": ("jumprelu", {"sparsity": "tanh", "bandwidth": 0.4, "pre_activation": 0.1}),
}
"""Every architecture in every form, at sizes where each term of the loss has a gradient to speak of."""


def untrained(architecture: str, d_model: int = D, d_sae: int = F, **settings: Any) -> SAE:
    """An SAE as it is before the first step."""
    one = ARCHITECTURES[architecture]
    return one.sae(one.config(d_model=d_model, d_sae=d_sae, **settings))


def random_sae(architecture: str, **settings: Any) -> SAE:
    """An SAE whose parameters are all away from their initial values, decoder rows of norm 1 where they are kept so."""
    sae = untrained(architecture, **settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, one in sae.named_parameters():
            noise = torch.randn(one.shape, generator=generator)
            one += 1.0 + 0.3 * noise if name == "log_threshold" else 0.2 * noise
        if sae.unit_norm:
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae


def random_rows(seed: int = 0, n: int = B, d_model: int = D) -> Tensor:
    """Rows of unit entries."""
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(100 + seed))


def context(step: int = 3, sparsity: float = 0.5, dead: tuple[int, ...] = ()) -> Context:
    """What a loss is told."""
    return Context(step, sparsity, torch.tensor(dead, dtype=torch.int64))


def planted_directions(n: int = D, d_model: int = D) -> Tensor:
    """[n, D] directions of norm 1: orthogonal where they fit, random otherwise."""
    generator = torch.Generator().manual_seed(11)
    if n <= d_model:
        return torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q[:n]
    return torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=1)


def planted_batches(directions_GD: Tensor, *, active: int, rows: int = 128, seed: int = 0) -> Iterator[Tensor]:
    """Batches of sums of `active` directions on average, with strengths between 1 and 2, mean 0 and E‖x‖² = D."""
    generator = torch.Generator().manual_seed(seed)
    share = active / len(directions_GD)

    def draw(n: int) -> Tensor:
        on_BG = torch.rand(n, len(directions_GD), generator=generator) < share
        return (on_BG * (1 + torch.rand(on_BG.shape, generator=generator))) @ directions_GD

    sample_BD = draw(2**14)
    mean_D = sample_BD.mean(0)
    scale = (sample_BD - mean_D).square().mean().sqrt()
    while True:
        yield (draw(rows) - mean_D) / scale


def member(
    architecture: str, folder: Path = Path("nowhere"), d_model: int = D, d_sae: int = F, **settings: Any
) -> Member:
    """A run in memory; settings go to the training's or the architecture's config, whichever has the field."""
    training = {one.name for one in fields(TrainingConfig)} & settings.keys()
    kind = ARCHITECTURES[architecture].config
    config = RunConfig(
        variant=architecture,
        architecture=architecture,
        sae=kind(d_model=d_model, d_sae=d_sae, **{k: v for k, v in settings.items() if k not in training}),
        training=TrainingConfig(**{k: settings[k] for k in training}),
        feed=FeedConfig(),
        cache="planted",
        sequences=1,
        layer=0,
    )
    unit = Normalisation(torch.zeros(d_model), 1.0, "planted")
    return Member(config, RunFolder(folder), unit, device="cpu", world=World(), metadata={})


def as_rows(x_BD: Tensor) -> Rows:
    """Rows without an origin."""
    none = torch.zeros(len(x_BD), dtype=torch.int32)
    domain = torch.zeros(0, dtype=torch.uint8)
    return Rows(x_BD, 1, Batch(x_BD.bfloat16(), none.long(), none, none, none, domain))


def train(one: Member, batches: Iterator[Tensor]) -> SAE:
    """All of a run's steps."""
    while one.active:
        one.step(as_rows(next(batches)), report=False)
    return one.sae
