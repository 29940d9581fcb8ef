"""Which pairs a run selects as it trains: the same run once more, looked at between its steps.

A selection moves because the weights do and because each batch is another one, so three series are recorded: on the
batch of the step, on one fixed batch of held-out rows, and, with the last weights, on batch after batch.
Source: reference §5.5.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from evals.analyses.pair_stability import PairStability, pair_stability, recording_steps
from evals.experiments.held import held_out
from train.config import RunConfig
from train.errors import TrainError
from train.feed import Batch, Feed
from train.loop import Group, Options
from train.member import Member
from train.normalise import Normalisation, normalisation
from train.penalties.ortho_pairs import OrthoPairsConfig
from train.penalties.pairs import Pairs, coactive
from train.rows import Rows
from train.run_folder import RunFolder
from train.world import ALONE

Look = Callable[[Member, Rows], None]
_SEQUENCES: Final = 256
"""Held-out sequences that the fixed batch is drawn from: a batch's rows are of many documents."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How long selections last, and why they change."""

    trained: PairStability
    """Each on its own batch: what training sees."""
    weights: PairStability
    """All on one batch of held-out rows: what the weights' drift changes."""
    batches: PairStability
    """All with the last weights: what another batch changes; its lags count batches."""


class _Watched(Member):
    """A run that is looked at after each step."""

    look: Look

    def step(self, rows: Rows, *, report: bool) -> None:
        """One step, and a look at it."""
        super().step(rows, report=report)
        self.look(self, rows)


def replay(config: RunConfig, reader: CacheReader, path: str, look: Look, *, device: str = "cpu") -> Member:
    """Train a run again by the trainer's own loop, bit for bit, in a folder that does not stay.

    Args:
        config: of the run.
        reader: of its cache.
        path: of the same cache.
        look: called after each step with the run (`steps_done` counts that step) and the rows it saw.
        device: where to train.

    Raises:
        TrainError: the run diverged.
        KeyboardInterrupt: a signal came.
    """
    scale = normalisation(reader, config.layer, config.feed).to(device)
    options = Options(device=device, report_every=10**9, checkpoint_every=10**9, keep=1, progress=False)
    with TemporaryDirectory() as place:
        folder = RunFolder(Path(place) / config.name)
        folder.begin(config, path)
        try:
            member = _Watched(config, folder, scale, device=device, world=ALONE, metadata={})
            member.look = look
            group = Group(reader, [member], scale, options, ALONE)
            group.run(lambda _: None)
        finally:
            folder.end()
    if group.interrupted:
        raise KeyboardInterrupt
    if member.diverged:
        raise TrainError(member.diverged)
    return member


def record(config: RunConfig, reader: CacheReader, path: str, *, device: str = "cpu") -> Stability:
    """Train a run of `ortho_pairs` again and record what its penalty's rule selects.

    Args:
        config: of the run; its penalty says how many pairs, and by which score.
        reader: of its cache.
        path: of the same cache.
        device: where to train.

    Raises:
        TypeError: the penalty of that name is another one.
        TrainError: the run diverged.
        EvalError: the cache holds nothing out.
    """
    penalty = config.penalties["ortho_pairs"]
    if not isinstance(penalty, OrthoPairsConfig):
        raise TypeError(f"the settings of ortho_pairs are of another penalty: {type(penalty).__name__}")
    lags = (1, 10, 100)
    wanted = set(recording_steps(config.training.steps, lags=lags))
    scale = normalisation(reader, config.layer, config.feed).to(device)
    fixed_BD = scale.apply(_fixed(reader, config).to(device))
    own: dict[int, Pairs] = {}
    still: dict[int, Pairs] = {}

    def look(member: Member, rows: Rows) -> None:
        if (step := member.steps_done - 1) in wanted:
            own[step], still[step] = (_select(member, x_BD, penalty) for x_BD in (rows.x_BD, fixed_BD))

    last = replay(config, reader, path, look, device=device)
    with Feed(reader, (config.layer,), config.feed, device=device) as feed:
        other = {number: _select(last, _rows(next(feed), scale), penalty) for number in range(5)}
    f = config.sae.d_sae
    return Stability(
        trained=pair_stability(own, f, lags=lags),
        weights=pair_stability(still, f, lags=lags),
        batches=pair_stability(other, f, lags=(1, 2, 3)),
    )


def as_curves(found: Stability) -> Mapping[str, PairStability]:
    """Under the names of the picture."""
    return {
        "as trained": found.trained,
        "one held-out batch": found.weights,
        "last weights, other batches": found.batches,
    }


def lasting(label: str, found: Mapping[str, PairStability]) -> str:
    """In words: how long selections last, and what chance would have."""
    series = []
    for name, one in found.items():
        known = [(lag, value) for lag, value in zip(one.lags, one.jaccard_L, strict=True) if not math.isnan(value)]
        half = f"{one.half_life:.1f}" if math.isfinite(one.half_life) else "beyond these"
        text = ", ".join(f"J({lag}) {value:.2f}" for lag, value in known)
        series.append(f"- {name}: {text}, half-life {half}")
    chance = next(iter(found.values())).chance
    return (
        f"How long a selection of pairs lasts (`{label}`, first seed; Jaccard index by distance in steps, in the last"
        f" series in batches; chance {chance:.1g}):\n\n"
    ) + "\n".join(series)


def _fixed(reader: CacheReader, config: RunConfig) -> Float[Tensor, "B D"]:
    """As many held-out rows as a batch has, or as there are, in random order, as a batch's are."""
    rows_RD = held_out(reader, config.layer, _SEQUENCES).rows
    chosen = torch.randperm(len(rows_RD), generator=torch.Generator().manual_seed(0))[: config.feed.batch]
    return rows_RD[chosen]


@torch.no_grad()
def _select(member: Member, x_BD: Float[Tensor, "B D"], penalty: OrthoPairsConfig) -> Pairs:
    sae = member.sae
    k = math.ceil(penalty.share * sae.d_sae * (sae.d_sae - 1) / 2)
    return coactive(sae.encode(x_BD), sae.W_dec, k, score=penalty.score, rows=penalty.rows, most=penalty.top)


def _rows(batch: Batch, scale: Normalisation) -> Float[Tensor, "B D"]:
    return scale.apply(batch.x.reshape(-1, batch.x.shape[-1]))
