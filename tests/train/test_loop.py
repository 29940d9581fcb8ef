"""The loop: alone or together, stopped or not, a run ends with the same bits."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.train.planted_runs import STEPS, make_cache, request, run
from train import checkpoint, launch
from train.architectures import ARCHITECTURES
from train.errors import TrainError
from train.loop import Group, Options
from train.member import Member
from train.normalise import normalisation
from train.run_folder import RunFolder, read_config
from train.variants import VARIANTS, Request
from train.world import World

BASES = ["topk", "batchtopk", "matryoshka", "jumprelu", "gated", "relu", "relu_april"]
TIMES = ("rows_per_s", "gb_per_s", "feed_wait")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("caches") / "planted")


def final(folder: Path) -> Mapping[str, Tensor]:
    """Everything that a finished run knows of itself: parameters, moments, counters, random state."""
    return checkpoint.load(folder, STEPS).tensors


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = final(one), final(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    assert (one / "sae/sae_weights.safetensors").read_bytes() == (other / "sae/sae_weights.safetensors").read_bytes()
    assert lines(one) == lines(other)


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics, without those that measure time."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def test_the_table_of_variants_names_every_architecture() -> None:
    assert {variant.base for variant in VARIANTS.values()} == set(ARCHITECTURES)


def test_trained_together_each_run_ends_with_the_bits_it_has_alone(planted: Path, tmp_path: Path) -> None:
    requests = [request(name) for name in BASES] + [request("topk", seed=1), request("topk", k=6, lr=1e-3)]
    together = run(planted, tmp_path / "together", requests)
    alone = [run(planted, tmp_path / "alone", [one])[0] for one in requests]
    assert [folder.name for folder in together] == [folder.name for folder in alone]
    for one, other in zip(together, alone, strict=True):
        assert_same_bits(one, other)


def test_training_lowers_the_loss_of_every_architecture(planted: Path, tmp_path: Path) -> None:
    for folder in run(planted, tmp_path, [request(name) for name in BASES]):
        told = lines(folder)
        assert told[-1]["term/reconstruction"] < 0.95 * told[0]["term/reconstruction"], folder.name
        assert told[-1]["step"] == STEPS


class _Stop(Exception):
    """What stands for a killed process."""


@pytest.mark.parametrize("stop_after", [1, 6, 7, 13, 23])
def test_a_run_that_is_cut_off_anywhere_ends_with_the_bits_of_one_that_was_not(
    planted: Path, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request("batchtopk"), request("topk", resample_every=10, aux=0.0), request("jumprelu")]
    whole = run(planted, tmp_path / "whole", requests)
    step, count = Member.step, iter(range(10**6))

    def cut(member: Member, *arguments: object, **named: object) -> None:
        if next(count) == stop_after * len(requests) + 1:  # in the middle of a step of the group
            raise _Stop
        step(member, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Member, "step", cut)
        with pytest.raises(_Stop):
            run(planted, tmp_path / "cut", requests)
    resumed = run(planted, tmp_path / "cut", requests)
    for one, other in zip(whole, resumed, strict=True):
        assert_same_bits(one, other)


def test_members_that_were_saved_at_different_steps_meet_again(planted: Path, tmp_path: Path) -> None:
    requests = [request("topk"), request("batchtopk")]
    whole = run(planted, tmp_path / "whole", requests, keep=100)
    behind = run(planted, tmp_path / "mixed", requests, keep=100)
    for folder, last in zip(behind, (7, 21), strict=True):
        (folder / "summary.json").unlink()
        for saved in checkpoint.steps(folder):
            if saved > last:
                for file in (folder / checkpoint.FOLDER / f"step_{saved:08d}").iterdir():
                    file.unlink()
                (folder / checkpoint.FOLDER / f"step_{saved:08d}").rmdir()
    for one, other in zip(whole, run(planted, tmp_path / "mixed", requests, keep=100), strict=True):
        assert_same_bits(one, other)


def test_a_complete_run_is_not_trained_again(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = run(planted, tmp_path, [request("topk")])
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    def never(member: Member, *arguments: object, **named: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Member, "step", never)
    run(planted, tmp_path, [request("topk")])
    assert {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()} == before


def test_a_run_that_diverges_stops_alone_and_says_where(planted: Path, tmp_path: Path) -> None:
    requests = [request("topk"), request("relu", lr=1e30, clip=0), request("batchtopk")]
    alone = run(planted, tmp_path / "alone", [requests[0]])
    reader, said = launch.open_cache(str(planted)), list[str]()
    planned = launch.plan(requests, reader, (0,), tmp_path / "together")
    options = Options(report_every=4, checkpoint_every=7, progress=False)
    assert not launch.train(planned, reader, str(planted), options, World(), said.append)
    message = next(line for line in said if "not finite" in line)
    assert message.startswith("relu")
    assert "sequence:position" in message
    assert "step" in message
    assert not RunFolder(planned[1][1]).complete
    assert not checkpoint.steps(planned[1][1])
    assert_same_bits(alone[0], planned[0][1])
    assert RunFolder(planned[2][1]).complete


def test_the_saved_sae_speaks_raw_units(planted: Path, tmp_path: Path) -> None:
    """Its reconstruction of raw rows is the trainer's of normalised ones."""
    (folder,) = run(planted, tmp_path, [request("topk")])
    reader = launch.open_cache(str(planted))
    config = read_config(folder)
    scale = normalisation(reader, 0, config.feed)
    member = Member(config, RunFolder(folder), scale, device="cpu", world=World(), metadata={})
    member.load(checkpoint.load(folder, STEPS))
    x_BD = reader.layer(0).sequences(0, 3).reshape(-1, 12).float()
    member.sae.eval()
    with torch.no_grad():
        wanted = scale.undo(member.sae(scale.apply(x_BD)))
    weights = load_file(folder / "sae/sae_weights.safetensors")
    pre_BF = (x_BD - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    top = pre_BF.topk(4, dim=1)
    f_BF = torch.zeros_like(pre_BF).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(f_BF @ weights["W_dec"] + weights["b_dec"], wanted, rtol=1e-4, atol=1e-4)


def test_two_processes_do_not_train_one_run(planted: Path, tmp_path: Path) -> None:
    reader = launch.open_cache(str(planted))
    ((config, folder),) = launch.plan([request("topk")], reader, (0,), tmp_path)
    holder = RunFolder(folder)
    holder.begin(config, str(planted))
    with pytest.raises(TrainError, match="another process"):
        RunFolder(folder).begin(config, str(planted))
    holder.end()
    RunFolder(folder).begin(config, str(planted))


def test_a_damaged_checkpoint_is_named_and_not_read(planted: Path, tmp_path: Path) -> None:
    (folder,) = run(planted, tmp_path, [request("topk")])
    (folder / "summary.json").unlink()
    file = folder / checkpoint.FOLDER / f"step_{STEPS:08d}" / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(TrainError, match=f"step_{STEPS:08d} is damaged"):
        run(planted, tmp_path, [request("topk")])
    file.unlink()
    with pytest.raises(TrainError, match="is damaged"):
        run(planted, tmp_path, [request("topk")])


def test_only_the_newest_checkpoints_stay(planted: Path, tmp_path: Path) -> None:
    (folder,) = run(planted, tmp_path, [request("topk")], checkpoint_every=5, keep=2)
    assert checkpoint.steps(folder) == [20, STEPS]


def test_runs_with_different_filters_do_not_share_a_feed(planted: Path, tmp_path: Path) -> None:
    reader = launch.open_cache(str(planted))
    requests = [request("topk"), request("topk", skip_positions=4), request("topk", window=8)]
    planned = launch.plan(requests, reader, (0,), tmp_path)
    assert [run.feed.window for run, _ in planned] == [8, 1, 8] or {run.feed.window for run, _ in planned} == {1, 8}
    assert len({(run.feed.skip_positions, run.feed.window) for run, _ in planned}) == 2


def test_group_takes_no_part_of_a_members_randomness(planted: Path, tmp_path: Path) -> None:
    """torch's own generator is never drawn from: anything else in the process may use it."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(planted, tmp_path, [request(name) for name in BASES])
    assert torch.equal(before, torch.get_rng_state())
    assert Group.__doc__


def test_a_cache_of_random_weights_is_refused_unless_forced(tmp_path: Path) -> None:
    from tests.cache.planted import make_bits, make_meta, make_rows, write

    write(tmp_path / "random", make_meta(random_weights=True), {0: make_bits()}, make_rows())
    with pytest.raises(TrainError, match="random weights"):
        launch.open_cache(str(tmp_path / "random"))
    assert launch.open_cache(str(tmp_path / "random"), force=True).layers == (0,)


def test_a_request_that_contradicts_itself_is_refused(planted: Path) -> None:
    reader = launch.open_cache(str(planted))
    with pytest.raises(TrainError, match="k must be between 1 and d_sae=48"):
        launch.plan([Request(variant="topk", settings={"d_sae": 48, "k": 64})], reader, (0,), Path("runs"))
