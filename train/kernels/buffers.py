"""Large CPU arrays that are used again: the pages of a fresh 75 MB array cost more than a pass over it."""

import sys
import threading
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

_KEPT: Final = 16
_lock: Final = threading.Lock()
_arrays: Final[list[np.ndarray]] = []
_one: Final = [np.empty(0)]
_FREE: Final = sys.getrefcount(_one[0])
"""References to an array that only a list holds."""


def take(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that nobody else holds; it is free again when its last view and tensor are gone."""
    with _lock:
        for position in range(len(_arrays)):
            if sys.getrefcount(_arrays[position]) == _FREE and _fits(position, shape, dtype):
                _arrays.append(_arrays.pop(position))
                return _arrays[-1]
        fresh = np.empty(shape, dtype)
        _arrays.append(fresh)
        if len(_arrays) > _KEPT:
            del _arrays[0]
        return fresh


def _fits(position: int, shape: tuple[int, ...], dtype: Any) -> bool:
    return _arrays[position].shape == shape and _arrays[position].dtype == dtype


def take_tensor(*shape: int) -> Tensor:
    """The same as a float32 tensor. It is not a view, so autograd adopts it as a `.grad` without copying it."""
    return torch.from_numpy(take(shape, np.dtype(np.float32)))
