"""Fixtures of the cache's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.cache.planted import make_bits, make_meta, make_rows, write


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A complete cache of two layers, 11 sequences in shards of 4."""
    path = tmp_path / "small"
    write(path, make_meta(), {3: make_bits(seed=3), 5: make_bits(seed=5)}, make_rows())
    return path


@pytest.fixture
def memory() -> Iterator[Any]:
    yield fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "staging"


@pytest.fixture
def uploaded(small: Path, memory: Any) -> Any:
    """The cache `small` at `memory://bucket/small`."""
    memory.put(str(small), "/bucket/small", recursive=True)
    return memory
