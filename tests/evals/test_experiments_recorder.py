"""The run that is looked at as it trains is the run that was trained."""

import math
from pathlib import Path

import pytest
import torch

from evals.analyses.pair_stability import recording_steps
from evals.experiments.recorder import as_curves, lasting, record, replay
from evals.experiments.training import train
from evals.planted import Temporal, write_cache
from tests.evals.planted_sections import arm, small
from train.member import Member
from train.rows import Rows


@pytest.mark.parametrize("b_dec", ["geometric_median", "zero"])
def test_a_replayed_run_ends_with_the_bits_of_the_trained_one(b_dec: str, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    reader = write_cache(path, Temporal(topics=4, words=2, fast=8), sequences=40, context=32)
    plan = [arm("ortho_pairs", b_dec=b_dec, every=2, refresh=2)]
    (run,) = train(plan, small(), (3,), reader, str(path), 0, tmp_path / "runs", extra={}, device="cpu", say=print)
    seen: list[int] = []

    def look(member: Member, rows: Rows) -> None:
        seen.append(member.steps_done)
        assert rows.x_BD.shape == (64, reader.meta.d_model)

    member = replay(run.config, reader, str(path), look)
    trained, again = run.load(), member.inference(member.weights())
    assert seen == list(range(1, 22))
    for name in ("W_dec", "W_enc", "b_dec", "b_enc"):
        assert torch.equal(getattr(again, name), getattr(trained, name)), name


def test_selections_are_recorded_on_every_kind_of_batch_and_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    source = Temporal(topics=4, words=2, fast=8)
    reader = write_cache(path, source, sequences=60, context=32, held_out_fraction=0.2)
    plan, scale = [arm("ortho_pairs", share=0.01)], small(steps=41)
    (run,) = train(plan, scale, (0,), reader, str(path), 0, tmp_path / "runs", extra={}, device="cpu", say=print)
    found = record(run.config, reader, str(path))
    assert {step + 1 for step in recording_steps(41)} >= {41, 40, 31}
    assert 0 < found.trained.jaccard_L[0] <= found.weights.jaccard_L[0] <= 1
    assert not math.isnan(found.batches.jaccard_L[0])
    text = lasting("ortho_pairs share=0.01", as_curves(found))
    assert "one held-out batch: J(1) " in text
    assert "J(100)" not in text
