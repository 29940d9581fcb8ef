"""`verify` finds whatever is wrong, and nothing where nothing is."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import manifest
from cache.checksum import crc32c
from cache.folder import Folder
from cache.verify import Verification, drop_damaged
from tests.cache.planted import N, S, make_bits, make_meta, make_rows, tree, write


def findings(path: Path) -> list[str]:
    """What is wrong, as lines."""
    return [str(finding) for finding in Verification(Folder(path)).run()]


@pytest.mark.parametrize("codec", ["raw", "blosc-lz4", "blosc-zstd", "zstd"])
def test_a_whole_cache_has_no_findings(tmp_path: Path, codec: str) -> None:
    write(tmp_path / "c", make_meta(codec=codec), {3: make_bits(seed=3), 5: make_bits(seed=5)}, make_rows())
    assert findings(tmp_path / "c") == []


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_flipped_bit_is_found_in_every_file(tmp_path: Path, codec: str) -> None:
    """Eight bits of every file of a cache: first and last byte, and places between."""
    whole, path = tmp_path / "whole", tmp_path / "c"
    write(whole, make_meta(codec=codec), {3: make_bits(seed=3)}, make_rows())
    rng = np.random.default_rng(0)
    shutil.copytree(whole, path)
    for file, content in tree(whole).items():
        if not content:
            continue
        places = {0, len(content) - 1, *rng.integers(0, len(content), 6).tolist()}
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            (path / file).write_bytes(damaged)
            assert findings(path), f"bit flipped at byte {place} of {file}"
        (path / file).write_bytes(content)
    assert findings(path) == []


def test_a_lost_cut_or_extra_file_is_named(small: Path) -> None:
    contents = tree(small)
    for file, content in contents.items():
        if file == ".lock":
            continue
        (small / file).unlink()
        assert findings(small), f"{file} is gone"
        (small / file).write_bytes(content[: len(content) // 2])
        assert findings(small), f"{file} is cut"
        (small / file).write_bytes(content)
    (small / "layer_3" / "c" / "9").mkdir()
    (small / "layer_3" / "c" / "9" / "0").write_bytes(b"")
    assert findings(small) == ["layer_3/c/9/0: is not part of this cache: remove it"]


def test_a_reordered_index_is_found(small: Path) -> None:
    file = small / "layer_3" / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    index = np.frombuffer(bytes(content[-(16 * S + 4) : -4]), "<u8").reshape(S, 2)[[1, 0, 2, 3]].tobytes()
    content[-(16 * S + 4) :] = index + crc32c(index).to_bytes(4, "little")
    file.write_bytes(content)
    (found,) = findings(small)
    assert "its index is not the dense one" in found


def test_a_row_that_is_not_finite_is_found_though_its_checksum_is_right(tmp_path: Path) -> None:
    """Another writer may have let it in; the place is named."""
    path, bits = tmp_path / "c", make_bits()
    write(path, make_meta(), {3: bits}, make_rows(), finish=False)
    file = path / "layer_3" / "c" / "1" / "0" / "0"
    values = np.frombuffer(file.read_bytes(), np.uint16).copy()
    sequence = bits[S + 2].copy()
    sequence[4, 7] = 0xFF80
    values[2 * sequence.size : 3 * sequence.size] = sequence.reshape(-1)
    file.write_bytes(values.tobytes())
    known = manifest.load(Folder(path), 1 << 20)[0]
    digits = known.commits[1].checksums("layer_3")
    digits[2] = crc32c(sequence)
    commits = dict(known.commits)
    old = commits[1]
    commits[1] = manifest.Commit(
        shard=1, sequences=old.sequences, crc32c={**old.crc32c, "layer_3": manifest.to_hex(digits)}, cursor=old.cursor
    )
    (path / "manifest.jsonl").write_bytes(manifest.Manifest(commits=commits, static={}).content())
    assert "layer_3/c/1/0/0: sequence 2 of the shard is NaN or infinite at positions [4]" in findings(path)


def test_a_document_in_both_splits_is_found(tmp_path: Path) -> None:
    rows = make_rows()
    rows.document[5, :] = rows.document[4, 0]  # sequence 5 is held out, sequence 4 is not
    write(tmp_path / "c", make_meta(), {3: make_bits()}, rows)
    (found,) = findings(tmp_path / "c")
    assert found == "shard 1: documents [8] are in both the train and the held-out split"


def test_an_unfinished_cache_is_a_finding(tmp_path: Path) -> None:
    write(tmp_path / "c", make_meta(), {3: make_bits()}, make_rows(), finish=False)
    assert any("not complete: run the same harvest again" in found for found in findings(tmp_path / "c"))


def test_what_is_damaged_can_be_dropped_and_is_written_again(small: Path) -> None:
    before = tree(small)
    file = small / "layer_5" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[100] ^= 4
    file.write_bytes(content)
    found = Verification(Folder(small)).run()
    assert drop_damaged(small, found) == [1]
    with pytest.raises(cache.CacheError, match="is incomplete: 2 of 3 shards, first missing 1"):
        cache.open(str(small))
    with cache.CacheWriter(small, make_meta(), layers=(3, 5), sequences=N, sync=False) as writer:
        assert [(job.shard, job.layers, job.rows) for job in writer.jobs()] == [(1, (5,), False)]
        rows = make_rows()
        part = slice(S, 2 * S)
        writer.append(S, cache.Rows(*(None if a is None else a[part] for a in rows)), {5: make_bits(seed=5)[part]})
        writer.finish()
    assert tree(small) == before
