"""Caches on a real S3 server (moto's, on loopback), read through s3fs."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache
from cache import remote, store
from tests.cache.bucket import SHARD, staged
from tests.cache.planted import N, S, make_bits, make_meta, make_rows, write

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def options(endpoint: str) -> dict[str, Any]:
    return {"endpoint_url": endpoint, "key": "test", "secret": "test"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> Any:
    """A bucket with a planted cache; it is changed only for the time of a test."""
    path = tmp_path_factory.mktemp("local") / "small"
    write(path, make_meta(), {3: make_bits(seed=3)}, make_rows())
    files = s3fs.S3FileSystem(**options)
    files.mkdir("bucket")
    files.put(str(path), "bucket/small", recursive=True)
    return files


@pytest.fixture(autouse=True)
def _without_waiting_or_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(store, "PAUSES", [0.0])


def test_a_cache_in_a_bucket_reads_like_a_local_one(bucket: Any, staging: Path, options: dict[str, Any]) -> None:
    reader = cache.open("s3://bucket/small", staging=staging, storage_options=options)
    rows = make_rows()
    assert np.array_equal(reader.layer(3).bits(0, N), make_bits(seed=3))
    assert np.array_equal(reader.tokens(), rows.tokens)
    assert np.array_equal(reader.document(), rows.document)
    assert np.array_equal(reader.split(), rows.split)
    assert reader.statistics(3).mean.shape[-1] == reader.meta.d_model
    files = list(reader.folder.walk())
    assert {"zarr.json", "manifest.jsonl", "layer_3/c/0/0/0"} <= set(files)
    assert [reader.folder.size(file) for file in files] == [bucket.size(f"bucket/small/{file}") for file in files]


def test_a_shard_comes_in_pieces_over_several_connections(
    bucket: Any, staging: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PIECE_BYTES", 100)
    layer = cache.open("s3://bucket/small", staging=staging, storage_options=options).layer(3)
    assert np.array_equal(layer.bits(0, N), make_bits(seed=3))


def test_an_object_that_was_torn_or_lost_in_the_bucket_is_refused(
    bucket: Any, staging: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PIECE_BYTES", 100)
    layer = cache.open("s3://bucket/small", staging=staging, storage_options=options).layer(3)
    content = bucket.cat_file(SHARD.format(0)[1:])
    for torn in (content[:-1], content[:300], content[:50], b"", content + b"\0"):
        bucket.pipe_file(SHARD.format(0)[1:], torn)
        with pytest.raises(cache.CacheError, match="layer_3/c/0/0/0 has not the 836 bytes"):
            layer.bits(0, 1)
    bucket.rm(SHARD.format(0)[1:])
    with pytest.raises(cache.CacheError, match="layer_3/c/0/0/0 is missing, though"):
        layer.bits(0, 1)
    assert staged(staging) == []
    bucket.pipe_file(SHARD.format(0)[1:], content)
    assert np.array_equal(layer.bits(0, S), make_bits(seed=3)[:S])


@pytest.mark.parametrize("url", ["s3://bucket/nothing", "s3://no-such-bucket/small", "s3://bucket"])
def test_a_bucket_or_prefix_that_is_not_there_is_named(
    url: str, bucket: Any, staging: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(cache.CacheError, match=f"{url} is no cache.*check the bucket, the prefix"):
        cache.open(url, staging=staging, storage_options=options)


def test_a_reader_that_is_refused_is_told_about_credentials(
    bucket: Any, staging: Path, options: dict[str, Any]
) -> None:
    # The server shows nobody without a signature an object that is not public.
    anonymous = {"endpoint_url": options["endpoint_url"], "anon": True}
    with pytest.raises(cache.CacheError, match=r"may not be read.*check the credentials"):
        cache.open("s3://bucket/small", staging=staging, storage_options=anonymous)


def test_a_server_that_is_down_is_told_from_a_cache_that_is_not_there(
    staging: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    away = {**options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(cache.CacheError, match=r"out of reach, tried 2 times.*check the network"):
        cache.open("s3://bucket/small", staging=staging, storage_options=away)
