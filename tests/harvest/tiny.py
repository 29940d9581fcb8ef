"""A tiny random Gemma-2 with a tokenizer in Hugging Face format, and a little text, for tests of whole harvests."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

import cache
from harvest.config import HarvestConfig
from harvest.model import ResidualModel
from harvest.ranks import Ranks
from harvest.run import Harvest
from harvest.text import TextSource

TEXT = "the cat sat on a mat while seven quick foxes jumped over lazy dogs and rivers ran to the sea"
WORDS = TEXT.split()
T, S, N = 16, 8, 20  # context, sequences a shard, sequences: the last shard is partial


def text(number: int, words: int = 40) -> str:
    """A document of its own."""
    return " ".join(WORDS[(number * 7 + i * i + i) % len(WORDS)] for i in range(words)) + f" {number}."


def save_tiny_model(folder: Path) -> Path:
    """Four blocks, d_model 32, with soft-caps and a sliding window shorter than the context."""
    torch.manual_seed(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text(i) for i in range(50)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, max_position_embeddings=512,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_text(folder: Path, documents: int) -> Path:
    """A .jsonl file of documents of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text(i, 5 + 13 * i % 90)}) for i in range(documents)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "text.jsonl"


def config(tiny: Path, path: Path, **changes: Any) -> HarvestConfig:
    """A harvest of the tiny model and its text, both in the folder `tiny`."""
    values: dict[str, Any] = {
        "model": str(tiny / "model"),
        "layers": (1, 2),
        "sources": (TextSource(text=str(tiny / "text.jsonl")),),
        "tokens": N * T,
        "context": T,
        "cache": path,
        "batch": 3,
        "shard_sequences": S,
        "held_out_fraction": 0.3,
    }
    return HarvestConfig(**{**values, **changes})


def harvest(tiny: Path, path: Path, *, model_given: ResidualModel | None = None, **changes: Any) -> cache.CacheReader:
    """Do it."""
    reader = Harvest(config(tiny, path, **changes), Ranks(), model_given).run()
    assert reader is not None
    return reader


def contents(path: Path) -> dict[str, Any]:
    """Every file of a cache; of the root's attributes all but the time of creation, and what follows from it."""
    files: dict[str, Any] = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    root = json.loads(files["zarr.json"])
    del root["attributes"]["created"], root["attributes"]["checksum"]
    return {**files, "zarr.json": root}
