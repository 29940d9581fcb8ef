"""What a language model can do in the miniature's world, on prompts its training text did not hold.

Shapes: B prompts or texts, T positions, V vocabulary, D model width, N rows of T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harvest.miniature.multiple_choice import LETTERS, Question
from harvest.miniature.spelling import FirstLetterPrompt

BATCH = 64


def last_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> torch.Tensor:
    """Logits after each prompt's last token, fp32 [B, V]."""
    out = []
    with torch.no_grad():
        for start in range(0, len(prompts), BATCH):
            batch = tokenizer(list(prompts[start : start + BATCH]), padding=True, return_tensors="pt")
            logits_BTV = model(**batch, use_cache=False).logits
            last_B = batch["attention_mask"].sum(dim=1) - 1
            out.append(logits_BTV[torch.arange(len(last_B)), last_B].float())
    return torch.cat(out)


def first_letter_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[FirstLetterPrompt]
) -> float:
    """Share of prompts whose most likely next token, of the whole vocabulary, is a space and the letter."""
    right = [_one_token(tokenizer, f" {prompt.letter}") for prompt in prompts]
    chosen_B = last_logits(model, tokenizer, [prompt.text for prompt in prompts]).argmax(dim=1)
    return (chosen_B == torch.tensor(right)).float().mean().item()


def question_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]) -> float:
    """Share of questions whose right letter is the likeliest of A-D, bare or after a space; chance is 0.25."""
    bare = [_one_token(tokenizer, letter) for letter in LETTERS]
    spaced = [_one_token(tokenizer, f" {letter}") for letter in LETTERS]
    logits_BV = last_logits(model, tokenizer, [question.prompt for question in asked])
    chosen_B = torch.maximum(logits_BV[:, bare], logits_BV[:, spaced]).argmax(dim=1)
    return (chosen_B == torch.tensor([question.answer for question in asked])).float().mean().item()


def cross_entropy(model: PreTrainedModel, rows_NT: NDArray[np.int64]) -> float:
    """Mean next-token loss in nats over every token of the rows except the first of each."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(rows_NT), BATCH):
            ids_BT = torch.from_numpy(rows_NT[start : start + BATCH])
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum"
            )
            total += loss
    return float(total) / rows_NT[:, 1:].size


def _one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{text!r} must be one token of this tokenizer, got {ids}")
    return int(ids[0])
