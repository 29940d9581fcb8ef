"""The staging folder: bounded, evicting by last use, and sound under threads, processes, kills and rot."""

import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cache
from tests.cache.bucket import SHARD_BYTES, URL, flipped, staged
from tests.cache.planted import N, S, make_bits


def test_what_was_used_longest_ago_is_evicted(uploaded: Any, staging: Path) -> None:
    layer = cache.open(URL, staging=staging, staging_bytes=2 * SHARD_BYTES + 100).layer(3)
    layer.shard_bits(0)
    layer.shard_bits(1)
    layer.shard_bits(0)
    layer.shard_bits(2)
    assert staged(staging) == ["layer_3.0.0.0", "layer_3.2.0.0"]
    assert np.array_equal(layer.bits(0, N), make_bits(seed=3))


def test_a_view_outlives_the_eviction_of_its_file(uploaded: Any, staging: Path) -> None:
    layer = cache.open(URL, staging=staging, staging_bytes=SHARD_BYTES).layer(3)
    views = [layer.shard_bits(k) for k in range(3)]
    assert staged(staging) == ["layer_3.2.0.0"]
    assert np.array_equal(np.concatenate(views), make_bits(seed=3))


def test_nothing_but_staged_files_is_ever_evicted(uploaded: Any, staging: Path) -> None:
    mine = [staging / "thesis.tex", staging / "chapters" / "one.0123456789abcdef", staging / ("ab" * 16) / "two.tex"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("years of work")
    cache.open(URL, staging=staging, staging_bytes=SHARD_BYTES).layer(3).bits(0, N)
    assert all(path.exists() for path in mine)


def test_a_shard_larger_than_the_staging_folder_is_refused(uploaded: Any, staging: Path) -> None:
    layer = cache.open(URL, staging=staging, staging_bytes=SHARD_BYTES - 1).layer(3)
    with pytest.raises(cache.CacheError, match="raise staging_bytes"):
        layer.bits(0, 1)


def test_a_local_copy_that_rotted_is_fetched_again_by_the_next_process(uploaded: Any, staging: Path) -> None:
    cache.open(URL, staging=staging).layer(3).bits(0, S)
    (copy,) = staging.glob("*/layer_3.0.*")
    for rotten in (flipped(copy.read_bytes(), 300), copy.read_bytes()[:-1], b""):
        copy.write_bytes(rotten)
        assert np.array_equal(cache.open(URL, staging=staging).layer(3).bits(0, S), make_bits(seed=3)[:S])


def test_what_a_killed_process_left_is_cleared_and_what_a_live_one_fetches_is_waited_for(
    uploaded: Any, staging: Path
) -> None:
    cache.open(URL, staging=staging).layer(3).bits(0, 2 * S)
    first, second = sorted(staging.glob("*/*"))
    dead, live = Path(f"{first}.partial"), Path(f"{second}.partial")
    first.rename(dead)
    second.rename(live)
    with live.open("rb") as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        layer = cache.open(URL, staging=staging, staging_bytes=2 * SHARD_BYTES).layer(3)
        waiting = pool.submit(layer.bits, S, 2 * S)
        assert np.array_equal(layer.bits(0, S), make_bits(seed=3)[:S])  # the partial of the dead gave way
        time.sleep(0.05)
        assert not waiting.done()
        assert live.exists()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert np.array_equal(waiting.result(timeout=10), make_bits(seed=3)[S : 2 * S])


def test_threads_that_compete_for_too_small_a_folder_all_get_their_bytes(uploaded: Any, staging: Path) -> None:
    bits, reader = make_bits(seed=3), cache.open(URL, staging=staging, staging_bytes=SHARD_BYTES)

    def work(seed: int) -> bool:
        layer = reader.layer(3)
        picks = np.random.default_rng(seed).integers(0, N, 60)
        return all(np.array_equal(layer.bits(i, i + 1)[0], bits[i]) for i in picks.tolist())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert len(staged(staging)) == 1


_WORKER = """
import sys, numpy as np, cache
url, staging, most, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reader = cache.open(url, staging=staging, staging_bytes=most)
truth = np.load(sys.argv[5])
for i in np.random.default_rng(seed).integers(0, len(truth), 400):
    assert np.array_equal(reader.layer(3).bits(int(i), int(i) + 1)[0], truth[i])
print("read everything")
"""


def test_processes_that_share_a_staging_folder_never_spoil_it(small: Path, staging: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "truth.npy", make_bits(seed=3))
    arguments = [small.as_uri(), str(staging), str(2 * SHARD_BYTES)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments, str(seed), str(tmp_path / "truth.npy")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[1])},
        )
        for seed in range(2)
    ]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == [b"read everything\n"] * 2
    assert sum(path.stat().st_size for path in staging.glob("*/*")) <= 2 * SHARD_BYTES
    assert not list(staging.glob("*/*.partial"))
