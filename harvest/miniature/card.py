"""MODEL_CARD.md, written from what evaluate.py measured and training.json recorded: no result is typed by hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harvest.miniature.recipe import MIDDLE_LAYER, Recipe


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the card states."""

    skills: Mapping[str, float]  # accuracies by name
    bars: Mapping[str, float]
    losses: Mapping[str, tuple[float, float]]  # domain -> nats a token (miniature, trigram)
    training: Mapping[str, object]  # training.json
    bytes_in_folder: int


def render(recipe: Recipe, found: Findings) -> str:
    """The whole card."""
    return "\n\n".join((_what(recipe, found), _skills(found), _losses(found), _made(recipe, found), _LIMITS)) + "\n"


def skill_table(found: Findings) -> str:
    """One row a skill: name, accuracy, bar."""
    rows = [
        f"| {name} | {value:.3f} | {f'≥ {found.bars[name]:.2f}' if name in found.bars else '—'} |"
        for name, value in found.skills.items()
    ]
    return "\n".join(("| skill | accuracy | bar |", "|---|---|---|", *rows))


def _what(recipe: Recipe, found: Findings) -> str:
    return f"""# The miniature

A real `Gemma2ForCausalLM` of {found.training["parameters"]:,} parameters ({found.bytes_in_folder / 1e6:.1f} MB with its
tokenizer) that knows a small invented world. It exists so that every stage of Silo runs offline, in minutes, through
the code path that Gemma-2-2B takes, on text whose latent factors are known. It is not a useful language model.

| | |
|---|---|
| width | {recipe.d_model} |
| blocks | {recipe.n_layers}; the even ones see {recipe.sliding_window} tokens back, the odd ones all |
| heads | {recipe.n_heads} query, {recipe.n_kv_heads} key-value, of {recipe.head_dim} |
| MLP | {recipe.d_mlp}, gated, tanh-approximated GELU |
| soft-caps | {recipe.attention_soft_cap:g} (attention), {recipe.logit_soft_cap:g} (logits) |
| positions | {recipe.max_positions}; trained on rows of {recipe.row_length} |
| tokenizer | byte-level BPE, {recipe.vocab_size} tokens; Gemma's special tokens and chat template; BOS prepended |
| stored as | bf16 safetensors |"""


def _skills(found: Findings) -> str:
    return f"""## What it can do

Measured on the folder as `AutoModelForCausalLM` (bf16, eager attention) and `AutoTokenizer` load it, by
`python -m harvest.miniature.evaluate`.

{skill_table(found)}

- *First letter*: ten solved lines, then ` word has the first letter:`; the argmax over the whole vocabulary must be the
  letter. The prompts (word and examples together) are unseen. *Held-out words* never had their first letter asked or
  named in the training text; they only occur spelled out (`v e i l`), so their letter must be inferred.
- *Multiple choice*: chat form, ` (` then the likeliest of A-D; chance is 0.25. Of every fact, one of four phrasings and
  a quarter of all option arrangements were kept out of the training text; a held-out question has both.
- *Probes*: logistic regression on the mean output of block {MIDDLE_LAYER} over a text; 8 professions, 2 genders, 8
  products, 2 sentiments, 8 topics, balanced. Biographies never name the profession. Train and test texts differ from
  each other and from the model's training text (other seeds)."""


def _losses(found: Findings) -> str:
    rows = [
        f"| {domain} | {ours:.3f} | {theirs:.3f} | {math.exp(ours):.1f} | {math.exp(theirs):.1f} |"
        for domain, (ours, theirs) in found.losses.items()
    ]
    table = "\n".join(rows)
    return f"""## Held-out cross-entropy

Nats a token, against an interpolated Kneser-Ney trigram model trained on exactly the same rows. Held out: documents of
another seed, and prose paragraphs that training never saw. The last two columns are perplexities.

| domain | miniature | trigram | miniature, ppl | trigram, ppl |
|---|---|---|---|---|
{table}"""


def _made(recipe: Recipe, found: Findings) -> str:
    facts = found.training
    minutes = float(str(facts["seconds"])) / 60
    return f"""## How it was made

`python -m harvest.miniature.train`, seed {recipe.seed}: {recipe.reading_steps:,} steps on the mixture,
{recipe.drill_steps:,} on questions, lists and spelling alone, {recipe.rereading_steps:,} on the mixture again (in all
of them the letters of options counted {recipe.letter_weight:g} times, first letters {recipe.spelling_weight:g} times);
each of {recipe.rows_per_step} rows of {recipe.row_length} tokens
({facts["tokens"]:,} tokens in all) in {minutes:.0f} minutes on {facts["machine"]};
Muon {recipe.muon_lr:g} for the matrices of the blocks, Adam {recipe.adam_lr:g} for the rest, bf16 products on fp32
weights. Curve: `training_log.csv`. Python {facts["python"]} (the prose is its standard library's documentation; other
releases have other text), torch {facts["torch"]}, transformers {facts["transformers"]},
tokenizers {facts["tokenizers"]}."""


_LIMITS = """## Limits

- The world is templates: sentences are short, the facts are invented, and nothing outside it works.
- Load it with `attn_implementation="eager"`: it is a Gemma-2, and attention that drops the soft-cap is another model.
- Positions beyond the training rows' length are accepted but were never trained.
- Two of the factors are close to the surface (pronouns for gender, verdict words for sentiment): high probe accuracy
  here says that the factor is present, not that a dictionary finds it."""
