"""Before the first step: the decoder's directions, and its bias."""

import hashlib
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK: Final = 4096  # a multiple of 16: torch makes normal numbers 16 at a time, and chunks then continue one stream


def stream(purpose: str, seed: int) -> torch.Generator:
    """Random numbers for one purpose of one run, that nobody else draws.

    `manual_seed(0)` is the first seed that anyone takes: planted data made with it would hand a dictionary that starts
    with the same numbers its own truth. (torch keeps 32 bits of a seed, so adding a large number is not enough.)
    """
    digest = hashlib.sha256(f"silo {purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def directions(d_sae: int, d_model: int, seed: int, latents: range) -> Float[Tensor, "f D"]:
    """Rows `latents` of d_sae random unit vectors, the same whichever rows are asked for, in memory for these alone."""
    generator = stream("directions", seed)
    w_fD = torch.empty(len(latents), d_model)
    start = 0
    while start < d_sae:
        # A last chunk of fewer than 16 numbers would be drawn in another way, so it is joined to the one before.
        stop = start + _CHUNK if d_sae - start >= 2 * _CHUNK else d_sae
        drawn_nD = torch.randn(stop - start, d_model, generator=generator)
        low, high = max(start, latents.start), min(stop, latents.stop)
        if low < high:
            w_fD[low - latents.start : high - latents.start] = drawn_nD[low - start : high - start]
        start = stop
    return w_fD.div_(w_fD.norm(dim=1, keepdim=True))


@torch.no_grad()
def geometric_median(x_BD: Float[Tensor, "B D"], *, tolerance: float = 1e-5, rounds: int = 100) -> Float[Tensor, " D"]:
    """The point with the smallest mean distance to the rows (Bricken et al. 2023, appendix); Weiszfeld's iteration."""
    rows_BD = x_BD.double()
    guess_D = rows_BD.mean(0)
    for _ in range(rounds):
        weight_B = 1 / (rows_BD - guess_D).norm(dim=1).clamp_min(1e-10)
        new_D = (weight_B @ rows_BD) / weight_B.sum()
        moved = (new_D - guess_D).norm() / guess_D.norm().clamp_min(1e-10)
        guess_D = new_D
        if float(moved) < tolerance:
            break
    return guess_D.float()
