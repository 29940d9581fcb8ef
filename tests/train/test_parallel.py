import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.train.planted_ranks import arguments, make_cache, metrics, runs, start, together
from train import checkpoint, variants
from train.__main__ import main
from train.errors import TrainError
from train.exports import sae_lens
from train.initialise import directions, stream
from train.launch import plan
from train.parallel import DataParallel, DictionaryParallel, kept_of
from train.penalties import PENALTIES
from train.run_folder import RunFolder, read_config

STEPS = 30
SETTINGS = (f"steps={STEPS}", "dead_after=200", "feed.parts=4")
OFTEN = ("--checkpoint-every", "10", "--keep", "9")
SHARD = "--shard-dictionary"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, and what one process trains from it, under `one`."""
    path = tmp_path_factory.mktemp("ranks")
    make_cache(path / "cache")
    assert main([*arguments(path, "one", *SETTINGS), *OFTEN]) == 0
    return path


def differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, relative to its largest entry; counters differ by 0 or by infinity."""
    assert a.keys() == b.keys()
    return {
        name: float((one - b[name]).abs().max() / one.abs().max().clamp_min(1e-30))
        if one.is_floating_point()
        else (0.0 if torch.equal(one, b[name]) else torch.inf)
        for name, one in a.items()
    }


def assert_same_runs(folder: Path, out: str) -> None:
    """Every run's state, SAE, metrics and summary are those of one process."""
    expected, got = runs(folder, "one"), runs(folder, out)
    assert [run.name for run in got] == [run.name for run in expected], "a run's identity depends on the processes"
    for one, two in zip(expected, got, strict=True):
        states = [checkpoint.load(run, STEPS).tensors for run in (one, two)]
        worst = differences(*states)
        assert max(worst.values()) < 1e-5, (one.name, {name: value for name, value in worst.items() if value > 1e-5})
        saes = [sae_lens.load(run / "sae") for run in (one, two)]
        assert max(differences(saes[0].tensors(), saes[1].tensors()).values()) < 1e-5
        lines = [metrics(run) for run in (one, two)]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]], "several processes write"
        clocks = {"rows_per_s", "gb_per_s", "feed_wait", "documents_per_batch"}  # the last is of the first one's share
        for a, b in zip(*lines, strict=True):
            assert {**b, **dict.fromkeys(clocks, 0.0)} == pytest.approx(
                {**a, **dict.fromkeys(clocks, 0.0)}, rel=1e-4, abs=1e-6
            )
        scores = [RunFolder(run).read("summary.json")["held_out"] for run in (one, two)]
        assert scores[1] == pytest.approx(scores[0], rel=1e-4)


def test_the_runs_that_are_compared_have_dead_latents_and_resampled_ones(folder: Path) -> None:
    states = {run.name: checkpoint.load(run, 20).tensors for run in runs(folder, "one")}
    topk = {name: state for name, state in states.items() if name.startswith("topk")}
    aux = [line["term/aux"] for run in runs(folder, "one") for line in metrics(run) if "term/aux" in line]
    assert max(aux) > 0, "AuxK had nothing to do"
    start = directions(64, 16, 0, range(64))
    moved = [(state["sae.W_dec"] * start).sum(1).min() for state in topk.values()]
    assert min(moved) < 0.5, "nothing was resampled"


def test_two_processes_that_share_batches_train_what_one_process_trains(folder: Path) -> None:
    code, said = together(["-m", "train", *arguments(folder, "batches", *SETTINGS)])
    assert code == 0, said
    assert_same_runs(folder, "batches")
    assert said.count("train    ") == 1, "one process speaks"


def test_two_processes_that_share_dictionaries_train_what_one_process_trains(folder: Path) -> None:
    code, said = together(["-m", "train", *arguments(folder, "dictionaries", *SETTINGS), SHARD])
    assert code == 0, said
    assert_same_runs(folder, "dictionaries")


def test_states_come_back_bit_for_bit_and_what_is_not_finite_stops_every_process(folder: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).parent / "planted_ranks_members.py")
    code, said = together([script, str(runs(folder, "one")[0].parent), "20", str(tmp_path)])
    assert code == 0, said
    for way, run in itertools.product(("DataParallel", "DictionaryParallel"), runs(folder, "one")):
        stored, back = checkpoint.load(run, 20).tensors, load_file(tmp_path / way / f"{run.name}.safetensors")
        assert stored.keys() == back.keys()
        assert not [name for name, tensor in stored.items() if not torch.equal(tensor, back[name])], (way, run.name)


def resumed(folder: Path, out: str, *flags: str) -> None:
    """Ten steps by one process, ten by two, ten by one."""
    shutil.copytree(folder / "one", folder / out)
    _keep_until(folder / out, 10)
    program = [*arguments(folder, out, *SETTINGS), *OFTEN]
    code, said = together(["-m", "train", *program, *flags])
    assert code == 0, said
    assert "goes on at step 10" in said
    _keep_until(folder / out, 20)
    assert main(program) == 0
    assert_same_runs(folder, out)


def _keep_until(out: Path, step: int) -> None:
    for run in out.glob("*/*"):
        (run / "summary.json").unlink()
        for later in [one for one in checkpoint.steps(run) if one > step]:
            shutil.rmtree(run / "checkpoint" / f"step_{later:08d}")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), (SHARD,)])
def test_a_run_goes_on_in_two_processes_and_again_in_one(folder: Path, flags: tuple[str, ...]) -> None:
    resumed(folder, f"resumed{len(flags)}", *flags)


LONG = '[[run]]\nvariant = "batchtopk"\nk = 3\n[[run]]\nvariant = "relu"\n'


def under_way(folder: Path, out: str, *flags: str) -> Any:
    """A long training in two processes, once it has taken steps."""
    program = arguments(folder, out, "steps=1000000", sweep=LONG)
    running = start(["-m", "train", *program, "--report-every", "1", *flags])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        if any((run / "metrics.jsonl").exists() and len(metrics(run)) > 3 for run in runs(folder, out)):
            return running
        time.sleep(0.1)
    running.kill()
    pytest.fail(f"no step was taken: {running.communicate()[0]}")


def workers(running: Any) -> list[int]:
    """Process ids of the processes that torchrun started, in order of rank."""
    text = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
    return sorted(int(one) for one in text.split())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), (SHARD,)])
@pytest.mark.parametrize("whom", ["torchrun", "one process", "all of them"])
def test_a_signal_to_any_process_stops_all_at_one_step_with_a_checkpoint(
    folder: Path, whom: str, flags: tuple[str, ...]
) -> None:
    out = f"signal {whom} {len(flags)}"
    with under_way(folder, out, *flags) as running:
        chosen = {"torchrun": [running.pid], "one process": workers(running)[1:]}
        for one in chosen.get(whom, [running.pid, *workers(running)]):
            os.kill(one, signal.SIGTERM)
        said, _ = running.communicate(timeout=60)
    assert said.count("interrupted: ") == 1, said
    steps = [checkpoint.steps(run) for run in runs(folder, out)]
    assert len(steps) == 2
    assert steps[0] == steps[1]
    assert len(steps[0]) == 1
    parts = checkpoint.load(runs(folder, out)[0], steps[0][0]).feed["parts"]
    assert len(parts) == (1 if flags else 2), "the checkpoint has not every process's place in the feed"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), (SHARD,)])
def test_a_process_that_is_killed_takes_the_others_with_it(folder: Path, flags: tuple[str, ...]) -> None:
    with under_way(folder, f"killed{len(flags)}", *flags) as running:
        os.kill(workers(running)[1], signal.SIGKILL)
        said, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "lost another process" in said or "SIGTERM" in said, said


@pytest.mark.slow
def test_damage_that_one_process_reads_stops_all_and_is_said_once(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    shard = max((tmp_path / "cache").glob("layer_3/c/*/*/*"), key=lambda path: path.parent.parent.name)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    code, said = together(["-m", "train", *arguments(tmp_path, "out", "steps=500", "block=1", sweep=LONG)])
    assert code != 0
    assert said.count("error: ") == 1, said


@pytest.mark.slow
def test_a_request_that_cannot_be_met_is_refused_once(folder: Path) -> None:
    code, said = together(["-m", "train", *arguments(folder, "refused", "steps=5", "feed.parts=1")])
    assert code != 0
    assert said.count("error: feed.parts must be a multiple of the 2 processes that share batches, got 1") == 1, said
    assert not (folder / "refused").exists()


def test_a_dictionary_is_shared_by_several_processes_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(folder, "refused", "steps=5"), SHARD]) == 2
    assert "torchrun" in capsys.readouterr().err


def world_of_two(kind: type[Any]) -> Any:
    """The first of two processes, which never talks to the other."""
    world = kind.__new__(kind)
    world.rank, world.size = 0, 2
    setattr(world, "readers" if kind is DataParallel else "shards", 2)
    return world


def test_only_dictionaries_that_divide_evenly_are_shared() -> None:
    world = world_of_two(DictionaryParallel)
    assert world.latents(64) == range(32)
    with pytest.raises(TrainError, match="d_sae must be a multiple of the 2 processes that share it, got 63: take 64"):
        world.latents(63)


def test_batches_that_are_shared_have_a_part_of_the_feed_for_each_process(folder: Path) -> None:
    from cache import open as open_cache

    reader = open_cache(str(folder / "cache"))
    requests = [variants.Request(variant="relu"), variants.Request(variant="relu", settings={"parts": "4"})]
    planned = plan(requests, reader, [3], folder, world_of_two(DataParallel))
    assert [run.feed.parts for run, _ in planned] == [2, 4]
    assert {read_config(run).feed.parts for run in runs(folder, "one")} == {4}


def test_the_largest_over_all_processes_are_exactly_k_also_among_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        values_RBK = torch.randint(0, 4, (3, 5, 7), generator=generator).float()
        kept = [kept_of(one, values_RBK, 6, rank) for rank, one in enumerate(values_RBK)]
        kept_BN, values_BN = torch.cat(kept, 1), values_RBK.transpose(0, 1).flatten(1)
        assert (kept_BN.sum(1) == 6).all()
        kept_values = torch.stack([row[on].sort().values for row, on in zip(values_BN, kept_BN, strict=True)])
        torch.testing.assert_close(kept_values, values_BN.topk(6).values.sort().values)


def test_a_share_of_the_initial_directions_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_FD = torch.randn(101, 3, generator=stream("directions", 9))
    whole_FD /= whole_FD.norm(dim=1, keepdim=True)
    for chunk in (16, 32, 4096):
        monkeypatch.setattr("train.initialise._CHUNK", chunk)
        for latents in (range(101), range(20, 60), range(90, 101)):
            assert torch.equal(directions(101, 3, 9, latents), whole_FD[latents.start : latents.stop])


@pytest.mark.slow
def test_every_penalty_trains_on_shared_batches_without_waiting_for_ever(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    penalised = {name: [PENALTIES[one].config() for one in row.penalties] for name, row in variants.VARIANTS.items()}
    names = [name for name, some in penalised.items() if some and not any(one.needs_domains for one in some)]
    sweep = "".join(f'[[run]]\nvariant = "{name}"\n' for name in names)
    settings = ("steps=12", "lr=1e-3", "dead_after=200", "dead_every=5")
    code, said = together(["-m", "train", *arguments(tmp_path, "out", *settings, sweep=sweep)])
    assert code == 0, said
    assert len(runs(tmp_path, "out")) == len(names) > 5
    for run in runs(tmp_path, "out"):
        assert metrics(run)[-1]["step"] == 12
        assert metrics(run)[-1]["loss"] is not None, f"{run.name} is not finite"
