"""Top-k on the CPU: a bfloat16 product to screen with, float32 for all that may be chosen.

Where the processor has no fast bfloat16 product, a float32 one is rounded instead: the bounds hold for both.
Rows go through in tiles whose pre-activations [R, F] stay in the last-level cache, so that [B, F] is never in memory.
"""

import time
from functools import cache
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.kernels import buffers, plain, screening
from train.kernels.threads import share

_TILE_BYTES: Final = 12 * 2**20
_CHUNK: Final = 256


class Screen:
    """Rounded operands of one product x w, and what rounding them cost."""

    def __init__(self, x_BD: Float[Tensor, "B D"], w_FD: Float[Tensor, "F D"], bias_F: Float[Tensor, " F"]) -> None:
        self.x_BD, self.w_FD, self.bias_F = (one.detach().contiguous().numpy() for one in (x_BD, w_FD, bias_F))
        self.bfloat16 = bfloat16_is_fast()
        self.x_bits_BD, self.x_norms_B2 = _rounded(self.x_BD)
        self.w_bits_FD, self.norms_F2 = _rounded(self.w_FD)
        finite = np.isfinite(self.bias_F).all()
        self.norms_F2[-1] = self.norms_F2[:-1].max(axis=0, initial=0) if finite else np.inf

    def tile(self) -> int:
        """Rows a tile."""
        return min(256, max(32, _TILE_BYTES // (2 * len(self.w_FD)) // 32 * 32))

    def product(self, start: int, stop: int) -> np.ndarray:
        """Bits of the bfloat16 pre-activations, without bias, of rows [start, stop)."""
        shape = (self.tile(), len(self.w_FD))
        bits_RF = buffers.take(shape, np.dtype(np.uint16))[: stop - start]
        if self.bfloat16:
            torch.mm(_bfloat16(self.x_bits_BD[start:stop]), _bfloat16(self.w_bits_FD).T, out=_bfloat16(bits_RF))
        else:
            pre_RF = torch.from_numpy(buffers.take(shape, np.dtype(np.float32))[: stop - start])
            torch.mm(torch.from_numpy(self.x_BD[start:stop]), torch.from_numpy(self.w_FD).T, out=pre_RF)
            _bfloat16(bits_RF).copy_(pre_RF)
        return bits_RF


@cache
def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32, by the clock; no result depends on it."""
    x_BD, w_FD = torch.ones(128, 512), torch.ones(1024, 512)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = x_BD.to(dtype), w_FD.to(dtype).T
        taken = []
        for _ in range(4):
            begin = time.perf_counter()
            one @ other
            taken.append(time.perf_counter() - begin)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _bfloat16(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _rounded(w_FD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bits_FD = buffers.take(w_FD.shape, np.dtype(np.uint16))
    norms_F2 = np.empty((len(w_FD) + 1, 2), np.float32)
    share(lambda start, stop: screening.round_rows(w_FD, bits_FD, norms_F2, start, stop), len(w_FD), _CHUNK)
    return bits_FD, norms_F2


def groups(d_sae: int, k: int) -> int:
    """Groups to take maxima over, 0 where that does not pay: with 8 k of them the k-th largest maximum is near the k-th
    largest value, and more cost more to select from."""
    for size, needed in ((32, 8), (16, 8), (8, 8), (4, 2)):
        if d_sae >= needed * k * size:
            return -(-d_sae // size)
    return 0


def top_k(
    x_BD: Float[Tensor, "B D"], w_FD: Float[Tensor, "F D"], bias_F: Float[Tensor, " F"], k: int
) -> tuple[Float[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """Values [B, k] and latents [B, k] of the k largest pre-activations; all NaN in a row that is not finite."""
    n_groups = groups(len(w_FD), k)
    if not n_groups:
        return plain.top_k(x_BD, w_FD, bias_F, k)
    screen = Screen(x_BD, w_FD, bias_F)
    values_Bk, features_Bk = np.empty((len(x_BD), k), np.float32), np.empty((len(x_BD), k), np.int64)

    def work(start: int, stop: int) -> None:
        screening.top_k_rows(
            screen.product(start, stop), screen.x_BD[start:stop], screen.x_norms_B2[start:stop], screen.w_FD,
            screen.bias_F, screen.norms_F2, n_groups, k, values_Bk[start:stop], features_Bk[start:stop],
        )  # fmt: skip

    share(work, len(x_BD), screen.tile())
    return torch.from_numpy(values_Bk), torch.from_numpy(features_Bk)
