"""Members with penalties, trained on windows of a planted source; no cache and no feed."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evals.planted import Planted
from train.architectures import ARCHITECTURES
from train.codes import Code
from train.config import RunConfig, TrainingConfig
from train.feed.batch import Batch
from train.feed.config import FeedConfig
from train.member import Member
from train.normalise import Normalisation
from train.penalties import PENALTIES, Penalty
from train.rows import Rows
from train.run_folder import RunFolder
from train.sae import SAE, Forward, Term
from train.world import World

Settings = dict[str, Any]


def member(
    architecture: str, penalties: dict[str, Settings], normalisation: Normalisation, *, d_sae: int, **settings: Any
) -> Member:
    """A run in memory; settings go to the training's or the architecture's config, whichever has the field."""
    training = {one.name for one in fields(TrainingConfig)} & settings.keys()
    d_model = len(normalisation.mean_D)
    sae = {key: value for key, value in settings.items() if key not in training}
    config = RunConfig(
        variant=architecture,
        architecture=architecture,
        sae=ARCHITECTURES[architecture].config(d_model=d_model, d_sae=d_sae, **sae),
        penalties={name: PENALTIES[name].config(**one) for name, one in penalties.items()},
        training=TrainingConfig(**{"b_dec": "zero", **{key: settings[key] for key in training}}),
        feed=FeedConfig(),
        cache="planted",
        sequences=1,
        layer=0,
    )
    return Member(config, RunFolder(Path("nowhere")), normalisation, device="cpu", world=World(), metadata={})


def normalisation_of(source: Planted) -> Normalisation:
    """Mean and scale of a source, from a sample."""
    x_BD = source.sequences(512, 8, torch.Generator().manual_seed(5)).x.flatten(0, 1)
    mean_D = x_BD.mean(0)
    return Normalisation(mean_D, float((x_BD - mean_D).square().mean().sqrt()), "planted")


def rows_of(x_nWD: Tensor, domain_n: Tensor | None = None, document_n: Tensor | None = None) -> Rows:
    """Windows of normalised rows as a step sees them; every window is a document of its own unless it is said."""
    n, window, d_model = x_nWD.shape
    if document_n is None:
        document_n = torch.arange(n)
    document = document_n.int()[:, None].expand(n, window).contiguous()
    none_n = torch.zeros(n, dtype=torch.int32)
    raw = x_nWD.bfloat16()
    if window == 1:
        raw, document = raw[:, 0], document[:, 0]
    domain_n = torch.zeros(0) if domain_n is None else domain_n
    batch = Batch(raw, none_n.long(), none_n, document, document, domain_n.to(torch.uint8))
    return Rows(x_nWD.reshape(-1, d_model), window, batch)


def drawn(source: Planted, normalisation: Normalisation, *, window: int, rows: int, seed: int) -> Rows:
    """A batch of a source, normalised."""
    sample = source.sequences(rows // window, window, torch.Generator().manual_seed(seed))
    return rows_of((sample.x - normalisation.mean_D) / normalisation.scale, sample.domain)


def train(one: Member, source: Planted, *, window: int = 1, rows: int = 512, steps: int = 0, seed: int = 0) -> Member:
    """All of a run's steps, or some; equal seeds give equal batches."""
    end = one.steps_done + steps if steps else one.config.training.steps
    while one.steps_done < end:
        batch = drawn(source, one.normalisation, window=window, rows=rows, seed=(seed + 1) * 10**6 + one.steps_done)
        one.step(batch, report=False)
    return one


def penalty(name: str, sae: SAE, **settings: Any) -> Penalty:
    """A penalty by itself."""
    kind = PENALTIES[name]
    return kind.penalty(kind.config(**settings), sae, torch.Generator().manual_seed(0))


def forward_of(sae: SAE, code: Code, x_BD: Tensor | None = None, **terms: Tensor) -> Forward:
    """A pass that gave this code."""
    x_BD = torch.zeros(code.n_rows, sae.config.d_model) if x_BD is None else x_BD
    return Forward(x_BD, code, sae.decode(code), {name: Term(value) for name, value in terms.items()})
