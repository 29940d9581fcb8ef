"""What an arm is held against, what counts as moved, and the words for it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t as student

from evals.experiments.ideas import IDEAS
from evals.experiments.moved import chance, words
from evals.experiments.plan import arms, at_scale, baselines
from evals.experiments.result import Mean, of_training, pareto
from evals.experiments.scales import SCALES
from evals.experiments.table import table
from evals.experiments.training import train
from evals.planted import Temporal, write_cache
from tests.evals.planted_sections import arm, section_of, small
from train.config import RunConfig
from train.variants import Request, resolve


def resolved(name: str, path: Path) -> dict[str, RunConfig]:
    """A plan's arms as runs at the miniature's scale."""
    reader = write_cache(path / "cache", Temporal(topics=2, words=2, fast=2), sequences=8, context=64)
    extra = {"ortho_groups.by": "clusters"}
    return {one.label: resolve(at_scale(one, SCALES["miniature"], 0, extra), reader, 0) for one in arms(name)}


@pytest.mark.parametrize("name", [*IDEAS, "003_grid", "003_null"])
def test_every_penalty_of_every_plan_has_the_same_run_without_it(name: str, tmp_path: Path) -> None:
    configs = resolved(name, tmp_path)
    held = baselines(configs)
    for label, config in configs.items():
        other = configs[held[label]]
        assert not any(one.coeff for one in other.penalties.values())
        without = {"variant": "", "penalties": {}}
        if any(one.coeff for one in config.penalties.values()):
            sae = replace(config.sae, group_biases=0)
            assert replace(config, sae=sae, **without) == replace(
                other, sae=replace(other.sae, group_biases=0), **without
            )
            assert other.sae.group_biases == config.sae.group_biases


def test_baselines_follow_the_weights_and_the_learning_rate_and_the_biases(tmp_path: Path) -> None:
    held = baselines(resolved("003", tmp_path / "003"))
    assert held["tsae_code"] == "matryoshka prefixes=0.2,1 weights=0.2,0.8 window=8"
    assert held["tsae"] == held["temporal_variance variance=window"] == "matryoshka prefixes=0.2,1 window=8"
    assert held["temporal coeff=0.1 lr=0.0001 clip=0.1"] == "batchtopk window=8 lr=0.0001 clip=0.1"
    assert held["topk window=8"] == "topk window=8"
    groups = baselines(resolved("002", tmp_path / "002"))
    assert groups["ortho_groups coeff=0.1 alpha=0.1 biases=True"] == "ortho_groups coeff=0 biases=True"
    assert groups["ortho_groups coeff=0 biases=True"] == "batchtopk"


@pytest.mark.parametrize("changed", [{"lr": 1e-5}, {"clip": 0.5}, {"window": 4}, {"base": "topk"}, {"k": 8}])
def test_an_arm_that_differs_by_more_than_its_penalty_has_no_baseline(changed: dict, tmp_path: Path) -> None:
    reader = write_cache(tmp_path / "cache", Temporal(topics=2, words=2, fast=2), sequences=8, context=64)
    base = str(changed.pop("base", ""))
    requests = {"plain": Request(variant="batchtopk"), "other": Request(variant="ortsae", base=base, settings=changed)}
    configs = {label: resolve(one, reader, 0) for label, one in requests.items()}
    assert baselines(configs) == {"plain": "plain"}


def test_a_mean_differs_beyond_twice_the_standard_error_only() -> None:
    base = Mean(mean=1.0, spread=0.1, n=4)
    assert not base.differs(Mean(mean=1.13, spread=0.1, n=4))  # the error of the difference is 0.0707
    assert base.differs(Mean(mean=1.15, spread=0.1, n=4))
    assert not base.differs(Mean(mean=9.0, spread=math.nan, n=1))
    sharp = Mean(mean=1.001, spread=0.0, n=3)
    assert sharp.moved(Mean(mean=1.0, spread=0.0, n=3), 3)
    assert not sharp.moved(Mean(mean=1.0, spread=0.0, n=3), 2)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_chance_is_that_of_students_t(seeds: int) -> None:
    assert chance(seeds) == pytest.approx(2 * student.sf(2, 2 * seeds - 2))


NUMBERS = {
    "batchtopk": [{"fvu": 0.1, "l0": 16.0, "mmc": 0.4}, {"fvu": 0.102, "l0": 16.0, "mmc": 0.4}],
    "ortsae": [{"fvu": 0.2, "l0": 16.1, "mmc": 0.3}, {"fvu": 0.202, "l0": 16.1, "mmc": 0.3}],
    "ortho_active": [{"fvu": 0.101, "l0": 18.0, "mmc": 0.1}, {"fvu": 0.101, "l0": 18.0, "mmc": 0.1}],
    "ortho_pairs": [{"fvu": 0.1, "l0": 16.0, "mmc": 0.4, "active": 0.0}] * 2,
    "ortho_groups": [{"fvu": 0.1, "l0": 16.0, "mmc": 0.4, "active": 0.5}] * 2,
    "temporal": [{"fvu": 0.9, "l0": 16.0, "mmc": 0.9}] * 2,
}


def test_the_table_marks_what_moved_what_does_not_compare_and_what_did_nothing() -> None:
    text = table(section_of([arm(label) for label in NUMBERS], NUMBERS, alone=("temporal",)), ("fvu", "l0", "auc"))
    heading, _, base, other, wide, idle, busy, alone = text.splitlines()
    assert heading == "| arm | FVU ↓ | L0 | same L0 |"
    assert base == "| `batchtopk` | 0.1010 ± 0.0014 | 16.00 ± 0.00 | baseline |"
    assert other == "| `ortsae` | **0.2010 ± 0.0014** | **16.10 ± 0.00** | yes |"
    assert wide == "| `ortho_active` | 0.1010 ± 0.0000 | **18.00 ± 0.00** | no |"
    assert idle == "| `ortho_pairs` (never active) | 0.1000 ± 0.0000 | 16.00 ± 0.00 | yes |"
    assert busy == "| `ortho_groups` | 0.1000 ± 0.0000 | 16.00 ± 0.00 | yes |"
    assert alone == "| `temporal` | 0.9000 ± 0.0000 | 16.00 ± 0.00 | no baseline |"


def test_the_words_name_what_moved_most_first_and_what_did_nothing() -> None:
    text = words(section_of([arm(label) for label in NUMBERS], NUMBERS, alone=("temporal",)), ("l0", "mmc", "fvu"))
    assert text.splitlines() == [
        "**What moved:** 2 of the 4 numbers that have a baseline at the same L0, L0 itself aside.",
        "",
        "- `ortsae` against `batchtopk`: FVU 0.1010 → 0.2010 (worse); max cos 0.400 → 0.300 (better).",
        "- Nothing moved: `ortho_groups`.",
        "- Never active: `ortho_pairs`.",
        "- Another L0, not compared: `ortho_active`.",
        "- No baseline: `temporal`.",
    ]


def test_the_words_stay_a_dozen_lines_and_lose_no_arm() -> None:
    labels = [f"ortsae coeff={place}" for place in range(30)]
    numbers = {"batchtopk": [{"fvu": 0.1, "l0": 16.0}] * 2}
    numbers |= {label: [{"fvu": 0.2 + place, "l0": 16.0}] * 2 for place, label in enumerate(labels)}
    text = words(section_of([arm(label) for label in numbers], numbers), ("fvu",))
    assert len(text.splitlines()) <= 15
    assert all(f"`{label}`" in text for label in labels)
    assert text.index("coeff=29`") < text.index("coeff=0`")


def test_what_it_cost_in_variance_is_told_however_much_else_moved() -> None:
    names = ("mmc", "c_dec", "kappa", "mcs", "all_f1", "meta_explained", "fvu")
    numbers = {"batchtopk": [dict.fromkeys(names, 1.0) | {"l0": 16.0}] * 2}
    numbers["ortsae"] = [dict.fromkeys(names, 3.0) | {"fvu": 1.1, "l0": 16.0}] * 2
    line = words(section_of([arm(label) for label in numbers], numbers), names).splitlines()[2]
    assert line.endswith("FVU 1.0000 → 1.1000 (worse); 2 more.")


def test_one_seed_a_side_says_nothing() -> None:
    numbers = {label: some[:1] for label, some in NUMBERS.items()}
    text = words(section_of([arm(label) for label in numbers], numbers), ("fvu",))
    assert text == "**What moved:** one seed a side says nothing."


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = {"topk": (0.1, 0.5), "ortsae": (0.2, 0.9), "temporal": (0.2, 0.8), "tsae": (0.3, 0.9), "relu": (0.1, 0.5)}
    numbers = {label: [{"fvu": fvu, "rho_1": rho, "l0": 16.0}] for label, (fvu, rho) in points.items()}
    numbers["jumprelu"] = [{"fvu": 0.01, "rho_1": 0.99, "l0": 99.0}]  # at another L0
    section = section_of([arm(label) for label in numbers], numbers)
    assert pareto(section, "fvu", "rho_1") == ["topk", "ortsae", "relu"]


def test_a_penalty_that_never_reaches_a_weight_is_told_from_one_that_does(tmp_path: Path) -> None:
    """As first written the variance within windows has no gradient; the trainable form has one."""
    reader = write_cache(tmp_path / "cache", Temporal(topics=4, words=2, fast=8), sequences=40, context=32)
    plan = [arm("batchtopk"), arm("temporal_variance", variance="literal"), arm("temporal_variance new", start=0)]
    runs = train(
        plan, small(), (0,), reader, str(tmp_path / "cache"), 0, tmp_path / "runs", extra={}, device="cpu", say=print
    )
    plain, literal, trainable = (of_training(one).numbers for one in runs)
    assert "active" not in plain
    assert literal["active"] == 0
    assert trainable["active"] > 0
