"""The reader: every way of asking for a row gives the same bits, and views cannot hurt each other."""

from pathlib import Path

import numpy as np
import pytest

import cache
from tests.cache.planted import BOS, D, N, S, T, make_bits, make_meta, make_rows, write

CODECS = ["raw", "blosc-lz4", "zstd"]


@pytest.fixture(params=CODECS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> cache.CacheReader:
    write(tmp_path / "c", make_meta(codec=request.param), {3: make_bits(seed=3)}, make_rows())
    return cache.open(str(tmp_path / "c"))


def test_sequences_equal_what_was_written(stored: cache.CacheReader) -> None:
    bits, layer = make_bits(seed=3), stored.layer(3)
    for start in range(N):
        for stop in range(start, N + 1):
            assert np.array_equal(layer.bits(start, stop), bits[start:stop])


def test_shards_are_the_sequences_they_hold(stored: cache.CacheReader) -> None:
    bits = make_bits(seed=3)
    assert stored.shards == (0, 1, 2)
    for shard in stored.shards:
        numbers = stored.shard_range(shard)
        assert np.array_equal(stored.layer(3).shard_bits(shard), bits[numbers.start : numbers.stop])


def test_rows_are_positions_of_sequences(stored: cache.CacheReader) -> None:
    torch = pytest.importorskip("torch")
    indices = np.random.default_rng(0).permutation(N * T)
    rows = stored.layer(3).rows(indices)
    assert rows.dtype == torch.bfloat16
    bits = make_bits(seed=3).reshape(-1, D)[indices]
    assert np.array_equal(rows.view(torch.int16).numpy().view(np.uint16), bits)
    assert stored.layer(3).rows(np.array([], np.int64)).shape == (0, D)


def test_windows_are_consecutive_positions(stored: cache.CacheReader) -> None:
    torch = pytest.importorskip("torch")
    sequence, position, width = np.array([10, 0, 4]), np.array([0, 3, 1]), 2
    windows = stored.layer(3).windows(sequence, position, width).view(torch.int16).numpy().view(np.uint16)
    bits = make_bits(seed=3)
    for window, s, p in zip(windows, sequence, position, strict=True):
        assert np.array_equal(window, bits[s, p : p + width])


def test_a_window_never_crosses_a_document_or_enters_padding(small: Path) -> None:
    pytest.importorskip("torch")
    layer = cache.open(str(small)).layer(3)
    with pytest.raises(ValueError, match=r"window 0 .* does not lie within one document"):
        layer.windows(np.array([1]), np.array([T // 2 - 1]), 2)
    with pytest.raises(ValueError, match="does not lie within one document"):
        layer.windows(np.array([3]), np.array([T - 2]), 2)  # sequence 3 ends in padding
    with pytest.raises(ValueError, match="must lie within 6 positions"):
        layer.windows(np.array([1]), np.array([T - 1]), 2)


def test_tokens_documents_and_splits_are_those_written(stored: cache.CacheReader) -> None:
    rows = make_rows()
    assert np.array_equal(stored.tokens(), rows.tokens)
    assert np.array_equal(stored.document(3, 9), rows.document[3:9])
    assert np.array_equal(stored.split(), rows.split)
    with pytest.raises(cache.CacheError, match="has no domains"):
        stored.domain()


def test_views_share_no_memory_with_the_file_or_each_other(small: Path) -> None:
    layer = cache.open(str(small)).layer(3)
    view = layer.bits(0, 2)
    with pytest.raises(ValueError, match="read-only"):
        view += 1
    torch = pytest.importorskip("torch")
    tensor, other = layer.sequences(0, 2), layer.sequences(0, 2)
    tensor.fill_(7)
    assert torch.equal(other, layer.sequences(0, 2))
    assert np.array_equal(layer.bits(0, 2), make_bits(seed=3)[:2])
    assert np.array_equal(cache.open(str(small)).layer(3).bits(0, 2), make_bits(seed=3)[:2])


def test_a_view_of_a_raw_cache_is_the_file_mapped(small: Path) -> None:
    view = cache.open(str(small)).layer(3).shard_bits(0)
    assert view.base is not None
    assert not view.flags.owndata


def test_a_torch_view_has_the_same_bits(small: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = cache.open(str(small)).layer(3)
    tensor = layer.sequences(1, 3)
    assert tensor.shape == (2, T, D)
    assert tensor.dtype == torch.bfloat16
    assert np.array_equal(tensor.view(torch.int16).numpy().view(np.uint16), make_bits(seed=3)[1:3])


def test_what_lies_outside_is_an_index_error(small: Path) -> None:
    layer = cache.open(str(small)).layer(3)
    for start, stop in ((-1, 2), (0, N + 1), (3, 2)):
        with pytest.raises(IndexError, match=f"the cache has {N}"):
            layer.bits(start, stop)
    with pytest.raises(IndexError):
        layer.shard_bits(3)
    with pytest.raises(cache.CacheError, match="has no layer 9, only 3, 5: add it with `make harvest LAYER=9"):
        cache.open(str(small)).layer(9)


def test_a_growing_cache_is_followed_shard_by_shard(tmp_path: Path) -> None:
    path, bits, rows = tmp_path / "c", make_bits(), make_rows()
    with cache.CacheWriter(path, make_meta(), layers=(3,), sequences=N, sync=False) as writer:
        with pytest.raises(cache.CacheError, match="0 of 3 shards, first missing 0; resume with `make harvest LAYER=3"):
            cache.open(str(path))
        reader = cache.open(str(path), follow=True)
        assert reader.shards == ()
        for start in range(0, N, S):
            part = slice(start, min(start + S, N))
            writer.append(start, cache.Rows(*(None if a is None else a[part] for a in rows)), {3: bits[part]})
            writer.flush()
            reader.refresh()
            assert reader.shards == tuple(range(start // S + 1))
            assert np.array_equal(reader.layer(3).bits(0, part.stop), bits[: part.stop])
            if part.stop < N:
                with pytest.raises(cache.CacheError, match="not committed yet"):
                    reader.layer(3).bits(0, N)
        with pytest.raises(cache.CacheError, match="run the same harvest again"):
            cache.open(str(path))
        writer.finish()
    assert np.array_equal(cache.open(str(path)).layer(3).bits(0, N), bits)


def test_the_statistics_of_a_growing_cache_are_those_of_its_shards(tmp_path: Path) -> None:
    path, bits, rows = tmp_path / "c", make_bits(), make_rows()
    with cache.CacheWriter(path, make_meta(), layers=(3,), sequences=N, sync=False) as writer:
        some = cache.Rows(*(None if a is None else a[:S] for a in rows))
        writer.append(0, some, {3: bits[:S]})
        writer.flush()
        count = cache.open(str(path), follow=True).statistics(3).count
    member = rows.document[:S] >= 0
    no_bos = member & (rows.tokens[:S] != BOS)
    assert count.tolist() == [member.sum(), no_bos.sum(), (no_bos & (rows.split[:S] == 0)[:, None]).sum()]
