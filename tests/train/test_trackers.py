"""Loggers: lines of JSON always, TensorBoard and Weights & Biases where they are asked for."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from train import trackers as module
from train.errors import TrainError
from train.run_folder import METRICS
from train.trackers import JsonLines, check, trackers


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


def test_a_line_a_report(tmp_path: Path) -> None:
    log = JsonLines(tmp_path, 0, {})
    log.log(1, {"fvu": 0.5, "l0": 3.0})
    log.log(50, {"fvu": 0.25, "l0": 4.0})
    wanted = [{"step": 1, "fvu": 0.5, "l0": 3.0}, {"step": 50, "fvu": 0.25, "l0": 4.0}]
    assert lines(tmp_path) == wanted, "at once, not when the run ends"
    log.close()


def test_what_is_not_finite_is_null_so_that_every_line_is_json(tmp_path: Path) -> None:
    log = JsonLines(tmp_path, 0, {})
    log.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "l0": 1.0})
    log.close()
    assert "NaN" not in (tmp_path / METRICS).read_text()
    assert lines(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "l0": 1.0}]


def test_a_resumed_run_drops_what_it_will_report_again_and_a_torn_line(tmp_path: Path) -> None:
    first = JsonLines(tmp_path, 0, {})
    for step in (10, 20, 30):
        first.log(step, {"fvu": float(step)})
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 40, "fv')
    second = JsonLines(tmp_path, 20, {})
    second.log(30, {"fvu": -1.0})
    second.close()
    assert [(line["step"], line["fvu"]) for line in lines(tmp_path)] == [(10, 10.0), (20, 20.0), (30, -1.0)]


def test_an_unknown_logger_is_answered_with_those_there_are() -> None:
    with pytest.raises(TrainError, match="LOG must be among tensorboard, wandb, got 'mlflow'"):
        check(("mlflow",))


def test_a_logger_that_is_not_installed_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(TrainError, match=r"wandb is not installed: pip install 'silo-sae\[wandb\]'"):
        check(("wandb",))


def test_without_extras_no_logger_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    (log,) = trackers((), tmp_path, 0, {})
    log.log(1, {"fvu": 1.0})
    log.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_scalars_and_hides_what_a_resumed_run_reports_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps, value in ((0, (10, 20), 1.0), (10, (20, 30), 2.0)):
        loggers = trackers(("tensorboard",), tmp_path, start, {})
        for one in loggers:
            for step in steps:
                one.log(step, {"fvu": value * step})
            one.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("fvu")] == [(10, 10.0), (20, 40.0), (30, 60.0)]


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_takes_a_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    run = tmp_path / "topk-L3"
    run.mkdir()
    jsonl, log = trackers(("wandb",), run, 0, {"sae": {"k": 4}})
    log.log(1, {"fvu": 0.5})
    log.log(2, {"fvu": 0.25})
    log.close()
    jsonl.close()
    (file,) = run.glob("wandb/offline-run-*/run-topk-L3.wandb")
    for _ in range(100):  # a process of wandb's own writes it, and may still be at it
        if b"fvu" in file.read_bytes():
            break
        time.sleep(0.1)
    content = file.read_bytes()
    assert b"fvu" in content
    assert b"sae" in content
