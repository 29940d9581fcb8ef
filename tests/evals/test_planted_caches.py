"""A cache of planted vectors is a cache like any other, and its truth can be had again."""

from pathlib import Path

import numpy as np
import pytest
import torch

import cache
from evals.planted import Domains, Hierarchy, Temporal, sequence, write_cache
from train.feed import Feed
from train.feed.config import FeedConfig


def test_the_truth_of_every_cached_row_can_be_had_again(tmp_path: Path) -> None:
    source = Temporal.aligned(d_model=16)
    reader = write_cache(tmp_path / "c", source, sequences=11, context=12, seed=3, documents=3, shard_sequences=4)
    x_nTD = reader.layer(0).sequences(0, 11)
    for i in (0, 5, 10):
        truth = sequence(source, i, context=12, seed=3, documents=3)
        assert torch.equal(x_nTD[i], truth.x.to(torch.bfloat16))
        residual = truth.x - truth.latents @ source.directions
        assert float(residual.std()) == pytest.approx(source.noise, rel=0.2)


def test_a_longer_cache_begins_with_the_rows_of_a_shorter_one(tmp_path: Path) -> None:
    source = Hierarchy(d_model=16)
    short, long = (write_cache(tmp_path / str(n), source, sequences=n, context=6, shard_sequences=4) for n in (8, 13))
    assert torch.equal(short.layer(0).sequences(0, 8), long.layer(0).sequences(0, 8))
    assert np.array_equal(short.split(), long.split(0, 8))


def test_no_two_sequences_and_no_two_seeds_share_their_rows() -> None:
    source = Hierarchy(d_model=16)
    first = [sequence(source, i, context=4, seed=seed).x for seed in (0, 1) for i in range(20)]
    assert len({x.numpy().tobytes() for x in first}) == 40


def test_documents_divide_a_sequence_and_topics_do_not_cross_them(tmp_path: Path) -> None:
    """With full persistence a topic never changes within a document, and is drawn anew in the next."""
    source = Temporal(d_model=16, persistence=1.0)
    reader = write_cache(tmp_path / "c", source, sequences=6, context=12, documents=2, shard_sequences=4)
    document_nT = reader.document()
    assert [len(np.unique(row)) for row in document_nT] == [2] * 6
    assert len(np.unique(document_nT)) == 12
    on_nTp = torch.stack([sequence(source, i, context=12, seed=0, documents=2).latents for i in range(6)])
    on_nTp = on_nTp[..., source.slow] > 0
    assert (on_nTp[:, :6] == on_nTp[:, :1]).all()
    assert (on_nTp[:, 6:] == on_nTp[:, 6:7]).all()
    assert (on_nTp[:, 5] != on_nTp[:, 6]).any()


def test_held_out_sequences_have_the_share_asked_for(tmp_path: Path) -> None:
    reader = write_cache(
        tmp_path / "c", Hierarchy(d_model=8), sequences=40, context=2, held_out_fraction=0.1, shard_sequences=16
    )
    assert int(reader.split().sum()) == 4


def test_domain_tags_are_those_that_the_sequences_were_drawn_from(tmp_path: Path) -> None:
    source = Domains(d_model=16)
    reader = write_cache(tmp_path / "c", source, sequences=12, context=8, shard_sequences=8)
    assert reader.meta.domains == ("forget", "retain")
    truths = [sequence(source, i, context=8, seed=0).domain for i in range(12)]
    assert reader.domain().tolist() == torch.cat([one for one in truths if one is not None]).tolist()
    assert set(reader.domain().tolist()) == {0, 1}


def test_the_feed_delivers_windows_whose_truth_can_be_had(tmp_path: Path) -> None:
    source = Temporal.aligned(d_model=16)
    reader = write_cache(tmp_path / "c", source, sequences=24, context=16, documents=2, held_out_fraction=0.25)
    truths = [sequence(source, i, context=16, seed=0, documents=2).x.to(torch.bfloat16) for i in range(24)]
    with Feed(reader, [0], FeedConfig(window=4, batch=32), epochs=1) as feed:
        seen = [
            (int(number), int(at), x_WD)
            for batch in feed
            for number, at, x_WD in zip(batch.sequence, batch.position, batch.x.clone(), strict=True)
        ]
    assert len(seen) == 18 * 4  # the train split, whole, in windows of 4
    assert all(torch.equal(x_WD, truths[number][at : at + 4]) for number, at, x_WD in seen)


def test_tokens_name_the_loudest_feature(tmp_path: Path) -> None:
    source = Hierarchy(d_model=16)
    tokens_T = write_cache(tmp_path / "c", source, sequences=3, context=50, shard_sequences=2).tokens()[1]
    latents_TP = sequence(source, 1, context=50, seed=0).latents
    silent_T = (latents_TP == 0).all(-1).numpy()
    assert silent_T.any()
    assert (tokens_T[silent_T] == 0).all()
    assert (tokens_T[~silent_T] == 1 + latents_TP.argmax(-1).numpy()[~silent_T]).all()


def test_writing_again_changes_nothing_and_another_source_is_refused(tmp_path: Path) -> None:
    source = Hierarchy(d_model=8)
    first = write_cache(tmp_path / "c", source, sequences=5, context=4)
    assert write_cache(tmp_path / "c", source, sequences=5, context=4).meta == first.meta
    with pytest.raises(cache.CacheError, match="model_revision"):
        write_cache(tmp_path / "c", Hierarchy(d_model=8, p_child=0.5), sequences=5, context=4)
    with pytest.raises(cache.CacheError, match="seed"):
        write_cache(tmp_path / "c", source, sequences=5, context=4, seed=1)


def test_documents_that_do_not_divide_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="equal documents"):
        sequence(Hierarchy(), 0, context=10, seed=0, documents=3)
    with pytest.raises(ValueError, match="one domain"):
        sequence(Domains(), 0, context=10, seed=0, documents=2)
