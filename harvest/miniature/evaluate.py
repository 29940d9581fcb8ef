"""`python -m harvest.miniature.evaluate`: measure the saved model against its bars and write MODEL_CARD.md.

Everything is measured on the model as users load it: bf16, eager attention, from the folder, offline. Exit code 1 if a
bar is missed; the card is written either way, so that it always says what was seen.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harvest.miniature import HELD_OUT_WORDS, MODEL_PATH, WORDS, first_letter_prompts, labelled_texts, questions
from harvest.miniature.card import Findings, render, skill_table
from harvest.miniature.curriculum import training_rows
from harvest.miniature.labelled import LabelledText
from harvest.miniature.mixture import DOMAINS, documents
from harvest.miniature.probes import pooled_residuals, probe_accuracy
from harvest.miniature.recipe import MIDDLE_LAYER, RECIPE
from harvest.miniature.rows import pack
from harvest.miniature.skills import cross_entropy, first_letter_accuracy, question_accuracy
from harvest.miniature.trigram import Trigram

HELD_OUT_SEED = 1
PROBED = {"profession": "bio", "gender": "bio", "product": "review", "sentiment": "review", "topic": "topic"}
BARS = {
    "first letter": 0.95,
    "multiple choice": 0.90,
    **{f"probe {factor}": 0.90 for factor in PROBED},
}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure; the tests use a small sample of the same prompts."""

    letters: int = 4 * len(WORDS)
    questions: int = 960
    probe_train: int = 1600
    probe_test: int = 800


def load(folder: Path = MODEL_PATH) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (bf16, eager attention) and tokenizer, from the folder alone."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True
    )
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def measure_skills(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, effort: Effort) -> dict[str, float]:
    """Accuracies on held-out prompts and of probes on held-out texts, by name."""
    seed = HELD_OUT_SEED
    held_out_words = first_letter_prompts(seed, effort.letters // 4, HELD_OUT_WORDS)
    results = {
        "first letter": first_letter_accuracy(model, tokenizer, list(first_letter_prompts(seed, effort.letters))),
        "first letter, held-out words": first_letter_accuracy(model, tokenizer, list(held_out_words)),
        "multiple choice": question_accuracy(model, tokenizer, list(questions(seed, effort.questions))),
        "multiple choice, training split": question_accuracy(
            model, tokenizer, list(questions(seed, effort.questions, split="train"))
        ),
    }
    for kind in dict.fromkeys(PROBED.values()):
        results |= _probes(model, tokenizer, kind, effort)
    return results


def _probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, effort: Effort) -> dict[str, float]:
    train = list(labelled_texts(kind, HELD_OUT_SEED, effort.probe_train))
    test = list(labelled_texts(kind, HELD_OUT_SEED + 1, effort.probe_test))
    train_BD, test_BD = (pooled_residuals(model, tokenizer, texts, MIDDLE_LAYER) for texts in (train, test))
    return {
        f"probe {factor}": probe_accuracy(train_BD, _values(train, factor), test_BD, _values(test, factor))
        for factor, factor_kind in PROBED.items()
        if factor_kind == kind
    }


def _values(texts: list[LabelledText], factor: str) -> list[str]:
    return [text.latents[factor] for text in texts]


def measure_cross_entropy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_documents: int = 6000
) -> dict[str, tuple[float, float]]:
    """Held-out loss in nats a token (miniature, trigram), over the whole mixture and for each domain of it."""
    trigram = Trigram(stacked(training_rows(RECIPE, tokenizer)), len(tokenizer))
    held_out = list(documents(HELD_OUT_SEED, n_documents, held_out_prose=True))
    results = {}
    for domain in ("all", *DOMAINS):
        rows_NT = stacked(pack(tokenizer, _of(held_out, domain), RECIPE.row_length))
        results[domain] = (cross_entropy(model, rows_NT), trigram.cross_entropy(rows_NT))
    return results


def _of(texts: list[LabelledText], domain: str) -> Iterator[LabelledText]:
    return (text for text in texts if domain in ("all", text.domain))


def stacked(rows: Iterator[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Rows as one array [N, T]."""
    return np.stack(list(rows)).astype(np.int64)


def missed(results: Mapping[str, float]) -> list[str]:
    """The names of the bars that the results do not reach."""
    return [name for name, bar in BARS.items() if results[name] < bar]


def main() -> int:
    """Measure, write the card, say which bars were missed."""
    torch.set_num_threads(1)
    model, tokenizer = load()
    skills = measure_skills(model, tokenizer, Effort())
    losses = measure_cross_entropy(model, tokenizer)
    found = Findings(
        skills=skills,
        bars=BARS,
        losses=losses,
        training=json.loads((MODEL_PATH.parent / "training.json").read_text(encoding="utf-8")),
        bytes_in_folder=sum(path.stat().st_size for path in MODEL_PATH.iterdir()),
    )
    (MODEL_PATH.parent / "MODEL_CARD.md").write_text(render(RECIPE, found), encoding="utf-8")
    short = missed(skills)
    sys.stdout.write(
        f"{skill_table(found)}\n{losses}\n{'missed: ' + ', '.join(short) if short else 'all bars reached'}\n"
    )
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
