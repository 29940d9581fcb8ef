"""Caches behind URLs: the same answers as a local folder, within a bound on the disk, and never a wrong byte."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.core
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import cache
from cache import remote, store
from tests.cache.bucket import SHARD, URL, flipped, staged
from tests.cache.planted import N, S, T, make_bits, make_meta, make_rows, write


@pytest.fixture
def spoil(uploaded: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, bytes], bytes]], list[int]]:
    """Puts a function of (number of the request, true bytes) between the reader and every shard of layer 3."""
    monkeypatch.setattr(store, "PAUSES", [0.0, 0.0, 0.0])
    true, requests = MemoryFileSystem.cat_file, []

    def install(change: Callable[[int, bytes], bytes]) -> list[int]:
        def cat_file(self: Any, path: str, start: int, end: int) -> bytes:
            content: bytes = true(self, path, start=start, end=end)
            if "/layer_3/c/" not in path:
                return content
            requests.append(start)
            return change(len(requests), content)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
        return requests

    return install


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_every_question_gets_the_answer_of_the_local_folder(
    codec: str, tmp_path: Path, staging: Path, memory: Any
) -> None:
    sources = tuple(cache.Source(dataset=x, revision="1", domain=x) for x in ("a", "b"))
    layers = {3: make_bits(seed=3), 5: make_bits(seed=5)}
    write(tmp_path / "c", make_meta(codec=codec, sources=sources), layers, make_rows(domain=True))
    memory.put(str(tmp_path / "c"), "/bucket/small", recursive=True)
    near, far = cache.open(str(tmp_path / "c")), cache.open(URL, staging=staging)
    assert (far.meta, far.state, far.layers, far.shards) == (near.meta, near.state, near.layers, near.shards)
    for name in ("tokens", "document", "split", "domain"):
        assert np.array_equal(getattr(far, name)(), getattr(near, name)())
    for layer, bits in layers.items():
        assert np.array_equal(far.layer(layer).bits(0, N), bits)
        assert np.array_equal(far.layer(layer).shard_bits(1), bits[S : 2 * S])
        mine, theirs = vars(far.statistics(layer)), vars(near.statistics(layer))
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert sorted(far.folder.walk()) == sorted(near.folder.walk())
    assert far.folder.size("zarr.json") == near.folder.size("zarr.json")
    assert far.folder.size("tokens/c/99/0") is None
    assert far.folder.read_json("layer_3/zarr.json") == near.folder.read_json("layer_3/zarr.json")


def test_rows_and_windows_come_as_from_the_local_folder(small: Path, uploaded: Any, staging: Path) -> None:
    torch = pytest.importorskip("torch")
    near, far = cache.open(str(small)).layer(3), cache.open(URL, staging=staging).layer(3)
    rows = np.random.default_rng(0).permutation(N * T)
    assert torch.equal(far.rows(rows).view(torch.int16), near.rows(rows).view(torch.int16))
    one, three = np.array([1, 7]), np.array([0, 3])
    assert torch.equal(far.windows(one, three, 3), near.windows(one, three, 3))


def test_an_object_that_is_damaged_is_fetched_twice_and_refused(spoil: Any, staging: Path) -> None:
    requests = spoil(lambda number, content: flipped(content, 300))
    with pytest.raises(cache.CacheError, match=r"memory://bucket/small/layer_3/c/0/0/0.*fetched twice"):
        cache.open(URL, staging=staging).layer(3).bits(0, 1)
    assert len(requests) == 2
    assert staged(staging) == []


CHANGES = {
    "shorter": lambda x: x[:-1],
    "longer": lambda x: x + b"\0",
    "empty": lambda x: b"",
    "flipped": lambda x: flipped(x, len(x) - 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_arrives_damaged_once_is_fetched_again(
    change: Callable[[bytes], bytes], spoil: Any, staging: Path
) -> None:
    requests = spoil(lambda number, content: change(content) if number == 1 else content)
    assert np.array_equal(cache.open(URL, staging=staging).layer(3).bits(0, S), make_bits(seed=3)[:S])
    assert len(requests) == 2


def test_pieces_are_put_together_in_order(spoil: Any, staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PIECE_BYTES", 100)
    requests = spoil(lambda number, content: content)
    assert np.array_equal(cache.open(URL, staging=staging).layer(3).bits(0, N), make_bits(seed=3))
    assert len(requests) == 9 + 9 + 7  # the last shard holds 3 sequences, not 4


def test_a_network_that_fails_for_a_moment_is_asked_again(spoil: Any, staging: Path) -> None:
    def fail(number: int, content: bytes) -> bytes:
        if number < 4:
            raise ConnectionResetError("by peer")
        return content

    spoil(fail)
    assert np.array_equal(cache.open(URL, staging=staging).layer(3).bits(0, S), make_bits(seed=3)[:S])


@pytest.mark.parametrize(
    ("error", "message", "attempts"),
    [(TimeoutError("slow"), "check the network", 4), (PermissionError("no"), "check the credentials", 1)],
)
def test_a_request_that_fails_for_good_says_what_to_do(
    error: Exception, message: str, attempts: int, spoil: Any, staging: Path
) -> None:
    def fail(number: int, content: bytes) -> bytes:
        raise error

    requests = spoil(fail)
    with pytest.raises(cache.CacheError, match=message):
        cache.open(URL, staging=staging).layer(3).bits(0, 1)
    assert len(requests) == attempts
    assert staged(staging) == []


def test_an_object_that_is_gone_is_named(uploaded: Any, staging: Path) -> None:
    uploaded.rm(SHARD.format(1))
    with pytest.raises(cache.CacheError, match="layer_3/c/1/0/0 is missing, though manifest"):
        cache.open(URL, staging=staging).layer(3).bits(0, N)
    with pytest.raises(cache.CacheError, match="is no cache"):
        cache.open("memory://bucket/nothing", staging=staging)


def test_a_cache_that_changed_behind_its_url_never_meets_stale_files(
    uploaded: Any, staging: Path, tmp_path: Path
) -> None:
    before = cache.open(URL, staging=staging)
    assert np.array_equal(before.layer(3).bits(0, S), make_bits(seed=3)[:S])
    write(tmp_path / "other", make_meta(), {3: make_bits(seed=4), 5: make_bits(seed=5)}, make_rows())
    uploaded.put(str(tmp_path / "other") + "/", "/bucket/small/", recursive=True)
    with pytest.raises(cache.CacheError, match="if the cache was rewritten, open it again"):
        before.layer(3).bits(S, 2 * S)
    after = cache.open(URL, staging=staging)
    assert np.array_equal(after.layer(3).bits(0, N), make_bits(seed=4))


def test_a_cache_that_is_still_being_harvested_is_followed(tmp_path: Path, staging: Path, memory: Any) -> None:
    local, bits, rows = tmp_path / "growing", make_bits(seed=3), make_rows()
    with cache.CacheWriter(local, make_meta(), layers=(3,), sequences=N, sync=False) as writer:
        writer.append(0, cache.Rows(*(None if a is None else a[:S] for a in rows)), {3: bits[:S]})
        writer.flush()
        memory.put(str(local), "/bucket/small", recursive=True)
        with pytest.raises(cache.CacheError, match="memory://bucket/small is incomplete"):
            cache.open(URL, staging=staging)
        reader = cache.open(URL, staging=staging, follow=True)
        assert reader.shards == (0,)
        assert np.array_equal(reader.layer(3).bits(0, S), bits[:S])
        writer.append(S, cache.Rows(*(None if a is None else a[S:] for a in rows)), {3: bits[S:]})
        writer.finish()
    memory.put(str(local) + "/", "/bucket/small/", recursive=True)
    assert reader.shards == (0,)
    reader.refresh()
    assert reader.shards == (0, 1, 2)
    assert np.array_equal(reader.layer(3).bits(0, N), bits)
    assert int(reader.statistics(3).count.sum()) == int(cache.open(str(local)).statistics(3).count.sum())


def test_prefetched_shards_are_staged_in_the_background(spoil: Any, staging: Path) -> None:
    requests = spoil(lambda number, content: content)
    reader = cache.open(URL, staging=staging)
    layer = reader.layer(3)
    reader.folder.prefetch([layer.files.spec.file(k) for k in (0, 2, 99)])
    for thread in threading.enumerate():
        if thread.name == "cache-prefetch":
            thread.join(timeout=10)
    assert staged(staging) == ["layer_3.0.0.0", "layer_3.2.0.0"]
    assert np.array_equal(layer.bits(0, S), make_bits(seed=3)[:S])
    assert len(requests) == 2


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "layer_3/c/../../../x", "", "a//b", "./zarr.json"])
def test_a_name_that_is_none_of_ours_is_refused(name: str, uploaded: Any, staging: Path) -> None:
    folder = cache.open(URL, staging=staging).folder
    for ask in (folder.size, lambda file: folder.read(file, 100)):
        with pytest.raises(cache.CacheError, match="is no name of a file in a cache"):
            ask(name)
    with pytest.raises(FileNotFoundError):
        folder.open(name)


def test_a_missing_package_is_named(staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(cache.CacheError, match=r"pip install 'silo-sae\[s3\]'"):
        cache.open("s3://bucket/small", staging=staging)
    monkeypatch.undo()
    with pytest.raises(cache.CacheError, match="Protocol not known"):
        cache.open("carrier-pigeon://bucket/small", staging=staging)
