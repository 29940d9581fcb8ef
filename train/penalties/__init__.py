"""Penalties: what can be added to an architecture's loss. One file each; this table names them."""

from dataclasses import dataclass

from train.penalties.ortho_active import OrthoActive, OrthoActiveConfig
from train.penalties.ortho_adaptive import OrthoAdaptive, OrthoAdaptiveConfig
from train.penalties.ortho_groups import OrthoGroups, OrthoGroupsConfig
from train.penalties.ortho_importance import OrthoImportance, OrthoImportanceConfig
from train.penalties.ortho_pairs import OrthoPairs, OrthoPairsConfig
from train.penalties.ortsae import OrtSAE, OrtSAEConfig
from train.penalties.penalty import Penalty as Penalty
from train.penalties.penalty import PenaltyConfig as PenaltyConfig
from train.penalties.temporal import Temporal, TemporalConfig
from train.penalties.temporal_variance import TemporalVariance, TemporalVarianceConfig
from train.penalties.tsae import TSAE, TSAEConfig


@dataclass(frozen=True)
class PenaltyKind:
    """A row of the table."""

    config: type[PenaltyConfig]
    penalty: type[Penalty]


PENALTIES: dict[str, PenaltyKind] = {
    "ortho_active": PenaltyKind(OrthoActiveConfig, OrthoActive),
    "ortho_importance": PenaltyKind(OrthoImportanceConfig, OrthoImportance),
    "ortho_pairs": PenaltyKind(OrthoPairsConfig, OrthoPairs),
    "ortsae": PenaltyKind(OrtSAEConfig, OrtSAE),
    "ortho_adaptive": PenaltyKind(OrthoAdaptiveConfig, OrthoAdaptive),
    "ortho_groups": PenaltyKind(OrthoGroupsConfig, OrthoGroups),
    "temporal": PenaltyKind(TemporalConfig, Temporal),
    "temporal_variance": PenaltyKind(TemporalVarianceConfig, TemporalVariance),
    "tsae": PenaltyKind(TSAEConfig, TSAE),
}
