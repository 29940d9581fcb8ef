"""What one training step sees: normalised rows, and where they came from."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from train.feed import Batch


@dataclass(frozen=True)
class Rows:
    """A batch on its way into an SAE.

    Windows are flattened: row i·W + t is position t of window i, so a penalty on rows runs on windows too.
    """

    x_BD: Float[Tensor, "B D"]
    """float32, normalised: mean 0 and E‖x‖² = D over the rows that training sees."""
    window: int
    """W; 1 where rows are independent draws."""
    batch: Batch
    """The same as the feed gave it: raw bfloat16, tokens, positions, sequences, documents, domains."""
