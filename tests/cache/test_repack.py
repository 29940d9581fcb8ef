"""Repacking and exporting keep the numbers, or say how much they lose."""

from pathlib import Path

import numpy as np
import pytest

import cache
from cache import bf16
from cache.export import export
from cache.folder import Folder
from cache.repack import repack
from cache.verify import Verification
from tests.cache.planted import BOS, D, N, T, make_bits, make_meta, make_rows, tree


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4", "blosc-zstd", "zstd"])
@pytest.mark.parametrize("shard_sequences", [1, 3, 4, 64])
def test_a_lossless_repack_and_back_is_byte_identical(
    small: Path, tmp_path: Path, codec: str, shard_sequences: int
) -> None:
    repack(cache.open(str(small)), tmp_path / "packed", codec=codec, shard_sequences=shard_sequences)
    packed = cache.open(str(tmp_path / "packed"))
    assert packed.meta.fingerprint == cache.open(str(small)).meta.fingerprint
    assert np.array_equal(packed.layer(5).bits(0, N), make_bits(seed=5))
    assert Verification(Folder(tmp_path / "packed")).run() == []
    repack(packed, tmp_path / "back", codec="raw", shard_sequences=4)
    for name, content in tree(small).items():
        if name != "manifest.jsonl" and name != "zarr.json":  # cursors live at the first layout's shard ends alone
            assert (tmp_path / "back" / name).read_bytes() == content, name


def test_a_repack_at_the_same_shard_size_keeps_even_the_cursors(small: Path, tmp_path: Path) -> None:
    repack(cache.open(str(small)), tmp_path / "packed", codec="zstd", shard_sequences=4)
    repack(cache.open(str(tmp_path / "packed")), tmp_path / "back", codec="raw", shard_sequences=4)
    assert tree(tmp_path / "back") == tree(small)


def test_8_bit_rows_lose_what_they_say(small: Path, tmp_path: Path) -> None:
    reader = cache.open(str(small))
    losses = repack(reader, tmp_path / "int8", codec="int8", shard_sequences=3)
    packed = cache.open(str(tmp_path / "int8"))
    assert Verification(Folder(tmp_path / "int8")).run() == []
    assert packed.meta.quantisation == "int8"
    assert packed.meta.fingerprint != reader.meta.fingerprint
    rows = make_rows()
    member = (rows.document >= 0) & (rows.tokens != BOS)
    for layer in (3, 5):
        x = bf16.to_float32(reader.layer(layer).bits(0, N))[member].astype(np.float64)
        y = bf16.to_float32(packed.layer(layer).bits(0, N))[member].astype(np.float64)
        mean = reader.statistics(layer).mean[1]
        assert losses[f"layer_{layer}/int8_fvu"] == pytest.approx(
            ((x - y) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-5
        )
        assert losses[f"layer_{layer}/int8_fvu"] < 1e-3
    assert packed.state.audit == losses


def test_8_bit_rows_can_be_repacked_to_raw_and_remember_it(small: Path, tmp_path: Path) -> None:
    repack(cache.open(str(small)), tmp_path / "int8", codec="int8", shard_sequences=4)
    packed = cache.open(str(tmp_path / "int8"))
    repack(packed, tmp_path / "raw", codec="raw", shard_sequences=4)
    raw = cache.open(str(tmp_path / "raw"))
    assert np.array_equal(raw.layer(5).bits(0, N), packed.layer(5).bits(0, N))
    assert (raw.meta.codec, raw.meta.quantisation) == ("raw", "int8")
    assert raw.meta.fingerprint == packed.meta.fingerprint
    with pytest.raises(cache.CacheError, match="rounding them again would lose more"):
        repack(packed, tmp_path / "again", codec="int8", shard_sequences=2)


def test_8_bit_rows_and_windows_come_from_the_same_values(small: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    repack(cache.open(str(small)), tmp_path / "int8", codec="int8", shard_sequences=4)
    layer = cache.open(str(tmp_path / "int8")).layer(5)
    indices = np.array([0, 17, N * T - 1, 17])
    whole = layer.sequences(0, N).reshape(-1, D)
    assert torch.equal(layer.rows(indices), whole[torch.from_numpy(indices)])


def test_a_cache_is_not_repacked_onto_itself(small: Path) -> None:
    with pytest.raises(cache.CacheError, match="is the cache itself"):
        repack(cache.open(str(small)), small, codec="zstd", shard_sequences=4)


def test_an_exhausted_source_stays_exhausted(tmp_path: Path) -> None:
    rows, bits = make_rows(), make_bits()
    with cache.CacheWriter(tmp_path / "c", make_meta(), layers=(3,), sequences=1000, sync=False) as writer:
        writer.append(0, rows, {3: bits})
        writer.finish(exhausted_at=N)
    repack(cache.open(str(tmp_path / "c")), tmp_path / "packed", codec="zstd", shard_sequences=4)
    assert cache.open(str(tmp_path / "packed")).state.exhausted


def test_an_npy_file_holds_the_float32_values(small: Path, tmp_path: Path) -> None:
    reader = cache.open(str(small))
    export(reader, 5, tmp_path / "x.npy", start=2, stop=9)
    assert np.array_equal(np.load(tmp_path / "x.npy"), bf16.to_float32(make_bits(seed=5)[2:9]))
    export(reader, 5, tmp_path / "bits.npy", dtype="bits")
    assert np.array_equal(np.load(tmp_path / "bits.npy"), make_bits(seed=5))


def test_values_that_float16_cannot_hold_are_refused_and_leave_no_file(small: Path, tmp_path: Path) -> None:
    with pytest.raises(cache.CacheError, match="overflow float16"):
        export(cache.open(str(small)), 3, tmp_path / "x.npy", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_safetensors_file_holds_the_bits_and_the_tokens(small: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    export(cache.open(str(small)), 5, tmp_path / "x.safetensors")
    tensors = safetensors.load_file(tmp_path / "x.safetensors")
    assert tensors["residuals"].dtype == torch.bfloat16
    assert np.array_equal(tensors["residuals"].view(torch.int16).numpy().view(np.uint16), make_bits(seed=5))
    rows = make_rows()
    for name in ("tokens", "document", "split"):
        assert np.array_equal(tensors[name].numpy(), getattr(rows, name))


def test_an_export_that_cannot_be_is_refused(small: Path, tmp_path: Path) -> None:
    reader = cache.open(str(small))
    for target, changes, why in (
        ("x.txt", {}, "must end in .npy or .safetensors"),
        ("x.npy", {"dtype": "int4"}, "DTYPE must be one of float32, float16, bits"),
        ("x.npy", {"start": 4, "stop": 99}, "wanted sequences 4:99"),
    ):
        with pytest.raises(cache.CacheError, match=why):
            export(reader, 5, tmp_path / target, **changes)
