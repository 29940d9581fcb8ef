"""Architectures: what an SAE's activation is and how it is kept sparse. One file each; this table names them."""

from dataclasses import dataclass

from train.architectures.batchtopk import BatchTopK, BatchTopKConfig
from train.architectures.gated import Gated, GatedConfig
from train.architectures.jumprelu import JumpReLU, JumpReLUConfig
from train.architectures.matryoshka import Matryoshka, MatryoshkaConfig
from train.architectures.relu import ReLU, ReLUConfig
from train.architectures.topk import TopK, TopKConfig
from train.sae import SAE, SAEConfig


@dataclass(frozen=True)
class Architecture:
    """A row of the table."""

    config: type[SAEConfig]
    sae: type[SAE]


ARCHITECTURES: dict[str, Architecture] = {
    "relu": Architecture(ReLUConfig, ReLU),
    "topk": Architecture(TopKConfig, TopK),
    "batchtopk": Architecture(BatchTopKConfig, BatchTopK),
    "jumprelu": Architecture(JumpReLUConfig, JumpReLU),
    "gated": Architecture(GatedConfig, Gated),
    "matryoshka": Architecture(MatryoshkaConfig, Matryoshka),
}
