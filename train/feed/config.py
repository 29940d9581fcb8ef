"""What a feed delivers, as a frozen configuration."""

from dataclasses import dataclass
from typing import Final

from train.errors import TrainError

SPLITS: Final = ("train", "held_out", "all")
MOST_BLOCK: Final = 8


@dataclass(frozen=True, kw_only=True)
class FeedConfig:
    """Which rows of a cache, in which pattern and order; padding is never among them.

    Everything here but `pool_bytes` decides which row comes when.
    """

    window: int = 1
    """W, consecutive positions of one document; 1 delivers single rows."""
    batch: int = 2048
    """Tokens of a global batch, a multiple of window · parts."""
    seed: int = 0
    parts: int = 1
    """Shares into which the cache is dealt; each serves an equal part of every batch. A data-parallel run needs a
    multiple of its processes. The rows of a batch depend on this number, not on how many processes serve it."""
    split: str = "train"
    """`train`, `held_out` or `all`."""
    drop_bos: bool = True
    """Drop every row whose token is BOS, wherever in the sequence it stands."""
    drop_special: bool = False
    """Drop the rows of all special tokens of the tokenizer."""
    skip_positions: int = 0
    """Drop the first n positions of each sequence."""
    max_norm: float = 0.0
    """Drop rows whose norm is above this many medians of the layer's norms; 0 drops none."""
    pool_sequences: int = 8192
    """Most sequences that are mixed at a time, over all parts; halved until the pools fit into their memory."""
    pool_bytes: int = 0
    """Memory for all pools of a process; 0 is a quarter of what there is where they lie."""
    block: int = 2
    """Consecutive sequences that are always read together, 1 to 8: more read faster, fewer mix better."""

    def __post_init__(self) -> None:
        """Refuse what no cache could serve.

        Raises:
            TrainError: naming the field.
        """
        for name in ("window", "batch", "parts", "pool_sequences", "block"):
            _whole(name, getattr(self, name), 1)
        for name in ("seed", "skip_positions", "pool_bytes"):
            _whole(name, getattr(self, name), 0)
        if self.split not in SPLITS:
            raise TrainError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if not 0 <= self.max_norm < float("inf"):
            raise TrainError(f"max_norm must be a number of medians, or 0 for no limit, got {self.max_norm}")
        if self.block > MOST_BLOCK:
            raise TrainError(f"block must be at most {MOST_BLOCK} sequences, got {self.block}: larger ones mix badly")
        if self.batch % (self.window * self.parts):
            multiple = self.window * self.parts
            nearest = max(multiple, round(self.batch / multiple) * multiple)
            raise TrainError(
                f"batch must be a multiple of window × parts = {self.window} × {self.parts}, got {self.batch}:"
                f" take {nearest}"
            )
        if self.pool_sequences < self.block * self.parts:
            raise TrainError(
                f"pool_sequences must hold a block for each part, {self.block} × {self.parts}, got"
                f" {self.pool_sequences}: enlarge it"
            )

    @property
    def items(self) -> int:
        """Rows (or windows) that each part gives to a batch."""
        return self.batch // (self.window * self.parts)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TrainError(f"{name} must be a whole number of at least {least}, got {value!r}")
