"""Experiments: plans that name what was asked, at any scale; tables that say what moved and what does not compare."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evals.errors import EvalError
from evals.experiments.columns import COLUMNS
from evals.experiments.draw import PICTURES
from evals.experiments.held import held_out
from evals.experiments.ideas import IDEAS
from evals.experiments.measure import MEASURES, measure
from evals.experiments.null import write_null
from evals.experiments.plan import arms, at_scale, seeds
from evals.experiments.planted import SOURCES, planted_cache, truth
from evals.experiments.result import of_training
from evals.experiments.run import Experiment, run
from evals.experiments.scales import PLANTED, SCALES, default_scale
from evals.experiments.table import table
from evals.experiments.training import train
from evals.planted import Planted, Temporal, write_cache
from tests.evals.planted_sections import arm, section_of, small
from train.inference import InferenceSAE
from train.variants import resolve


@pytest.mark.parametrize("number", IDEAS)
def test_every_idea_names_measures_columns_and_pictures_that_exist(number: str) -> None:
    idea = IDEAS[number]
    assert set(idea.measures) <= set(MEASURES)
    assert set(idea.columns) | set(idea.planted_columns) <= set(COLUMNS)
    assert set(idea.pictures) <= set(PICTURES)
    assert idea.planted in SOURCES
    assert idea.planted in PLANTED


@pytest.mark.parametrize("name", PLANTED)
def test_planted_dictionaries_have_room_for_all_that_is_on(name: str) -> None:
    assert PLANTED[name].k == round(SOURCES[name].l0)
    assert PLANTED[name].d_sae > SOURCES[name].n_features


@pytest.mark.parametrize("number", [*IDEAS, "003_grid", "003_null"])
@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_of_every_plan_is_a_run_at_every_scale(number: str, scale: str, tmp_path: Path) -> None:
    reader = write_cache(tmp_path / "cache", Temporal(topics=2, words=2, fast=2), sequences=8, context=64)
    plan = arms(number)
    runs = [resolve(at_scale(one, SCALES[scale], 0, {"ortho_groups.by": "clusters"}), reader, 0) for one in plan]
    assert len({one.label for one in plan}) == len(plan)
    assert {one.sae.d_sae for one in runs} == {SCALES[scale].d_sae}
    assert {one.training.steps for one in runs} == {SCALES[scale].steps}


def test_plans_hold_what_the_ideas_asked_for() -> None:
    pairs = [one.request.settings for one in arms("000") if one.request.variant == "ortho_pairs"]
    assert {"share": 0.001, "tau": 0.1} in pairs
    assert {"share": 0.01, "tau": 0.5} in pairs
    assert {"share": 0.0001, "tau": 0.1} in pairs
    assert {"share": 0.001, "tau": 0.1, "norm": "spectral"} in pairs
    assert any(one.get("tau_mode") == "linear" and one["tau_end"] == 0.1 for one in pairs)
    weights = [one.request.settings for one in arms("001") if one.request.variant == "ortho_adaptive"]
    assert [one["first"] for one in weights if one.get("mode") == "literal"] == [1.0, 10.0]
    grouped = [one.request.settings for one in arms("002") if one.request.variant == "ortho_groups"]
    assert [one["alpha"] for one in grouped if one.keys() == {"coeff", "alpha"}] == [0.0, 0.1, 0.2, 0.3]
    assert [one.get("alpha", 0.0) for one in grouped if one.get("biases")] == [0.1, 0.2, 0.0, 0.1]
    assert any(one.keys() > {"alpha", "biases", "condition_max"} for one in grouped)
    cells = {(one.window, one.request.settings.get("coeff", 0)) for one in arms("003_grid")}
    assert cells > {(w, c) for w in (2, 4, 8, 16, 32) for c in (0, 0.01, 0.03, 0.1, 0.3)}
    assert {one.window for one in arms("003_null")} == {window for window, _ in cells if window > 1}
    assert {one.request.settings.get("ortho_importance.decay") for one in arms("004")} >= {0.9, 0.999}


def test_steps_of_a_whole_run_are_counted_in_the_steps_of_this_one() -> None:
    linear = next(one for one in arms("000") if one.request.settings.get("tau_mode") == "linear")
    assert at_scale(linear, small(steps=500), 0, {}).settings["tau_steps"] == 500
    assert at_scale(linear, SCALES["gemma"], 0, {}).settings["tau_steps"] == pytest.approx(4882, abs=1)


def test_an_arms_own_setting_wins_over_the_scale_and_what_it_lacks_is_left_out() -> None:
    own = at_scale(arm("temporal", lr=1e-4), small(), 3, {"lr": 3e-3, "k_aux": 16})
    assert own.settings["lr"] == 1e-4
    assert own.settings["sae.seed"] == 3
    assert "k" not in at_scale(arm("relu"), small(), 0, {}).settings


def test_seeds_are_how_many_or_which() -> None:
    assert seeds("3") == (0, 1, 2)
    assert seeds("0,7") == (0, 7)
    with pytest.raises(ValueError, match="seeds must be"):
        seeds("1,1")


def test_bars_in_headings_do_not_end_a_cell() -> None:
    text = table(section_of([arm("topk")], {"topk": [{"l0": 1.0, "c_dec": 0.1}]}), ("c_dec",))
    assert text.splitlines()[0] == r"| arm | mean \|cos\| ↓ | same L0 |"


def test_a_number_that_one_seed_lacks_is_the_mean_of_the_others() -> None:
    section = section_of([arm("topk")], {"topk": [{"half_life": math.inf}, {"half_life": 2.0}, {"half_life": 4.0}]})
    assert section.means["topk"]["half_life"].mean == 3
    assert section.means["topk"]["half_life"].n == 2


def test_without_time_every_row_keeps_its_position_and_split_and_loses_its_neighbours(tmp_path: Path) -> None:
    source = Temporal(topics=4, words=2, fast=4)
    reader = write_cache(tmp_path / "cache", source, sequences=64, context=16, held_out_fraction=0.25)
    null = write_null(reader, 0, tmp_path / "null", sequences=64)
    old_NTD, new_NTD = (one.layer(0).sequences(0, 64).float() for one in (reader, null))
    assert not torch.equal(old_NTD, new_NTD)
    assert (reader.split() == null.split()).all()
    assert (reader.document() == null.document()).all()
    for split in (0, 1):
        rows_n = torch.from_numpy(np.flatnonzero(reader.split() == split))
        for position in range(16):
            old, new = (x_NTD[rows_n, position].sum(1).sort().values for x_NTD in (old_NTD, new_NTD))
            torch.testing.assert_close(old, new)
    kept = (old_NTD == new_NTD).all(-1)
    assert kept.float().mean() < 0.1
    assert not (kept[:, 1:] & kept[:, :-1]).float().mean() > 0.02
    assert np.sort(reader.tokens(), axis=0).tolist() == np.sort(null.tokens(), axis=0).tolist()


def perfect(source: Planted) -> InferenceSAE:
    """A dictionary of the truth itself, as good as one product can be."""
    directions_PD = source.directions
    f = len(directions_PD)
    return InferenceSAE(
        architecture="jumprelu",
        W_enc=torch.linalg.pinv(directions_PD).contiguous() if f <= source.d_model else directions_PD.T.contiguous(),
        W_dec=directions_PD.contiguous(),
        b_dec=torch.zeros(source.d_model),
        b_enc=torch.zeros(f),
        threshold=torch.full((f,), 0.45),
    )


def test_the_truth_scores_as_the_truth(tmp_path: Path) -> None:
    reader = planted_cache("domains", tmp_path / "cache", sequences=64)
    source = SOURCES["domains"]
    numbers = truth("domains", perfect(source), reader, 4)
    assert numbers["mcs"] == pytest.approx(1, abs=1e-5)
    assert numbers["cross_cosine"] > 0.3  # partners at 0.35 by construction


def test_analyses_of_a_planted_topic_find_that_it_stays(tmp_path: Path) -> None:
    """20 truths in 64 dimensions: the encoder is exact, and topics persist where words do not."""
    source = Temporal(topics=4, words=2, fast=8, p_topic=0.2)
    reader = write_cache(tmp_path / "cache", source, sequences=200, context=32, held_out_fraction=0.5)
    held = held_out(reader, 0, 100)
    assert held.x_nTD.shape == (100, 32, 64)
    one = measure(perfect(source), held, ("time", "kinds", "cosines", "condition", "redundancy"), meta_steps=1)
    assert one.numbers["rho_1"] > 0.2 > 0.05 > abs(one.numbers["rho_1_shuffled"])
    assert one.numbers["redundant"] == 0
    assert one.numbers["position_invariance"] > 0.95
    assert one.numbers["duplicated"] == 0
    assert sum(value for key, value in one.numbers.items() if key.startswith("l0_")) == pytest.approx(1, abs=0.2)


def test_groups_are_not_measured_without_domains(tmp_path: Path) -> None:
    source = Temporal(topics=4, words=2, fast=8)
    reader = write_cache(tmp_path / "cache", source, sequences=40, context=32, held_out_fraction=0.5)
    assert measure(perfect(source), held_out(reader, 0, 20), ("groups",), meta_steps=1).numbers == {}


def test_a_cache_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    reader = write_cache(tmp_path / "cache", Temporal(), sequences=4, context=32, held_out_fraction=0.0)
    with pytest.raises(EvalError, match="holds nothing out"):
        held_out(reader, 0, 4)


def test_models_of_laptop_size_are_experimented_with_at_laptop_size() -> None:
    assert default_scale(128) == "miniature"
    assert default_scale(2304) == "gemma"


def test_help_loads_no_torch_and_a_wrong_idea_names_the_right_ones() -> None:
    from evals.experiments.__main__ import main

    code = "import sys; from evals.experiments.__main__ import _parser; _parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert main(["999", "--cache", "nowhere"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", IDEAS)
def test_an_idea_runs_from_a_cache_to_its_page_and_trains_nothing_twice(number: str, tmp_path: Path) -> None:
    source = SOURCES["domains" if number == "002" else "temporal"]
    reader = write_cache(tmp_path / "cache", source, sequences=300, context=64, held_out_fraction=0.1)
    experiment = Experiment(
        number=number,
        path=str(tmp_path / "cache"),
        layer=0,
        scale=small(grid_seeds=1),
        seeds=(0, 1),
        out=tmp_path / "page",
        runs=tmp_path / "runs",
        planted_steps=21,
        sequences=300,
    )
    said: list[str] = []
    text = run(experiment, reader, "a command", said.append).read_text()
    assert all(f"`{one.label}`" in text for one in arms(number))
    assert "On planted truth" in text
    assert text.count("| baseline |") >= 2
    for picture in text.split("![")[1:]:
        file = experiment.out / picture.split("]")[0]
        assert file.stat().st_size > 5000
    assert any(line.startswith("  training") for line in said)
    said.clear()
    assert run(experiment, reader, "a command", said.append).read_text() == text
    assert any("complete and were skipped" in line for line in said)


def test_a_scheduled_weight_is_the_schedules_and_not_the_logs(tmp_path: Path) -> None:
    """The log has the λ that self-tuning modes move; a schedule's is a function of the step."""
    reader = write_cache(tmp_path / "cache", Temporal(topics=4, words=2, fast=8), sequences=40, context=32)
    plan = [one for one in arms("001") if one.request.settings.get("mode") in ("linear", "log_linear", "fixed")]
    runs = train(
        plan, small(), (0,), reader, str(tmp_path / "cache"), 0, tmp_path / "runs", extra={}, device="cpu", say=print
    )
    last = {str(one.arm.request.settings["mode"]): of_training(one).numbers["weight"] for one in runs}
    assert last == pytest.approx({"fixed": 1.0, "linear": 0.1 + 9.9 * 20 / 21, "log_linear": 0.1 * 100 ** (20 / 21)})
