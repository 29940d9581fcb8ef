"""Recorded steps: which are, and that a run that replays them ends with the bits of one that does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.planted_runs import make_cache, request, run
from tests.train.planted_tape import Tape
from tests.train.planted_training import (
    CASES,
    B,
    D,
    as_rows,
    context,
    member,
    planted_batches,
    planted_directions,
    random_rows,
)
from tests.train.test_loop import final, lines
from train import graph as graph_module
from train import launch
from train import member as member_module
from train.config import RunConfig
from train.errors import TrainError
from train.graph import FIXED_SHAPES, WARM_UP, Recorder, recorder_for, repeats
from train.kernels import sparse
from train.kernels.adam import Adam
from train.loop import Options
from train.member import Member
from train.world import World

STEPS, EVERY = 30, 9
FIXED = {name: case for name, case in CASES.items() if case[0] in FIXED_SHAPES}
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a GPU runs: operations of torch, which can be recorded."""
    monkeypatch.setattr(sparse, "_has_numba", lambda: False)


def with_recorder(one: Member, recorder: Recorder | None) -> Member:
    """The same member, new, with this recorder."""
    return Member(
        one.config, one.folder, one.normalisation, device="cpu", world=World(), metadata={}, recorder=recorder
    )


def trained(recorder: Recorder | None, case: str = "topk", **settings: Any) -> tuple[Member, list[dict[str, float]]]:
    """A run with rising and falling rate, clipped steps, a report every 9 steps, dead latents from step 10 on, and one
    short batch; with what it reported."""
    architecture, own = CASES[case]
    given = {"d_sae": 2 * D, "lr": 3e-3, "warmup": 7, "steps": STEPS, "dead_after": 1200, "dead_every": 5, "clip": 0.5}
    one = with_recorder(member(architecture, **given | own | settings), recorder)
    with torch.no_grad():
        one.sae.b_enc[-8:] = -3.0
    batches, reported = planted_batches(planted_directions(24), active=3), list[dict[str, float]]()
    for step in range(STEPS):
        x_BD = next(batches)
        one.step(as_rows(x_BD[:50] if step == 6 else x_BD), report=step % EVERY == 0)
        if step % EVERY == 0:
            reported.append({name: float(value) for name, value in one.last.items()})
    return one, reported


def assert_same_bits(one: Member, other: Member) -> None:
    a, b = one.state(), other.state()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("case", FIXED)
def test_a_replayed_run_ends_with_the_bits_of_an_eager_one(case: str) -> None:
    tape = Tape()
    eager, wanted = trained(None, case)
    replayed, reported = trained(tape, case)
    assert tape.done.count("replay") > 2
    assert len(replayed.silence.dead) > 0, "latents die"
    assert reported == wanted
    assert_same_bits(replayed, eager)
    assert replayed.news == []


def test_steps_are_recorded_once_their_shape_is_warm_and_replayed_until_a_latent_is_dead() -> None:
    """Steps 0 and 9 report, step 6 has a short batch, and from step 10 on AuxK has latents to revive."""
    tape = Tape()
    trained(tape)
    assert tape.done == [*["warm up"] * WARM_UP, "record", "replay", "replay", "warm up", "replay", "replay"]


def test_without_auxk_dead_latents_do_not_end_the_replays() -> None:
    tape = Tape()
    one, _ = trained(tape, aux=0.0)
    assert len(one.silence.dead) > 0
    steps = [step for step in range(STEPS) if step % EVERY and step != 6]
    assert tape.done.count("replay") == len(steps) - WARM_UP
    assert tape.done.count("record") == 1


def test_each_shape_of_a_batch_has_its_own_recording() -> None:
    tape = Tape()
    one = with_recorder(member("topk", k=4, steps=30), tape)
    eager = member("topk", k=4, steps=30)
    for step in range(30):
        rows = as_rows(random_rows(step, B if step % 3 else B // 2))
        one.step(rows, report=False)
        eager.step(rows, report=False)
    assert tape.done.count("record") == 2
    assert_same_bits(one, eager)


def test_resampled_latents_are_those_of_an_eager_run() -> None:
    """Weights, moments and counters change in place, under the recording's feet."""
    settings = {"aux": 0.0, "resample_every": 10}
    eager, _ = trained(None, **settings)
    replayed, _ = trained(Tape(), **settings)
    assert_same_bits(replayed, eager)


def test_a_replay_keeps_the_numbers_of_its_recording() -> None:
    """Of what Python holds nothing gets through, or the tests here could not fail."""
    rate, x_D = 1.0, torch.ones(3)
    replay = Tape().record(lambda: x_D.add_(rate))
    assert torch.equal(x_D, torch.ones(3)), "recording changes nothing"
    rate = 5.0
    replay()
    assert torch.equal(x_D, torch.full((3,), 2.0))


def test_a_learning_rate_that_the_recording_keeps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, _ = trained(None)
    begin = Adam.begin

    def baked(adam: Adam, lr: float) -> None:
        begin(adam, lr)
        adam._lr = torch.tensor(lr, dtype=torch.float64)

    monkeypatch.setattr(Adam, "begin", baked)
    replayed, _ = trained(Tape())
    assert not torch.equal(replayed.sae.W_dec, eager.sae.W_dec)


class Refusing(Tape):
    """Fails in the middle of the recording, as a capture does that meets what it forbids."""

    def record(self, step: Callable[[], object]) -> Callable[[], None]:
        super().record(step)

        def fail() -> None:
            step()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

        return super().record(fail)


def test_a_recording_that_fails_is_told_once_and_leaves_the_bits_alone() -> None:
    eager, wanted = trained(None)
    one, reported = trained(Refusing())
    (told,) = one.news
    assert told.startswith(f"{one.config.name} takes its steps one kernel at a time")
    assert "operation not permitted when stream is capturing" in told
    assert reported == wanted
    assert_same_bits(one, eager)


def test_the_loop_tells_of_a_failed_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "recorder_for", lambda *_: Refusing())
    path, said = make_cache(tmp_path / "cache"), list[str]()
    reader = launch.open_cache(str(path))
    planned = launch.plan([request("topk"), request("relu")], reader, (0,), tmp_path)
    assert launch.train(planned, reader, str(path), Options(progress=False), World(), said.append)
    assert [line.split("-")[0] for line in said if "a recording failed" in line] == ["topk", "relu"]


def test_gradients_of_a_failed_recording_are_not_added_to_the_next_step() -> None:
    one = with_recorder(member("topk", k=4), Refusing())
    assert one.graph is not None

    def backward(x_BD: Tensor) -> None:
        one.sae.losses(x_BD, context(sparsity=1.0)).total().backward()
        raise RuntimeError

    for _ in range(WARM_UP):
        assert one.graph.run(random_rows(), lambda x_BD: None)
    assert not one.graph.run(random_rows(), backward)
    assert one.graph.failure == "RuntimeError"
    assert all(parameter.grad is None for parameter in one.sae.parameters())


@pytest.mark.parametrize("case", ["batchtopk", "matryoshka"])
def test_codes_whose_length_is_the_datas_cannot_be_recorded(case: str) -> None:
    eager, _ = trained(None, case)
    one, _ = trained(Tape(), case)
    assert "not permitted" in one.news[0]
    assert_same_bits(one, eager)


class Pairs(World):
    size = 2


def test_runs_are_recorded_on_a_gpu_where_they_ask_for_it_and_their_steps_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_module, "CudaGraphs", lambda device: Tape())

    def recorder(case: str = "topk", device: torch.device = CUDA, world: World | None = None, **given: Any) -> object:
        return recorder_for(config(case, graph="auto", **given), device, world or World())

    def config(case: str, **given: Any) -> RunConfig:
        architecture, own = CASES[case]
        return member(architecture, **own | given).config

    assert {case for case in CASES if recorder(case)} == FIXED.keys()
    assert recorder_for(config("topk"), CUDA, World()) is None, "off unless asked for"
    assert recorder(device=torch.device("cpu")) is None
    assert recorder(world=Pairs()) is None
    penalised = replace(config("topk", graph="auto"), penalties={"any": member_module.PENALTIES["ortsae"].config()})
    assert recorder_for(penalised, CUDA, World()) is None


def test_a_step_that_warms_up_or_treats_dead_latents_is_not_repeated() -> None:
    sae, without = member("topk", k=4).sae, member("topk", k=4, aux=0.0).sae
    assert repeats(sae, context(sparsity=1.0))
    assert not repeats(sae, context(sparsity=0.9))
    assert not repeats(sae, context(sparsity=1.0, dead=(3,)))
    assert repeats(without, context(sparsity=1.0, dead=(3,)))
    assert repeats(member("gated").sae, context(sparsity=1.0, dead=(3,)))


def test_an_unknown_word_for_the_graph_is_refused() -> None:
    with pytest.raises(TrainError, match="graph must be one of off, auto, got 'on'"):
        member("topk", k=4, graph="on")


def test_a_run_that_records_nothing_is_written_as_runs_were_before_there_were_recordings() -> None:
    plain, asked = member("topk", k=4).config, member("topk", k=4, graph="auto").config
    assert not {"graph", "products"} & plain.to_json()["training"].keys()
    assert asked.to_json()["training"]["graph"] == "auto"
    assert RunConfig.from_json(asked.to_json()) == asked
    assert asked.name != plain.name


def test_runs_in_files_keep_their_bits_stopped_and_resumed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the loop: several members, reports, checkpoints every 7 steps, and a cut in the middle of the replays."""
    planted = make_cache(tmp_path / "cache")
    settings = {"dead_after": 1500}

    def requests(graph: str) -> list[Any]:
        return [request(name, graph=graph, **settings) for name in ("topk", "gated", "batchtopk")]

    eager = run(planted, tmp_path / "eager", requests("off"))
    tapes = list[Tape]()

    def tape(config: RunConfig, device: torch.device, world: World) -> Recorder | None:
        with monkeypatch.context() as patch:
            patch.setattr(graph_module, "CudaGraphs", lambda _: tapes.append(Tape()) or tapes[-1])
            return recorder_for(config, CUDA, world)

    monkeypatch.setattr(member_module, "recorder_for", tape)
    whole = run(planted, tmp_path / "whole", requests("auto"))
    step, count = Member.step, iter(range(10**6))

    def cut(one: Member, *given: Any, **named: Any) -> None:
        if next(count) == 3 * 12:
            raise KeyError
        step(one, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "step", cut)
        with pytest.raises(KeyError):
            run(planted, tmp_path / "cut", requests("auto"))
    resumed = run(planted, tmp_path / "cut", requests("auto"))
    assert len(tapes) == 3 * 2, "topk and gated in each of three starts"
    assert all(one.done.count("replay") > 2 for one in tapes)
    for folders in zip(eager, whole, resumed, strict=True):
        first, *others = [(final(folder), lines(folder)) for folder in folders]
        for tensors_by_name, told in others:
            assert [name for name, one in tensors_by_name.items() if not torch.equal(one, first[0][name])] == []
            assert told == first[1]
