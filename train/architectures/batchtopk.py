"""BatchTopK: the B·k largest positive pre-activations of a batch (Bussmann, Leask & Nanda 2024, "BatchTopK sparse
autoencoders", arXiv 2412.06410)."""

from dataclasses import dataclass
from typing import ClassVar

from train.batch_selection import BatchSelection, BatchSelectionConfig


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(BatchSelectionConfig):
    """Settings of a BatchTopK SAE."""


class BatchTopK(BatchSelection):
    """One dictionary, one reconstruction."""

    architecture: ClassVar[str] = "batchtopk"
    config: BatchTopKConfig
