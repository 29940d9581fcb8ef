"""The description that a harvest writes into its cache."""

from datetime import UTC, datetime

import torch

import cache
from cache.provenance import provenance
from harvest.config import HarvestConfig
from harvest.model import ResidualModel
from harvest.streams import RandomSequences
from harvest.text import Documents
from harvest.tokenizer import TextTokenizer


def cache_meta(
    config: HarvestConfig,
    model: ResidualModel,
    device: torch.device,
    tokenizer: TextTokenizer | None,
    documents: Documents | None,
) -> cache.CacheMeta:
    """What the cache is to hold and where it comes from; without tokenizer and documents, random token ids.

    Args:
        config: what is asked for.
        model: the model, or its outline on the meta device.
        device: where the model is to run.
        tokenizer: of the text.
        documents: of the text.
    """
    identity = model.identity
    if documents is None or tokenizer is None:
        digest = RandomSequences.hash(model.vocab_size)
        sources = [cache.Source(dataset="random token ids", revision=digest[:40])]
        bos, special = -1, tuple[int, ...]()
    else:
        sources = [cache.Source(**one) for one in documents.provenance()]
        digest, bos, special = tokenizer.hash, tokenizer.bos_token_id, tokenizer.special_token_ids
    return cache.CacheMeta(
        model=identity.model,
        model_revision=identity.model_revision,
        model_dtype=identity.model_dtype,
        random_weights=identity.random_weights,
        attn_implementation=identity.attn_implementation,
        d_model=identity.d_model,
        tokenizer_hash=digest,
        bos_token_id=bos,
        special_token_ids=special,
        sources=tuple(sources),
        context=config.context,
        packing=config.packing,
        seed=config.seed,
        held_out_fraction=config.held_out_fraction,
        shard_sequences=config.shard_sequences,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        provenance={**provenance(), "device": _device_name(device), "batch": str(config.batch)},
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
