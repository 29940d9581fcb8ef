"""FORMAT.md says what the code does, and other Zarr readers see what we wrote."""

import json
import re
import warnings
from dataclasses import fields
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr

import cache
from cache import codecs, layout, schema, statistics
from tests.cache.planted import D, N, S, T, make_bits, make_meta, make_rows, write

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FORMAT = (Path(cache.__file__).parent / "FORMAT.md").read_text()


def section(number: int) -> str:
    """Text of a numbered section."""
    return FORMAT.split(f"\n## {number}. ")[1].split("\n## ")[0]


def first_column(text: str) -> list[str]:
    """Names in backticks in the first column of the tables of a text."""
    cells = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_document_lists_exactly_the_attributes() -> None:
    written = schema.to_attributes(make_meta(), schema.CacheState(layers=(3,), sequences=1))
    assert sorted(first_column(section(2))) == sorted(written)
    own = {f.name for kind in (schema.CacheMeta, schema.CacheState) for f in fields(kind)}
    assert set(written) == own | {"format_version", "fingerprint", "checksum"}


def test_the_document_names_the_identity() -> None:
    names = first_column(section(2))
    identity = names[names.index("model") : names.index("quantisation") + 1]
    assert set(identity) == set(schema.IDENTITY)
    assert int(re.search(r"format, version (\d+)", FORMAT)[1]) == schema.FORMAT_VERSION  # type: ignore[index]


def test_the_document_lists_exactly_the_arrays() -> None:
    meta = make_meta(codec="int8", quantisation="int8", sources=(cache.Source(dataset="d", revision="r", domain="x"),))
    growing, complete = (
        schema.CacheState(layers=(3,), sequences=N, complete=done, manifest_crc32c="0" * 8) for done in (False, True)
    )
    names = {name.replace("layer_3", "layer_<L>") for name in layout.all_arrays(meta, growing)}
    documented = {name.replace("/std", "quantisation/layer_<L>/std") for name in first_column(section(1))}
    assert documented == names | {"statistics/layer_<L>/<field>"}
    merged = layout.all_arrays(meta, complete).keys() - layout.all_arrays(meta, growing).keys()
    assert {name.rsplit("/", 1)[1] for name in merged} == set(statistics.MERGED_FIELDS)
    for field in statistics.MERGED_FIELDS:
        assert f"`{field}`" in section(4)


def test_the_document_gives_the_packed_fields_in_order() -> None:
    assert first_column(section(4)) == list(statistics.SHARD_FIELDS)
    assert statistics.packed_length(T, D) == sum(
        int(np.prod([{"T": T, "D": D}.get(str(x), x) for x in shape])) for shape in statistics.SHARD_FIELDS.values()
    )


def test_the_document_lists_exactly_the_codecs() -> None:
    assert first_column(section(5)) == list(codecs.CODECS)


def test_a_line_of_the_manifest_has_the_documented_keys(small: Path) -> None:
    keys = {key for line in (small / "manifest.jsonl").read_text().splitlines() for key in json.loads(line)}
    documented = set(first_column(section(3)))
    assert keys == documented - {"stored"}


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4", "blosc-zstd", "zstd"])
def test_zarr_python_reads_every_value(tmp_path: Path, codec: str) -> None:
    bits, rows = make_bits(), make_rows(domain=True)
    sources = tuple(cache.Source(dataset=name, revision="1", domain=name) for name in ("retain", "forget"))
    write(tmp_path / "c", make_meta(codec=codec, sources=sources), {7: bits}, rows)
    group = zarr.open_group(tmp_path / "c", mode="r")
    assert np.array_equal(np.asarray(group["layer_7"][:]).view(np.uint16), bits)
    assert np.array_equal(group["tokens"][:], rows.tokens)
    assert np.array_equal(group["document"][:], rows.document)
    assert np.array_equal(group["split"][:], rows.split)
    assert np.array_equal(group["domain"][:], rows.domain)
    assert group["domain"].attrs["names"] == ["retain", "forget"]
    assert group["layer_7"].attrs["hook"] == "blocks.7.hook_resid_post"
    with warnings.catch_warnings():  # zarr-python remarks on files beside the arrays: the manifest and the lock
        warnings.simplefilter("ignore")
        assert {name for name, _ in group.members()} == {
            "tokens",
            "document",
            "split",
            "domain",
            "layer_7",
            "statistics",
        }


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4", "blosc-zstd", "zstd"])
def test_tensorstore_reads_every_value(tmp_path: Path, codec: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    bits = make_bits()
    write(tmp_path / "c", make_meta(codec=codec), {7: bits}, make_rows())
    store = {"driver": "file", "path": str(tmp_path / "c" / "layer_7")}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
    assert array.dtype == tensorstore.bfloat16
    assert np.array_equal(array.read().result().view(np.uint16), bits)


def test_zarrs_reads_every_value(small: Path) -> None:
    zarrista = pytest.importorskip("zarrista")
    array = zarrista.Array.open(zarrista.store.FilesystemStore(str(small)), "/layer_3")
    assert np.array_equal(
        np.asarray(array.retrieve_array_subset(np.s_[0:N, 0:T, 0:D])).view(np.uint16), make_bits(seed=3)
    )


def test_our_shard_bytes_are_those_of_zarr_python(small: Path, tmp_path: Path) -> None:
    """Also with NaN, infinities and −0, which our writer refuses or keeps but the format can hold."""
    bits = make_bits(seed=3)
    values = bits.view(BFLOAT16)
    array = zarr.create_array(
        tmp_path / "zarr", shape=(N, T, D), chunks=(1, T, D), shards=(S, T, D), dtype=values.dtype,
        fill_value=float("nan"), compressors=None, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[:] = values
    for shard in range(3):
        theirs = (tmp_path / "zarr" / "c" / str(shard) / "0" / "0").read_bytes()
        assert (small / "layer_3" / "c" / str(shard) / "0" / "0").read_bytes() == theirs


def test_bfloat16_survives_zarr_with_nan_infinities_and_negative_zero(tmp_path: Path) -> None:
    bits = np.array([[0x7FC0, 0xFFC1, 0x7F80, 0xFF80, 0x8000, 0x0001]], np.uint16)
    array = zarr.create_array(tmp_path / "z", shape=bits.shape, dtype=BFLOAT16, fill_value=float("nan"))
    array[:] = bits.view(BFLOAT16)
    again = zarr.open_array(tmp_path / "z", mode="r")
    assert np.array_equal(np.asarray(again[:]).view(np.uint16), bits)
    assert json.loads((tmp_path / "z" / "zarr.json").read_text())["data_type"] == "bfloat16"
    tensorstore = pytest.importorskip("tensorstore")
    theirs = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "z")}}).result()
    assert np.array_equal(theirs.read().result().view(np.uint16), bits)


def test_a_missing_shard_reads_as_nan_elsewhere(small: Path) -> None:
    (small / "layer_3" / "c" / "1" / "0" / "0").unlink()
    array = zarr.open_array(small / "layer_3", mode="r", config={})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(np.asarray(array[S : 2 * S]).astype(np.float32)).all()
