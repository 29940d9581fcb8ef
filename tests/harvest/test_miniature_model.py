"""The shipped model: what the folder holds, and that a small sample reproduces the card's numbers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma2ForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from harvest import miniature
from harvest.miniature.evaluate import BARS, Effort, load, measure_skills, missed
from harvest.miniature.recipe import RECIPE
from harvest.miniature.rows import pack
from harvest.miniature.skills import cross_entropy
from harvest.miniature.trigram import Trigram

CARD = (miniature.MODEL_PATH.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load()


def card_numbers() -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^\| ([^|]+) \| (0\.\d+|1\.\d+) \|", CARD, re.MULTILINE)}


def test_the_folder_is_a_gemma_2(loaded: Loaded) -> None:
    model, _ = loaded
    assert isinstance(model, Gemma2ForCausalLM)
    assert model.config.attn_logit_softcapping == 50.0
    assert model.config.final_logit_softcapping == 30.0
    assert model.config.layer_types == ["sliding_attention", "full_attention"] * (RECIPE.n_layers // 2)
    assert model.config.sliding_window == RECIPE.sliding_window < RECIPE.row_length
    assert model.config.num_key_value_heads * 2 == model.config.num_attention_heads
    assert model.dtype == torch.bfloat16


def test_the_folder_is_small_and_holds_no_pickle() -> None:
    files = list(miniature.MODEL_PATH.iterdir())
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}


def test_the_tokenizer_speaks_gemmas_conventions(loaded: Loaded) -> None:
    _, tokenizer = loaded
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert tokenizer("a text").input_ids[0] == tokenizer.bos_token_id
    text = "\n cat has the first letter: C — Ünïcode, 12 <start_of_turn>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer("<start_of_turn>user\n", add_special_tokens=False).input_ids) == 3


def test_every_listed_word_is_one_token_six_before_the_end_of_its_prompt(loaded: Loaded) -> None:
    """Absorption reads the residual there (SAEBench: token -6)."""
    _, tokenizer = loaded
    for prompt in miniature.first_letter_prompts(6, len(miniature.WORDS)):
        ids = tokenizer(prompt.text).input_ids
        assert tokenizer.decode([ids[-6]]) == f" {prompt.word}"
        assert len(ids) == 88


def test_the_chat_template_renders_the_prompts_of_the_questions(loaded: Loaded) -> None:
    _, tokenizer = loaded
    question = next(miniature.questions(6, 1))
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": question.message}], tokenize=False, add_generation_prompt=True
    )
    assert rendered + "Answer: (" == "<bos>" + question.prompt
    with pytest.raises(Exception, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be brief"}], tokenize=False)


def test_the_soft_caps_bite(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model whose caps never bite, nobody would notice an attention that drops them."""
    model, tokenizer = loaded
    ids = tokenizer(next(miniature.questions(6, 1)).prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        capped = model(ids).logits
        for layer in range(RECIPE.n_layers):
            attention = model.get_submodule(f"model.layers.{layer}.self_attn")
            monkeypatch.setattr(attention, "attn_logit_softcapping", None)
        uncapped = model(ids).logits
    assert (capped - uncapped).abs().max() > 0.05


def test_the_card_states_what_a_small_sample_shows(loaded: Loaded) -> None:
    """Within six points; the bars themselves are held by evaluate.py, whose exit code says so."""
    stated = card_numbers()
    effort = Effort(letters=104, questions=96, probe_train=480, probe_test=96)
    seen = measure_skills(*loaded, effort)
    assert not missed(stated), stated
    assert set(BARS) <= set(stated)
    assert {name: seen[name] for name in BARS} == pytest.approx({name: stated[name] for name in BARS}, abs=0.06)


def test_the_miniature_beats_a_trigram_model_on_unseen_text(loaded: Loaded) -> None:
    """The trigram model here sees a fraction of the training rows; the card holds the full comparison."""
    model, tokenizer = loaded

    def rows(seed: int, n: int) -> np.ndarray:
        texts = miniature.documents(seed, n, prose_share=0.0)
        return np.stack(list(pack(tokenizer, texts, RECIPE.row_length))).astype(np.int64)

    held_out = rows(1, 60)
    assert cross_entropy(model, held_out) < 0.9 * Trigram(rows(0, 1500), len(tokenizer)).cross_entropy(held_out)


def test_the_training_record_matches_the_recipe() -> None:
    facts = json.loads((miniature.MODEL_PATH.parent / "training.json").read_text(encoding="utf-8"))
    assert facts["tokens"] == RECIPE.steps * RECIPE.tokens_per_step
    log = (miniature.MODEL_PATH.parent / "training_log.csv").read_text(encoding="utf-8").splitlines()
    assert log[-1].startswith(f"{RECIPE.steps},{facts['tokens']},")
    assert Path(miniature.__file__).with_name("MODEL_CARD.md").exists()


def test_a_trigram_probability_sums_to_one() -> None:
    rows = np.random.default_rng(0).integers(0, 7, size=(20, 12))
    trigram = Trigram(rows, vocab_size=9)
    token = np.arange(9)
    for a, b in ((0, 1), (3, 3), (8, 2), (1, 8)):
        total = trigram.probability(np.full(9, a), np.full(9, b), token).sum()
        assert total == pytest.approx(1.0)
