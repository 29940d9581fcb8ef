"""The writer: what is appended is what is read, whatever the batches, interruptions and processes."""

from pathlib import Path

import numpy as np

import cache
from tests.cache.planted import N, make_bits


def test_what_is_appended_is_what_is_read(small: Path) -> None:
    reader = cache.open(str(small))
    for layer in (3, 5):
        assert np.array_equal(reader.layer(layer).bits(0, N), make_bits(seed=layer))
