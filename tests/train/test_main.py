"""The command line: what a user types, what comes back, and what bad input gets."""

import json
import shutil
from pathlib import Path

import pytest

import cache
from tests.cache.planted import make_bits, make_meta, make_rows, write
from tests.train.planted_runs import make_cache
from train.__main__ import main
from train.architectures import ARCHITECTURES
from train.exports import load
from train.inference import InferenceSAE
from train.variants import VARIANTS

QUICK = ["--steps", "6", "--d-sae", "48", "--k", "4", "--set", "batch=96 pool_sequences=16", "--device", "cpu"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("caches") / "planted")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, what was printed, what went to stderr."""
    code = main(list(arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_run_explains_itself(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, "--variant", "topk,relu", "--cache", str(planted), "--out", str(tmp_path), *QUICK)
    assert code == 0
    assert "6 steps × 96 = 576" in told
    first = next(line for line in told.splitlines() if line.startswith("topk-L0")).split()[0]
    assert f"make eval RUN={tmp_path / 'planted' / first}\n" in told
    assert f"python -m train export {tmp_path / 'planted' / first} --format sae_lens\n" in told
    assert "sequences (the whole split) are mixed at a time" not in told  # 16 are asked for
    assert "sequences (of " in told
    assert "576 rows in 0:00:0" in told
    folders = sorted((tmp_path / "planted").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert {one.name for one in folder.iterdir()} >= {
            "config.json", "provenance.json", "metrics.jsonl", "sae", "checkpoint", "summary.json",
        }  # fmt: skip
        config = json.loads((folder / "config.json").read_text())
        assert config["training"]["steps"] == 6
        assert config["sae"]["d_sae"] == 48
        provenance = json.loads((folder / "provenance.json").read_text())
        assert provenance["cache"] == str(planted)
        assert provenance["cache_fingerprint"] == config["cache"] == cache.open(str(planted)).meta.fingerprint
        told_last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert told_last["gb_per_s"] > 0
        assert told_last["documents_per_batch"] > 1
        assert isinstance(load(folder), InferenceSAE)
        assert folder.name in told


def test_the_same_command_again_trains_nothing(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--variant", "topk", "--cache", str(planted), "--out", str(tmp_path), *QUICK]
    first = run(capsys, *command)
    second = run(capsys, *command)
    assert second[0] == 0
    assert "1 of 1 runs are complete and were skipped" in second[1]
    assert first[1].splitlines()[-7:] == second[1].splitlines()[-7:]  # the same table


def test_a_trained_sae_is_exported(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--variant", "topk", "--cache", str(planted), "--out", str(tmp_path), *QUICK)
    (folder,) = (tmp_path / "planted").iterdir()
    code, told, _ = run(capsys, "export", str(folder), "--format", "sae_lens,sparsify")
    assert code == 0
    assert [Path(line).name for line in told.splitlines()] == ["sae_lens", "sparsify"]
    for line in told.splitlines():
        assert load(Path(line)).k == 4


def test_a_sweep_trains_every_combination(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = ["--sweep", "k=3,5", "--sweep", "seed=0,1"]
    quick = [*QUICK[:4], *QUICK[6:]]
    code, _, _ = run(capsys, "--variant", "topk", "--cache", str(planted), "--out", str(tmp_path), *quick, *sweeps)
    assert code == 0
    configs = [json.loads((one / "config.json").read_text())["sae"] for one in (tmp_path / "planted").iterdir()]
    assert {(one["k"], one["seed"]) for one in configs} == {(3, 0), (3, 1), (5, 0), (5, 1)}


def test_a_sweep_file_says_the_same(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        '[defaults]\nsteps = 6\nd_sae = 48\nbatch = 96\n[[run]]\nvariant = "topk"\nk = [3, 5]\nseed = [0, 1]'
    )
    code, told, _ = run(
        capsys, "--sweep-file", str(file), "--cache", str(planted), "--out", str(tmp_path / "runs"), "--device", "cpu"
    )
    assert code == 0
    assert told.count("topk-L0-F48") == 6  # four rows and two commands that come next


REFUSED = {
    "unknown variant": (["--variant", "topkk"], f"unknown VARIANT 'topkk': choose from {', '.join(VARIANTS)}"),
    "unknown base": (["--variant", "relu", "--base", "t"], f"unknown BASE 't': choose from {', '.join(ARCHITECTURES)}"),
    "no variant": ([], "VARIANT must name at least one variant"),
    "unknown key": (["--variant", "topk", "--set", "kk=3"], "unknown setting 'kk': choose from sae.d_sae"),
    "wrong type": (["--variant", "topk", "--set", "lr=fast"], "setting lr must be a finite number, got 'fast'"),
    "no such layer": (["--variant", "topk", "--layer", "3"], "has no layer 3, only 0"),
    "layer is a word": (["--variant", "topk", "--layer", "middle"], "LAYER must be a layer of the cache or several"),
    "k of a relu": (["--variant", "relu", "--k", "3"], "unknown setting 'sae.k'"),
    "k too large": (["--variant", "topk", "--d-sae", "8", "--k", "9"], "k must be between 1 and d_sae=8, got 9"),
    "batch and window": (["--variant", "topk", "--batch", "100", "--set", "window=8"], "batch must be a multiple of"),
    "held-out rows": (["--variant", "topk", "--set", "split=held_out"], "held-out rows are never trained on"),
    "all rows": (["--variant", "topk", "--set", "feed.split=all"], "split must be train, got 'all'"),
    "window too long": (["--variant", "topk", "--batch", "96", "--set", "window=32"], "window must be at most"),
    "unknown logger": (["--variant", "topk", "--log", "mlflow"], "LOG must be among tensorboard, wandb, got 'mlflow'"),
    "no GPU": (["--variant", "topk", "--device", "tpu"], "DEVICE must be one of cpu"),
    "no checkpoints": (["--variant", "topk", "--keep", "0"], "KEEP must be at least 1, got 0"),
    "no sweep file": (["--sweep-file", "/nowhere.toml"], "cannot read the sweep /nowhere.toml"),
    "set and swept": (["--variant", "topk", "--k", "3", "--sweep", "sae.k=3,4"], "is both set and swept"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line_and_leaves_nothing(
    case: str, planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, wanted = REFUSED[case]
    device = [] if "--device" in arguments else ["--device", "cpu"]
    code, _, error = run(capsys, *arguments, *device, "--cache", str(planted), "--out", str(tmp_path / "runs"))
    assert code == 2
    assert wanted in error
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert not list((tmp_path / "runs").glob("*/*/checkpoint"))


def test_a_cache_that_is_missing_incomplete_or_damaged_is_named(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> str:
        code, _, error = run(capsys, "--variant", "topk", "--cache", str(path), "--out", str(tmp_path / "runs"), *QUICK)
        assert code == 2
        return error

    assert "is no cache" in refused(tmp_path / "nothing")
    write(tmp_path / "half", make_meta(), {0: make_bits()}, make_rows(), finish=False)
    assert "run the same harvest again" in refused(tmp_path / "half")
    write(tmp_path / "random", make_meta(random_weights=True), {0: make_bits()}, make_rows())
    assert "random weights" in refused(tmp_path / "random")
    shutil.copytree(planted, tmp_path / "damaged")
    for file in (tmp_path / "damaged/layer_0/c").glob("*/0/0"):
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 4
        file.write_bytes(content)
    assert "does not match its checksum" in refused(tmp_path / "damaged")


def test_without_a_cache_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "make harvest MODEL=miniature" in run(capsys, "--variant", "topk", "--device", "cpu")[2]
    for name in ("a", "b"):
        make_cache(tmp_path / "caches" / name, sequences=8)
    assert "CACHE=caches/a or CACHE=caches/b" in run(capsys, "--variant", "topk", "--device", "cpu")[2]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # type: ignore[attr-defined]
    code, _, error = run(capsys, "--variant", "topk", "--cache", str(planted), "--out", str(tmp_path / "r"), *QUICK)
    assert code == 2
    assert "free space" in error
    assert not (tmp_path / "r").exists()


def test_the_list_names_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, "--list")
    assert code == 0
    assert [line.split()[0] for line in told.splitlines()] == list(VARIANTS)
