"""Unlearning by clamped latents: the selection, the clamp itself, and a subject that the miniature forgets."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from evals import unlearning as module
from evals.artefacts.folder import Artefacts
from evals.clamp import GRIDS, Clamp, Configuration, Grid, configurations, densities, select
from evals.errors import EvalError
from evals.scores import Scores
from evals.unlearning import DEFINITIONS, Questions, known_questions, unlearning
from tests.evals.planted_folder import LAYER, name_sae, subject, write_folder
from tests.train.planted_saes import ARCHITECTURES, D, F, planted_sae, rows
from train.inference import InferenceSAE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    return write_folder(tmp_path_factory.mktemp("unlearning"), "unlearning")


def run(folder: Artefacts, *saes: InferenceSAE, **options: Any) -> list[Scores]:
    subjects = [subject(f"sae{i}", sae) for i, sae in enumerate(saes)]
    return unlearning(subjects, folder, LAYER, say=lambda _text: None, **options)


def test_the_latents_of_one_subjects_names_take_it_out_of_the_miniature_and_spare_the_rest(folder: Artefacts) -> None:
    botany, history = run(folder, name_sae(folder), name_sae(folder, "history"))
    for scores in (botany, history):
        scores.check("one")
        assert scores.extra["unlearning_forget_accuracy_without"] == 1
        assert scores.extra["unlearning_retain_accuracy_without"] == 1
    assert botany.numbers()["unlearning_score"] > 0.6  # chance is 0.75
    best = min(botany.unstructured["configurations"], key=lambda one: one["forget_accuracy"])
    assert best["retain_accuracy"] >= 0.99
    assert len(best["features"]) == 12
    assert history.numbers()["unlearning_score"] == 0  # its latents are never on in the forget corpus
    assert all(one["features"] == () for one in history.unstructured["configurations"])


def test_sixteen_configurations_by_default_and_sixty_on_request(folder: Artefacts) -> None:
    assert len(run(folder, name_sae(folder))[0].unstructured["configurations"]) == 16
    wide = GRIDS["wide"]
    assert len(wide.retain_thresholds) * len(wide.n_features) * len(wide.multipliers) == 60
    with pytest.raises(EvalError, match=r"unknown grid 'all': choose from v0\.6, wide"):
        run(folder, name_sae(folder), grid="all")


def test_a_model_without_a_chat_template_is_refused_before_anything_is_read(
    folder: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a model or read a cache")

    for name in ("load_upper", "densities", "known_questions"):
        monkeypatch.setattr(module, name, never)
    mute = Artefacts(folder.path)
    mute.plan = replace(folder.plan, chat=False)
    with pytest.raises(EvalError, match=r"miniature has no chat template: harvest .* MODEL=google/gemma-2-2b-it"):
        run(mute, name_sae(folder))


def test_only_questions_that_the_model_knew_are_asked(folder: Artefacts, monkeypatch: pytest.MonkeyPatch) -> None:
    body = folder.json("unlearning")
    body["correct"] = [row != 5 for row in range(96)]
    monkeypatch.setattr(folder, "json", lambda _name: body)
    questions = known_questions(folder)
    assert sorted(questions.rows) == [row for row in range(96) if row != 5]
    assert list(questions.length) == sorted(questions.length)
    assert [questions.answers[i] for i, row in enumerate(questions.rows)] == [
        body["answers"][r] for r in questions.rows
    ]
    body["length"] = body["length"][:-1]
    with pytest.raises(EvalError, match=r"96 prompts, but .* in unlearning\.json"):
        known_questions(folder)


def test_questions_of_one_kind_alone_are_refused(folder: Artefacts) -> None:
    reader = folder.cache("unlearning/questions")
    for forget in ((True, True), (False, False)):
        with pytest.raises(EvalError, match="of 2 known ones"):
            Questions(reader=reader, rows=(0, 1), length=(9, 9), answers=(0, 1), letters=(), forget=forget)


def test_latents_that_are_common_elsewhere_or_never_on_are_not_taken() -> None:
    forget_F = torch.tensor([0.5, 0.2, 0.0, 0.2, 0.9, 0.1])
    retain_F = torch.tensor([0.0, 0.0005, 0.0, 0.0, 0.5, 0.005])
    assert select(forget_F, retain_F, 0.001, 10) == (0, 1, 3)
    assert select(forget_F, retain_F, 0.001, 2) == (0, 1)
    assert select(forget_F, retain_F, 0.01, 10) == (0, 1, 3, 5)
    assert select(forget_F, retain_F, 0.6, 1) == (4,)
    found = configurations(Grid(n_features=(2, 10)), forget_F, retain_F)
    assert len(found) == 2 * 2 * 4
    assert {one.features for one in found if one.retain_threshold == 0.01 and one.n_features == 10} == {(0, 1, 3, 5)}


@pytest.mark.parametrize("n_groups", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_clamp_is_decode_of_the_clamped_latents_less_decode_of_the_latents(
    architecture: str, n_groups: int
) -> None:
    sae, x_nTD = planted_sae(architecture, n_groups=n_groups), rows(n=24).view(3, 8, D)
    asked = [
        Configuration(retain_threshold=0.1, n_features=9, multiplier=m, features=features)
        for m in (3.0, 50.0)
        for features in ((0, 3, 17, 30), (), tuple(range(F)))
    ]
    for one, changed_nTD in Clamp(sae, asked).changed(x_nTD):
        f_nTF = sae.encode(x_nTD)
        f_nTF[:, 0] = 0
        clamped_nTF = f_nTF.clone()
        for j in one.features:
            clamped_nTF[..., j] = torch.where(f_nTF[..., j] > 0, -one.multiplier, f_nTF[..., j])
        wanted_nTD = x_nTD + sae.decode(clamped_nTF) - sae.decode(f_nTF)
        torch.testing.assert_close(changed_nTD, wanted_nTD, rtol=1e-4, atol=1e-3)
        assert torch.equal(changed_nTD[:, 0], x_nTD[:, 0])  # BOS
        assert torch.equal(changed_nTD, x_nTD) == (not one.features)


def test_densities_count_tokens_that_are_no_special_ones(folder: Artefacts) -> None:
    sae, reader = name_sae(folder), folder.cache("unlearning/forget")
    (found_F,) = densities(reader, LAYER, [sae], device="cpu")
    tokens_NT = torch.from_numpy(reader.tokens().copy())
    on_NTF = sae.encode(reader.layer(LAYER).sequences(0, reader.n_sequences)) > 0
    wanted_F = on_NTF[tokens_NT > 2].double().mean(dim=0)
    torch.testing.assert_close(found_F, wanted_F)
    assert (found_F > 0).all()


def test_a_configuration_that_harms_the_rest_does_not_count(folder: Artefacts) -> None:
    questions = Questions(
        reader=folder.cache("unlearning/questions"),
        rows=tuple(range(104)),
        length=(49,) * 104,
        answers=(0,) * 104,
        letters=(),
        forget=(True,) * 4 + (False,) * 100,
    )
    asked = [Configuration(retain_threshold=0.01, n_features=n, multiplier=25.0, features=(0,) * n) for n in (1, 2, 3)]
    before_N = torch.ones(104, dtype=torch.bool)
    after_CN = torch.ones(3, 104, dtype=torch.bool)
    after_CN[0, :1] = False  # one of four forgotten
    after_CN[1, :2] = after_CN[1, 10] = False  # two, and 99 of 100 kept
    after_CN[2, :4] = after_CN[2, 10:12] = False  # all, and 98 kept
    scores = module._scores(questions, asked, before_N, after_CN, {})
    assert scores.numbers()["unlearning_score"] == 0.5
    assert scores.extra["unlearning_configurations_kept"] == 2
    assert scores.numbers().keys() == DEFINITIONS.keys()
    assert module._scores(questions, asked[2:], before_N, after_CN[2:], {}).numbers()["unlearning_score"] == 0
