"""SAEs with group biases as files and as runs: what comes back, who refuses them, what resumes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cache
from evals.planted import write_cache
from tests.train.planted_offsets import NORMALISATION, SOURCE, biased, grouped
from tests.train.planted_runs import request, run
from tests.train.planted_training import D, F, untrained
from tests.train.planted_windows import drawn, train
from train import checkpoint, exports
from train.config import RunConfig
from train.errors import TrainError
from train.exports import EXPORTS
from train.folding import fold, fold_decoder_norms, with_pre_bias
from train.inference import InferenceSAE
from train.member import Member
from train.variants import Request, resolve
from train.world import World

K = {"topk": {"k": 3}, "batchtopk": {"k": 3}, "matryoshka": {"k": 3}, "jumprelu": {"k": 3}}


@pytest.mark.parametrize("architecture", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_a_saved_sae_reconstructs_raw_rows_as_training_did_normalised_ones(architecture: str, tmp_path: Path) -> None:
    one = biased(architecture, **K.get(architecture, {}))
    train(one, SOURCE, rows=128)
    rows = drawn(SOURCE, NORMALISATION, window=1, rows=512, seed=5)
    with torch.no_grad():
        wanted_BD = NORMALISATION.undo(one.sae.eval()(rows.x_BD))
    saved = one.inference(one.weights())
    assert saved.group_bias is not None
    assert saved.group_bias.abs().max() > 1e-3
    saved.save(tmp_path)
    back = exports.load(tmp_path)
    for name, tensor in saved.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name
        assert back.tensors()[name].dtype == tensor.dtype
    torch.testing.assert_close(back.forward(NORMALISATION.undo(rows.x_BD)), wanted_BD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        with_pre_bias(back, False).forward(rows.x_BD), back.forward(rows.x_BD), rtol=1e-4, atol=1e-4
    )


def planted() -> InferenceSAE:
    sae = grouped("topk", k=4).inference()
    return fold(sae, torch.linspace(-3.0, 5.0, D), 2.5)


def test_what_other_libraries_would_read_without_the_biases_is_not_written(tmp_path: Path) -> None:
    planted().save(tmp_path / "run" / "sae")
    for name in EXPORTS:
        with pytest.raises(TrainError, match=f"{name} cannot hold group biases"):
            exports.export(tmp_path / "run", [name], tmp_path / "out")
    for name in ("dictionary_learning", "sparsify"):
        with pytest.raises(TrainError, match=f"{name} cannot hold group biases"):
            EXPORTS[name].save(planted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = json.loads((tmp_path / "run" / "sae" / "cfg.json").read_text())
    assert written["architecture"] == "topk_with_group_biases"


def test_a_file_that_says_another_number_of_groups_is_refused(tmp_path: Path) -> None:
    planted().save(tmp_path)
    text = (tmp_path / "cfg.json").read_text()
    for old, new in (('"group_biases": 2', '"group_biases": 3'), ("topk_with_group_biases", "topk")):
        (tmp_path / "cfg.json").write_text(text.replace(old, new))
        with pytest.raises(TrainError, match=r"group_bias|is written as"):
            InferenceSAE.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group_of": None}, "all or none of group_bias, group_of"),
        ({"group_of": torch.full((F,), 3)}, "group_of must be int64 from 0 to 2"),
        ({"group_of": torch.ones(F)}, "group_of must be int64"),
        ({"group_of": torch.zeros(F - 1, dtype=torch.int64)}, r"group_of must be \[F\]"),
        ({"group_bias": torch.zeros(2, D + 1)}, r"group_bias must be \[G, D\]"),
        ({"group_bias": torch.full((2, D), float("nan"))}, "group_bias has 32 values that are not finite"),
    ],
)
def test_groups_that_do_not_fit_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        replace(planted(), **change)


def test_shares_go_with_unit_norms_so_other_norms_are_refused() -> None:
    with pytest.raises(TrainError, match="other norms cannot be folded"):
        fold_decoder_norms(planted(), norm_weighted=True)
    with pytest.raises(TrainError, match="set form=unit"):
        untrained("relu", form="april", group_biases=2)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tagged") / "cache"
    write_cache(path, SOURCE, sequences=48, context=16, shard_sequences=10)
    return path


class _Stop(Exception):
    """What stands for a killed process."""


def test_a_run_that_is_cut_off_ends_with_the_bits_of_one_that_was_not(
    tagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request("ortho_groups", biases=True, **{"ortho_groups.refresh": 4})]
    (whole,) = run(tagged, tmp_path / "whole", requests)
    step, count = Member.step, iter(range(10**6))

    def cut(member: Member, *arguments: object, **named: object) -> None:
        if next(count) == 17:
            raise _Stop
        step(member, *arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Member, "step", cut)
        with pytest.raises(_Stop):
            run(tagged, tmp_path / "cut", requests)
    (resumed,) = run(tagged, tmp_path / "cut", requests)
    before, after = (checkpoint.load(one, 24).tensors for one in (whole, resumed))
    assert before.keys() == after.keys() > {"sae.group_bias", "sae.group_of", "optimiser.group_bias.exp_avg"}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert before["sae.group_bias"].any()
    assert (whole / "sae" / "sae_weights.safetensors").read_bytes() == (
        resumed / "sae" / "sae_weights.safetensors"
    ).read_bytes()


def test_the_penalty_says_how_many_biases_the_sae_has(tagged: Path) -> None:
    reader = cache.open(str(tagged))
    with_them = resolve(Request(variant="ortho_groups", settings={"biases": "true"}), reader, 0)
    without = resolve(Request(variant="ortho_groups"), reader, 0)
    assert (with_them.sae.group_biases, without.sae.group_biases) == (2, 0)
    assert RunConfig.from_json(json.loads(json.dumps(with_them.to_json()))) == with_them
    assert with_them.name != without.name
    with pytest.raises(TrainError, match="unknown setting 'group_biases'"):
        resolve(Request(variant="ortho_groups", settings={"group_biases": "2"}), reader, 0)
    with pytest.raises(TrainError, match="group_biases must be 0, what the penalties ask for, got 2"):
        replace(without, sae=with_them.sae)


def test_a_shared_dictionary_is_refused() -> None:
    class Half(World):
        shards = 2

    config = untrained("topk", k=4, group_biases=2).config
    with pytest.raises(TrainError, match="group biases need whole dictionaries"):
        type(untrained("topk", k=4))(config, Half())
