"""The loop with penalties, which keep a state of their own: alone or together, cut off or not, the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.planted_runs import make_cache, request, run
from train import checkpoint
from train.member import Member
from train.penalties import PENALTIES
from train.run_folder import read_config
from train.trackers import read_lines
from train.variants import VARIANTS, Request

STEPS = 12
TIMES = ("rows_per_s", "gb_per_s", "feed_wait")
NAMES = [
    "temporal",
    "temporal_variance",
    "tsae",
    "ortho_active",
    "ortho_pairs",
    "ortho_importance",
    "ortho_adaptive",
    "ortho_groups",
    "ortsae",
]

OWN: dict[str, dict[str, Any]] = {
    "ortho_adaptive": {"ortho_adaptive.every": 2},
    "ortho_groups": {"ortho_groups.by": "clusters", "ortho_groups.every": 2, "ortho_groups.refresh": 3},
    "ortsae": {"ortsae.every": 2},
    "ortho_pairs": {"ortho_pairs.every": 2, "ortho_pairs.refresh": 3, "ortho_pairs.share": 0.1},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("caches") / "planted")


@pytest.fixture(scope="module")
def together(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All of them from one feed, without a break."""
    return run(planted, tmp_path_factory.mktemp("together"), [asked(name) for name in NAMES], checkpoint_every=5)


def asked(name: str) -> Request:
    """Short enough for seconds, long enough that penalties begin, refresh what they know and come to a checkpoint."""
    return request(name, steps=STEPS, window=8, **OWN.get(name, {}))


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = (checkpoint.load(folder, STEPS).tensors for folder in (one, other))
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    told = [
        [{key: value for key, value in line.items() if key not in TIMES} for line in read_lines(run / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert told[0] == told[1]


def test_every_penalty_is_among_those_that_are_tried_and_does_something(together: list[Path]) -> None:
    tried = {penalty for name in NAMES for penalty in VARIANTS[name].penalties}
    assert tried == set(PENALTIES)
    for folder in together:
        for name in read_config(folder).penalties:
            told = read_lines(folder / "metrics.jsonl")
            assert any(line.get(f"term/{name}", 0) * line.get(f"weight/{name}", 0) > 0 for line in told), folder.name


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_alone_a_run_with_a_penalty_ends_with_the_bits_it_has_together(
    planted: Path, together: list[Path], tmp_path: Path, number: int
) -> None:
    (alone,) = run(planted, tmp_path, [asked(NAMES[number])], checkpoint_every=5)
    assert alone.name == together[number].name
    assert_same_bits(alone, together[number])


class _Stop(Exception):
    """What stands for a killed process."""


@pytest.mark.parametrize("stop_after", [3, 8])
def test_runs_with_penalties_that_are_cut_off_end_with_the_bits_of_those_that_were_not(
    planted: Path, together: list[Path], tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Member.step, iter(range(10**6))

    def cut(member: Member, *arguments: object, **named: object) -> None:
        if next(count) == stop_after * len(NAMES) + 4:  # in the middle of a step of the group
            raise _Stop
        step(member, *arguments, **named)  # type: ignore[arg-type]

    requests = [asked(name) for name in NAMES]
    with monkeypatch.context() as patch:
        patch.setattr(Member, "step", cut)
        with pytest.raises(_Stop):
            run(planted, tmp_path, requests, checkpoint_every=5)
    resumed = run(planted, tmp_path, requests, checkpoint_every=5)
    for one, other in zip(together, resumed, strict=True):
        assert_same_bits(one, other)
