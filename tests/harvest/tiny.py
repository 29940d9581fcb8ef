"""A tiny random Gemma-2 with a tokenizer in Hugging Face format, and a little text, for tests of whole harvests."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

TEXT = "the cat sat on a mat while seven quick foxes jumped over lazy dogs and rivers ran to the sea"
WORDS = TEXT.split()


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
