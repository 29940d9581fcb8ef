"""A cache of planted vectors: the real feed and the real trainer on data whose truth is known.

Shapes: T positions, P true features, D d_model.
"""

import hashlib
import os
from datetime import UTC, datetime

import numpy as np
import torch

import cache
from cache.provenance import provenance
from evals.planted.source import Planted, Sample


def sequence(source: Planted, number: int, *, context: int, seed: int, documents: int = 1) -> Sample:
    """Sequence `number` of the cache that `write_cache` makes of the same arguments: x [T, D], latents [T, P].

    Each sequence has a generator of its own, seeded with h(seed) + number modulo 2³², h being numpy's SeedSequence:
    torch keeps 32 bits of a CPU seed, and consecutive ones never collide. So the truth of any row can be had again
    without the rest, and a longer cache begins with the rows of a shorter one. The cache holds x rounded to bfloat16.

    Args:
        source: what to sample.
        number: of the sequence in the cache.
        context: T.
        seed: of the samples.
        documents: equal parts of the sequence that are documents of their own.

    Raises:
        ValueError: a context that does not divide into this many documents.
    """
    if documents < 1 or context % documents:
        raise ValueError(f"context must divide into equal documents, got context={context}, documents={documents}")
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    generator = torch.Generator().manual_seed((start + number) % 2**32)
    if source.domains and documents > 1:
        raise ValueError(f"a sequence of {type(source).__name__} has one domain: use documents=1, got {documents}")
    sample = source.sequences(documents, context // documents, generator)
    return Sample(sample.x.flatten(0, 1), sample.latents.flatten(0, 1), sample.domain)


def write_cache(
    path: str | os.PathLike[str],
    source: Planted,
    *,
    sequences: int,
    context: int,
    seed: int = 0,
    documents: int = 1,
    layer: int = 0,
    held_out_fraction: float = 0.05,
    shard_sequences: int = 64,
) -> cache.CacheReader:
    """Write a cache of planted sequences (or continue one), and open it.

    The token of a position is 1 + its loudest true feature, 0 where none is on, so that analyses by token have
    something to find; no token is special and there is no BOS. Held-out sequences are spread evenly.

    Args:
        path: the cache's folder.
        source: what to sample; `sequence` gives the truth of any sequence again.
        sequences: N.
        context: T.
        seed: of the samples; part of the cache's identity, as the source's own fields are.
        documents: equal parts of each sequence that are documents of their own.
        layer: number that the vectors are stored under.
        held_out_fraction: share of sequences that are never trained on.
        shard_sequences: sequences a shard.

    Raises:
        CacheError: the folder holds another cache.
        ValueError: a context that does not divide into this many documents.
    """
    meta = _meta(source, context, seed, documents, held_out_fraction, shard_sequences)
    with cache.CacheWriter(path, meta, layers=(layer,), sequences=sequences) as writer:
        for job in writer.jobs():
            numbers = range(job.start, job.stop)
            samples = [sequence(source, i, context=context, seed=seed, documents=documents) for i in numbers]
            x_nTD = torch.stack([sample.x for sample in samples]).to(torch.bfloat16)
            rows = _rows(numbers, samples, documents, held_out_fraction)
            writer.append(job.start, rows, dict.fromkeys(job.layers, x_nTD))
        writer.finish()
    return cache.open(os.fspath(path))


def _rows(numbers: range, samples: list[Sample], documents: int, held_out_fraction: float) -> cache.Rows:
    latents_nTP = torch.stack([sample.latents for sample in samples])
    loudest = latents_nTP.max(dim=-1)
    tokens_nT = torch.where(loudest.values > 0, 1 + loudest.indices, 0)
    number_n1, context = np.arange(numbers.start, numbers.stop)[:, None], latents_nTP.shape[1]
    document_nT = number_n1 * documents + np.arange(context) * documents // context
    # Where the running share of held-out sequences passes a whole number, so that even small caches have some.
    held_out_n = np.diff(np.floor(np.arange(numbers.start, numbers.stop + 1) * held_out_fraction)) > 0
    domains = [sample.domain for sample in samples if sample.domain is not None]
    return cache.Rows(
        tokens_nT.numpy().astype(np.int32),
        document_nT.astype(np.int32),
        held_out_n.astype(np.uint8),
        torch.cat(domains).numpy().astype(np.uint8) if domains else None,
    )


def _meta(
    source: Planted, context: int, seed: int, documents: int, held_out_fraction: float, shard_sequences: int
) -> cache.CacheMeta:
    digest = hashlib.sha256(f"{source!r} documents={documents}".encode()).hexdigest()
    name = f"planted {type(source).__name__}"
    return cache.CacheMeta(
        model=name,
        model_revision=digest[:40],
        model_dtype="float32",
        tokenizer_hash=hashlib.sha256(b"1 + the loudest planted feature, 0 where none is on").hexdigest(),
        sources=tuple(
            cache.Source(dataset=f"{source!r}", revision=digest[:40], domain=domain)
            for domain in source.domains or ("",)
        ),
        context=context,
        packing="pack",
        bos_token_id=-1,
        d_model=source.d_model,
        seed=seed,
        held_out_fraction=held_out_fraction,
        shard_sequences=shard_sequences,
        created=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        provenance=provenance(),
    )
