"""What a layer's vectors look like: counts, mean, variance, norms — kept per shard, merged in shard order.

Accumulators are float64 and every sum runs in a fixed order (positions within a sequence, sequences within a shard,
shards within a cache), so neither interruptions nor ranks nor batch sizes change a bit of the result.
Shapes: B sequences, T positions, D d_model, R row sets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, UInt8

ROW_SETS: Final = ("all", "no_bos", "train")
"""`all`: every position of a document; `no_bos`: those whose token is not BOS; `train`: `no_bos` in the train split."""
R: Final = len(ROW_SETS)
TOP_ROWS: Final = 64
# Norms are counted in logarithmic bins, 64 an octave from 2**-16 to 2**24, so that any quantile of any set of shards is
# known to within half a bin (0.55 %) and merging is exact; the outer bins take what lies beyond.
BINS_AN_OCTAVE: Final = 64
FIRST_OCTAVE: Final = -16
BINS: Final = 40 * BINS_AN_OCTAVE
QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

_Shape = tuple[int | str, ...]
SHARD_FIELDS: Final[dict[str, _Shape]] = {
    "count": (R,),
    "sum": (R, "D"),
    "square": (R, "D"),
    "norm_histogram": (R, BINS),
    "position_count": ("T",),
    "position_norm_sum": ("T",),
    "top_norm": (TOP_ROWS,),
    "top_row": (TOP_ROWS,),
    "top_token": (TOP_ROWS,),
}
"""Fields of one shard's packed vector, in order; the same layout for every layer."""

MERGED_FIELDS: Final[dict[str, tuple[_Shape, tuple[str, ...]]]] = {
    "count": ((R,), ("row_set",)),
    "mean": ((R, "D"), ("row_set", "d_model")),
    "variance": ((R, "D"), ("row_set", "d_model")),
    "mean_square_norm": ((R,), ("row_set",)),
    "norm_histogram": ((R, BINS), ("row_set", "bin")),
    "norm_quantiles": ((R, len(QUANTILES)), ("row_set", "quantile")),
    "position_count": (("T",), ("position",)),
    "position_norm": (("T",), ("position",)),
    "top_norm": ((TOP_ROWS,), ("rank",)),
    "top_row": ((TOP_ROWS,), ("rank",)),
    "top_token": ((TOP_ROWS,), ("rank",)),
}


class Moments(NamedTuple):
    """Sums over the positions of each of B sequences; what a GPU sends back beside the vectors."""

    sum: Any
    """[B, R, D] float64"""
    square: Any
    """[B, R, D] float64, of the squared entries"""
    norm: Any
    """[B, T] float64, Euclidean norm of each vector"""


def moments(x_BTD: Any, mask_BRT: Any, einsum: Callable[..., Any] = np.einsum) -> Moments:
    """Sums of vectors and of their squares over each row set, and the norm of each vector.

    Args:
        x_BTD: float64 vectors.
        mask_BRT: float64, 1 where a position belongs to the row set; see `row_masks`.
        einsum: `torch.einsum` where the vectors are torch tensors, so that the sums run where the vectors are. numpy's
            own loops beat a threaded BLAS here: with three rows on the left it mostly waits for its threads.
    """
    square_BTD = x_BTD * x_BTD
    sums, squares = (einsum("brt,btd->brd", mask_BRT, one) for one in (x_BTD, square_BTD))
    return Moments(sums, squares, square_BTD.sum(-1) ** 0.5)


def row_masks(
    tokens_BT: Int32[np.ndarray, "B T"],
    document_BT: Int32[np.ndarray, "B T"],
    split_B: UInt8[np.ndarray, " B"],
    bos_token_id: int,
) -> Bool[np.ndarray, "B R T"]:
    """Which positions belong to which of `ROW_SETS`."""
    everything = document_BT >= 0
    no_bos = everything & (tokens_BT != bos_token_id)
    return np.stack([everything, no_bos, no_bos & (split_B == 0)[:, None]], axis=1)


class ShardStatistics:
    """Accumulates one shard of one layer, sequence after sequence."""

    def __init__(self, context: int, d_model: int) -> None:
        """Start empty, for sequences of [context, d_model]."""
        self.fields = {name: np.zeros(shape) for name, shape in _shapes(context, d_model).items()}
        for name in ("top_norm", "top_row", "top_token"):
            self.fields[name].fill(-1)

    def add(self, first: int, part: Moments, mask_BRT: np.ndarray, tokens_BT: np.ndarray) -> None:
        """Add B whole sequences, of which the first has number `first` in the cache."""
        f, norm_BT = self.fields, np.asarray(part.norm)
        for b in range(len(norm_BT)):
            f["sum"] += part.sum[b]
            f["square"] += part.square[b]
            f["position_norm_sum"] += np.where(mask_BRT[b, 0], norm_BT[b], 0)
        f["count"] += mask_BRT.sum((0, 2))
        f["position_count"] += mask_BRT[:, 0].sum(0)
        bin_BT = norm_bin(norm_BT)
        for r in range(R):
            f["norm_histogram"][r] += np.bincount(bin_BT[mask_BRT[:, r]], minlength=BINS)
        self._add_top(first, norm_BT, mask_BRT[:, 0], tokens_BT)

    def _add_top(self, first: int, norm_BT: np.ndarray, member_BT: np.ndarray, tokens_BT: np.ndarray) -> None:
        row = np.flatnonzero(member_BT)
        norm = norm_BT.reshape(-1)[row]
        best = np.argsort(-norm, kind="stable")[:TOP_ROWS]
        found = np.stack([norm[best], row[best] + first * norm_BT.shape[1], tokens_BT.reshape(-1)[row[best]]])
        _keep_top(self.fields, found)

    def packed(self) -> Float64[np.ndarray, " P"]:
        """One vector of every field in the order of `SHARD_FIELDS`: what the `shards` array stores."""
        return np.concatenate([self.fields[name].reshape(-1) for name in SHARD_FIELDS])


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStatistics:
    """Statistics of a layer over the committed shards; the first axis of most fields is `ROW_SETS`."""

    count: np.ndarray
    mean: np.ndarray
    """[R, D], in raw model units"""
    variance: np.ndarray
    """[R, D], of each dimension about its mean"""
    mean_square_norm: np.ndarray
    """[R], the mean of |x|²"""
    norm_histogram: np.ndarray
    norm_quantiles: np.ndarray
    """[R, len(QUANTILES)], each to within 0.55 %"""
    position_count: np.ndarray
    position_norm: np.ndarray
    """[T], mean norm at each position; NaN where no row is"""
    top_norm: np.ndarray
    """[64], the largest norms, descending; -1 where there are fewer rows"""
    top_row: np.ndarray
    top_token: np.ndarray

    def row_set(self, name: str) -> int:
        """Index of a row set on the first axis."""
        return ROW_SETS.index(name)


def packed_length(context: int, d_model: int) -> int:
    """Length P of a shard's packed vector."""
    return sum(int(np.prod(shape)) for shape in _shapes(context, d_model).values())


def merge(packed: Iterable[np.ndarray], context: int, d_model: int) -> LayerStatistics:
    """Merge shards' packed vectors, in the order given, into the statistics of a layer."""
    total = ShardStatistics(context, d_model).fields
    for vector in packed:
        one = _unpack(vector, context, d_model)
        for name in ("count", "sum", "square", "norm_histogram", "position_count", "position_norm_sum"):
            total[name] += one[name]
        _keep_top(total, np.stack([one[name] for name in ("top_norm", "top_row", "top_token")]))
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty row set has no mean: NaN says so
        count_R1 = total["count"][:, None]
        mean = total["sum"] / count_R1
        variance = np.maximum(total["square"] / count_R1 - mean**2, 0)
        mean_square_norm = total["square"].sum(1) / total["count"]
        position_norm = total["position_norm_sum"] / total["position_count"]
    return LayerStatistics(
        count=total["count"],
        mean=mean,
        variance=variance,
        mean_square_norm=mean_square_norm,
        norm_histogram=total["norm_histogram"],
        norm_quantiles=np.stack([quantiles(row, QUANTILES) for row in total["norm_histogram"]]),
        position_count=total["position_count"],
        position_norm=position_norm,
        top_norm=total["top_norm"],
        top_row=total["top_row"],
        top_token=total["top_token"],
    )


def norm_bin(norm: np.ndarray) -> np.ndarray:
    """Histogram bin of each norm."""
    with np.errstate(divide="ignore"):
        octave = np.log2(norm) - FIRST_OCTAVE
    bins: np.ndarray = np.clip(np.floor(octave * BINS_AN_OCTAVE), 0, BINS - 1).astype(np.int64)
    return bins


def quantiles(histogram: np.ndarray, probabilities: Iterable[float]) -> np.ndarray:
    """Norms below which the given shares of rows lie: the geometric middle of the bin; NaN of an empty histogram."""
    cumulative = np.cumsum(histogram)
    if not cumulative[-1]:
        return np.full(len(tuple(probabilities)), np.nan)
    bins = np.searchsorted(cumulative, np.asarray(tuple(probabilities)) * cumulative[-1])
    norms: np.ndarray = np.exp2((bins + 0.5) / BINS_AN_OCTAVE + FIRST_OCTAVE)
    return norms


def _keep_top(fields: dict[str, np.ndarray], found_3n: np.ndarray) -> None:
    names = ("top_norm", "top_row", "top_token")
    both = np.concatenate([np.stack([fields[name] for name in names]), found_3n], axis=1)
    # Norm descending; equal norms by row number, so that the order in which shards arrive does not matter.
    order = np.lexsort((both[1], -both[0]))[:TOP_ROWS]
    for name, values in zip(names, both[:, order], strict=True):
        fields[name][:] = values


def _unpack(vector: np.ndarray, context: int, d_model: int) -> dict[str, np.ndarray]:
    shapes = _shapes(context, d_model)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(vector, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _shapes(context: int, d_model: int) -> dict[str, tuple[int, ...]]:
    sizes = {"T": context, "D": d_model}
    return {name: tuple(sizes[x] if isinstance(x, str) else x for x in shape) for name, shape in SHARD_FIELDS.items()}
