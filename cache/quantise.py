"""Eight-bit rows: standardise each dimension, then scale each row to its largest entry.

Plain per-row int8 destroys the dimensions beside a massive activation (FVU 4e-2, some dimensions entirely); after
standardising, the same 8 bits cost about 3e-4 FVU (measured on simulated residuals).
Shapes: n sequences, T positions, D d_model.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, UInt16

from cache import bf16
from cache.statistics import LayerStatistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantiser:
    """x ≈ mean + std · scale · q with q in [−127, 127]."""

    mean: Float32[np.ndarray, " D"]
    std: Float32[np.ndarray, " D"]

    @classmethod
    def of(cls, statistics: LayerStatistics) -> "Quantiser":
        """From the rows without BOS, whose spikes would otherwise set the scale of every dimension."""
        row_set = statistics.row_set("no_bos" if statistics.count[1] > 0 else "all")
        std = np.sqrt(statistics.variance[row_set]).astype(np.float32)
        return cls(mean=statistics.mean[row_set].astype(np.float32), std=np.where(std > 0, std, np.float32(1)))

    def encode(self, bits: UInt16[np.ndarray, "n T D"]) -> tuple[Int8[np.ndarray, "n T D"], Float32[np.ndarray, "n T"]]:
        """Codes, and the scale of each row."""
        z = (bf16.to_float32(bits) - self.mean) / self.std
        scale = np.abs(z).max(-1) / np.float32(127)
        scale = np.where(scale > 0, scale, np.float32(1))
        return np.rint(z / scale[..., None]).astype(np.int8), scale.astype(np.float32)

    def decode(
        self, codes: Int8[np.ndarray, "n T D"], scale: Float32[np.ndarray, "n T"]
    ) -> UInt16[np.ndarray, "n T D"]:
        """bfloat16 bits of the restored vectors."""
        z = codes.astype(np.float32)
        z *= scale[..., None]
        z *= self.std
        z += self.mean
        return bf16.from_float32(z)
