"""`python -m harvest.miniature.train`: make the miniature from nothing. Seeded; about half an hour on one CPU core.

Writes the model (bf16 safetensors) and its tokenizer to model/, the loss curve to training_log.csv and the run's facts
to training.json. The token stream is a pure function of the recipe; the weights differ between machines only as far as
their matrix kernels round differently, and the prose differs between Python releases (training.json names the release).
"""

import csv
import json
import platform
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import tokenizers
import torch
import transformers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerBase

from harvest.miniature import MODEL_PATH, WORDS, first_letter_prompts, questions
from harvest.miniature.curriculum import LetterWeights, training_rows
from harvest.miniature.recipe import RECIPE, Recipe
from harvest.miniature.skills import first_letter_accuracy, question_accuracy
from harvest.miniature.tokenizer import train_tokenizer

FOLDER = MODEL_PATH.parent
LOG_EVERY = 50  # steps
SKILLS_EVERY = 200  # steps
PROGRESS_SEED = 2  # the prompts of the log are not those of the model card
COLUMNS = ("step", "tokens", "seconds", "rate", "loss", "first_letter", "multiple_choice")


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Gemma2ForCausalLM:
    """A freshly initialised Gemma-2 of the recipe's shape, fp32."""
    torch.manual_seed(recipe.seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_kv_heads,
        head_dim=recipe.head_dim,
        query_pre_attn_scalar=recipe.head_dim,
        sliding_window=recipe.sliding_window,
        max_position_embeddings=recipe.max_positions,
        attn_logit_softcapping=recipe.attention_soft_cap,
        final_logit_softcapping=recipe.logit_soft_cap,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation("eager")  # the one that applies the soft-cap
    return model


def build_optimizers(recipe: Recipe, model: Gemma2ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the blocks' matrices, Adam for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids [rows_per_step, T] and the loss weights of the predicted tokens [rows_per_step, T - 1]."""
    weights = LetterWeights(tokenizer, recipe)
    rows = training_rows(recipe, tokenizer)
    for _ in range(recipe.steps):
        ids = np.stack(list(islice(rows, recipe.rows_per_step))).astype(np.int64)
        yield torch.from_numpy(ids), torch.from_numpy(weights.of(ids))


def train(recipe: Recipe, log_file: TextIO) -> tuple[Gemma2ForCausalLM, PreTrainedTokenizerBase]:
    """Train to the end of the recipe; one line of the log every LOG_EVERY steps."""
    tokenizer = train_tokenizer()
    model = build_model(recipe, tokenizer)
    optimizers = build_optimizers(recipe, model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    log = csv.DictWriter(log_file, COLUMNS, lineterminator="\n")
    log.writeheader()
    started, losses = time.monotonic(), list[float]()
    for step, batch in enumerate(batches(recipe, tokenizer)):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * recipe.rate(step)
        losses.append(train_step(model, optimizers, batch, recipe.clip))
        done = step + 1
        if done % LOG_EVERY == 0 or done == recipe.steps:
            line = {"step": done, "tokens": done * recipe.tokens_per_step, "rate": f"{recipe.rate(step):.3f}"}
            line |= {"seconds": round(time.monotonic() - started), "loss": f"{sum(losses) / len(losses):.4f}"}
            losses.clear()
            if done % SKILLS_EVERY == 0 or done == recipe.steps:
                line |= progress(model, tokenizer)
            log.writerow(line)
            log_file.flush()
    return model, tokenizer


def train_step(
    model: Gemma2ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[torch.Tensor, torch.Tensor],
    clip: float,
) -> float:
    """One optimiser step on the weighted loss; returns the plain loss of the batch in nats a token."""
    ids_BT, weights_BT = batch
    # bf16 products are 1.7 times faster on a CPU that has them, and bf16 is how the model will be run.
    with torch.autocast("cpu", torch.bfloat16):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    loss_M = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )
    weights_M = weights_BT.flatten()
    ((loss_M * weights_M).sum() / weights_M.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss_M.mean().item()


def progress(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The two skills on a small sample of held-out prompts."""
    letters = list(first_letter_prompts(PROGRESS_SEED, len(WORDS)))
    asked = list(questions(PROGRESS_SEED, 192))
    return {
        "first_letter": f"{first_letter_accuracy(model, tokenizer, letters):.3f}",
        "multiple_choice": f"{question_accuracy(model, tokenizer, asked):.3f}",
    }


def save(model: Gemma2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Hugging Face format, rounded to bf16: half the size, and the type in which activations are harvested."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Train with the recipe and save everything beside this file."""
    torch.set_num_threads(1)  # on a shared machine two threads wait for each other: measured five times slower
    started = time.monotonic()
    with (FOLDER / "training_log.csv").open("w", encoding="utf-8") as log_file:
        model, tokenizer = train(RECIPE, log_file)
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": RECIPE.steps * RECIPE.tokens_per_step,
        "seconds": round(time.monotonic() - started),
    }
    save(model, tokenizer, MODEL_PATH)
    (FOLDER / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"saved {MODEL_PATH}: {facts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
