"""Fixtures of the cache's tests."""

from pathlib import Path

import pytest

from tests.cache.planted import make_bits, make_meta, make_rows, write


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A complete cache of two layers, 11 sequences in shards of 4."""
    path = tmp_path / "small"
    write(path, make_meta(), {3: make_bits(seed=3), 5: make_bits(seed=5)}, make_rows())
    return path
