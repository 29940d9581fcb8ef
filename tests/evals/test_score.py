"""Scoring from evaluation caches: all SAEs from one reading, no language model."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evals import chunks as chunks_module
from evals import score as score_module
from evals.artefacts.folder import Artefacts
from evals.artefacts.plan import write_json
from evals.errors import EvalError
from evals.first_letter.words import Words
from evals.linear_probe import letter_probe
from evals.pooling import pool_inputs
from evals.saebench.schema import SCHEMAS, check
from evals.score import EVALUATIONS, score
from evals.scores import Scores
from evals.scr import train_probes as train_scr_probes
from evals.sparse_probing import llm_baselines
from evals.subject import Subject
from evals.tpp import train_probes as train_tpp_probes
from tests.evals.planted_evaluation import tiny_folder
from tests.evals.planted_texts import random_sae
from train.inference import InferenceSAE

LAYER, D = 2, 128
OWN = {
    "absorption": {
        "min_feats_for_eval": 2,
        "min_GT_probe_f1": 0.0,
        "k_sparse_probe_num_epochs": 4,
        "k_sparse_probe_least_batches": 1,
    },
    "temporal": {"sequences": 32},
}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """Harvested; the probes on residuals are trained for fewer steps than in a harvest."""
    folder = tiny_folder(tmp_path_factory.mktemp("evals") / "folder", only=("core", "texts", "absorption"))
    tasks, body = folder.json("tasks"), folder.json("absorption")
    x_mean = {name: pool_inputs(folder.cache(f"texts/{name}"), LAYER).x_mean_ND for name in folder.texts()}
    words = Words.read(folder.cache("absorption/train"), LAYER, body["train"])
    letters = letter_probe(words.x_ND, words.letters_N, seed=0, epochs=2, least_steps=1)
    tensors = {"absorption/weight": letters.weight_26D, "absorption/bias": letters.bias_26}
    tensors |= train_scr_probes(x_mean, tasks["scr"], epochs=2, least_steps=1)
    tensors |= train_tpp_probes(x_mean, tasks["tpp"], epochs=2, least_steps=1)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder.path / f"baselines_L{LAYER}.safetensors"
    )
    baselines = {"sparse_probing": llm_baselines(x_mean, tasks["sparse_probing"])}
    write_json(folder.path, f"baselines_L{LAYER}.json", baselines)
    return folder


def subject(name: str, sae: InferenceSAE) -> Subject:
    return Subject(
        name=name, folder=Path(name), sae=sae, layer=LAYER, model="miniature", variant="planted", training_tokens=1
    )


def subjects() -> list[Subject]:
    kinds = ("topk", "jumprelu", "relu")
    return [subject(kind, random_sae(D, 256, architecture=kind, seed=i)) for i, kind in enumerate(kinds)]


def scored(artefacts: Artefacts, of: Sequence[Subject], evaluations: Sequence[str], **more: Any) -> dict[Any, Scores]:
    found = score(of, artefacts, LAYER, evaluations, options=OWN, say=lambda _: None, **more)
    return {(one.name, scores.eval_type): scores for one, scores in found}


def test_every_sae_gets_every_score_in_saebenchs_keys(artefacts: Artefacts) -> None:
    said: list[str] = []
    found = list(score(subjects()[:2], artefacts, LAYER, EVALUATIONS, options=OWN, say=said.append))
    assert Counter(scores.eval_type for _, scores in found) == dict.fromkeys(
        ("core", "temporal", "geometry", "sparse_probing", "scr", "tpp", "absorption_first_letter"), 2
    )
    for one, scores in found:
        scores.check(one.name)
        if scores.eval_type in SCHEMAS:
            check(scores.eval_type, scores.metrics, scores.details)
    assert any("texts bios: 2 SAEs" in line for line in said), said


def test_company_and_memory_change_no_number(artefacts: Artefacts) -> None:
    evaluations = ("core", "geometry", "sparse_probing", "scr", "tpp")
    together, alone = (scored(artefacts, subjects(), evaluations, host_bytes=size) for size in (2**30, 1))
    assert together.keys() == alone.keys()
    for key, scores in together.items():
        assert scores.numbers() == pytest.approx(alone[key].numbers(), rel=1e-6), key


def test_rows_are_read_once_for_all_saes(artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[tuple[str, int]] = Counter()
    inner = chunks_module._read

    def counted(reader: Any, layer: int, start: int, *more: Any) -> Any:
        read[reader.folder.name, start] += 1
        return inner(reader, layer, start, *more)

    monkeypatch.setattr(chunks_module, "_read", counted)
    scored(artefacts, subjects(), ("core",))
    assert set(read.values()) == {1}
    assert {start for _, start in read} == {16, 32}  # batches of 16, after the rows of the losses
    read.clear()
    scored(artefacts, subjects() * 2, ("sparse_probing", "scr", "tpp"))
    later = {start: count for (_, start), count in read.items() if start > 0}  # the first chunk also says how much fits
    assert later
    assert set(later.values()) == {1}


def test_an_sae_that_is_refused_does_not_stop_the_others(artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, (first, *others) = score_module._one, subjects()

    def picky(name: str, sae: InferenceSAE, *more: Any) -> Scores:
        if sae.architecture == first.sae.architecture and name == "scr":
            raise EvalError("nothing to remove")
        return inner(name, sae, *more)

    monkeypatch.setattr(score_module, "_one", picky)
    found = []

    def collect() -> None:
        for one, scores in score([first, *others], artefacts, LAYER, ("scr", "tpp"), say=lambda _: None):
            found.append((one.name, scores.eval_type))

    with pytest.raises(EvalError, match="topk: scr: nothing to remove"):
        collect()
    assert sorted(found) == [
        ("jumprelu", "scr"),
        ("jumprelu", "tpp"),
        ("relu", "scr"),
        ("relu", "tpp"),
        ("topk", "tpp"),
    ]


def test_group_biases_have_every_score_but_those_of_ablation_in_closed_form(artefacts: Artefacts) -> None:
    sae = random_sae(D, 256, architecture="topk")
    biased = replace(sae, group_bias=torch.randn(2, D), group_of=torch.arange(256) % 3)
    found: list[str] = []

    def collect() -> None:
        for _, scores in score([subject("a", biased)], artefacts, LAYER, EVALUATIONS, options=OWN, say=lambda _: None):
            found.append(scores.eval_type)

    with pytest.raises(EvalError, match=r"a: scr: closed-form ablation .* group biases .* a: tpp: closed-form"):
        collect()
    assert sorted(found) == ["absorption_first_letter", "core", "geometry", "sparse_probing", "temporal"]


def test_an_unknown_evaluation_is_refused(artefacts: Artefacts) -> None:
    with pytest.raises(EvalError, match=r"evaluations from caches are core, .* got 'loss'"):
        scored(artefacts, subjects(), ("core", "loss"))


def test_what_was_not_harvested_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "folder", only=("core",))
    found = score(subjects(), folder, LAYER, ("core", "scr"), say=lambda _: None)
    with pytest.raises(EvalError, match="tasks"):
        next(found)


def test_scoring_loads_no_language_model_library() -> None:
    code = "import sys, evals.score; sys.exit('transformers' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_autograd_is_as_before(artefacts: Artefacts) -> None:
    next(score(subjects(), artefacts, LAYER, ("core",), say=lambda _: None))
    assert torch.is_grad_enabled()
