"""Batch top-k on the CPU: one threshold for all rows, found with the screen of `selection` and a guess from outside.

With a good guess one pass collects little more than is kept. A bad one costs a second pass: the first also takes the
largest lower end in each group, and the n-th largest of those is a threshold that n values reach for certain.
"""

import threading
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train.kernels import compiled, plain, screening
from train.kernels.selection import Screen, groups
from train.kernels.threads import share

_ROWS: Final = 32


class _Candidates:
    """Latents whose pre-activation may reach `bound`, by row, with the interval that holds it."""

    def __init__(self, screen: Screen, n_groups: int, bound: float, limit: int) -> None:
        """At most about `limit` are collected; if there are more, `whole` is False."""
        self.bound, self.whole = bound, True
        n_rows = len(screen.x_BD)
        self.maxima_BG, self.counts_B = np.empty((n_rows, n_groups), np.float32), np.empty(n_rows, np.int64)
        parts: dict[int, tuple[np.ndarray, ...]] = {}
        lock = threading.Lock()

        def work(start: int, stop: int) -> None:
            most = -(-limit * (stop - start) // n_rows)
            found, whole = self._tile(screen, start, stop, most)
            with lock:
                parts[start] = found
                self.whole &= whole

        share(work, n_rows, screen.tile())
        columns = zip(*(parts[start] for start in sorted(parts)), strict=True)
        self.features_n, self.lower_n, self.upper_n = (np.concatenate(column) for column in columns)

    def _tile(self, screen: Screen, start: int, stop: int, limit: int) -> tuple[tuple[np.ndarray, ...], bool]:
        d_sae, rows = len(screen.w_FD), slice(start, stop)
        bits_RF = screen.product(start, stop)
        size = min(limit, 2**20) + 2 * d_sae + 2
        out: tuple[np.ndarray, ...] = (np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.float32))
        scratch = (np.empty(self.maxima_BG.shape[1] + 1, np.int64), np.empty(d_sae, np.float32))
        row = place = 0
        while True:
            row, place = screening.collect_rows(
                bits_RF, screen.x_norms_B2[rows], screen.bias_F, screen.norms_F2, screen.x_BD.shape[1],
                np.float32(self.bound), limit, row, place, self.maxima_BG[rows], self.counts_B[rows], (*out, *scratch),
            )  # fmt: skip
            if row == stop - start:
                return tuple(one[:place] for one in out), place <= limit
            out = tuple(np.concatenate((one, np.empty_like(one))) for one in out)

    def hold(self, n: int) -> bool:
        """Whether the n largest positive pre-activations are among them for certain."""
        return self.whole and (self.bound <= 0 or int((self.lower_n >= self.bound).sum()) >= n)


def top_n(
    x_BD: Float[Tensor, "B D"], w_FD: Float[Tensor, "F D"], bias_F: Float[Tensor, " F"], n: int, guess: float
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"], Int64[Tensor, " b"]]:
    """The n largest positive pre-activations of the batch: values, latents and offsets.

    A row that is not finite has one entry, NaN at latent 0, beyond the n. The guess decides nothing but the time.
    """
    n_groups = groups(len(w_FD), -(-n // max(len(x_BD), 1)))
    if not n_groups or not n:
        return plain.top_n(x_BD, w_FD, bias_F, n, guess)
    screen = Screen(x_BD, w_FD, bias_F)
    found = _Candidates(screen, n_groups, _start(screen, guess), 4 * n)
    if not found.hold(n):
        maxima = found.maxima_BG.reshape(-1)
        bound = np.partition(maxima, -n)[-n] if n <= maxima.size else 0.0
        found = _Candidates(screen, n_groups, max(float(bound), 0.0), found.maxima_BG.shape[0] * len(screen.w_FD))
    return _largest(screen, found, n)


def _start(screen: Screen, guess: float) -> float:
    """A threshold that the n-th largest lower end will reach if the guess is right to 2 %; infinite without a guess."""
    if not 0 < guess < np.inf:
        return np.inf
    (x_norm, x_error), (w_norm, w_error) = screen.x_norms_B2[:-1].mean(axis=0), screen.norms_F2[:-1].mean(axis=0)
    start = 0.97 * guess - 2 * float(x_error * w_norm + x_norm * w_error)
    return max(start, 0.0) if np.isfinite(start) else np.inf


def _largest(screen: Screen, found: _Candidates, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest of the candidates, computed in float32; of equal ones the first."""
    broken_B = found.counts_B < 0
    rows_n = np.repeat(np.arange(len(broken_B)), np.maximum(found.counts_B, 0))
    features_n = found.features_n
    if len(rows_n) > n:
        possible_n = found.upper_n >= np.partition(found.lower_n, -n)[-n]
        rows_n, features_n = rows_n[possible_n], features_n[possible_n]
    values_n = _exact(screen, rows_n, features_n, len(broken_B))
    bound = max(np.partition(values_n, -n)[-n], 0) if len(values_n) > n else np.float32(0)
    kept_n = values_n > bound
    if bound > 0:
        kept_n[np.flatnonzero(values_n == bound)[: n - int(kept_n.sum())]] = True
    rows_n = np.concatenate((rows_n[kept_n], np.flatnonzero(broken_B)))
    order_n = np.argsort(rows_n, kind="stable")
    nan, zero = np.full(int(broken_B.sum()), np.nan, np.float32), np.zeros(int(broken_B.sum()), np.int64)
    return (
        torch.from_numpy(np.concatenate((values_n[kept_n], nan))[order_n]),
        torch.from_numpy(np.concatenate((features_n[kept_n], zero))[order_n]),
        torch.from_numpy(_offsets(rows_n, len(broken_B))),
    )


def _exact(screen: Screen, rows_n: np.ndarray, features_n: np.ndarray, n_rows: int) -> np.ndarray:
    values_n, offsets = np.empty(len(features_n), np.float32), _offsets(rows_n, n_rows)

    def work(start: int, stop: int) -> None:
        compiled.gather_dot(features_n, offsets, screen.w_FD, screen.x_BD, values_n, start, stop)

    share(work, n_rows, _ROWS)
    values_n += screen.bias_F[features_n]
    return values_n


def _offsets(rows_n: np.ndarray, n_rows: int) -> np.ndarray:
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(rows_n, minlength=n_rows), out=offsets[1:])
    return offsets
