"""The five ideas: what was asked, how it is measured, what is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_CORE: Final = ("fvu", "l0", "dead")
_GEOMETRY: Final = ("mmc", "c_dec", "duplicated", "active_kappa")


@dataclass(frozen=True, kw_only=True)
class Idea:
    """One experiment."""

    title: str
    variant: str
    """The variant that it is about; its log says what its penalty did."""
    measures: tuple[str, ...]
    """Of `evals.experiments.measure.MEASURES`."""
    columns: tuple[str, ...]
    """Of `COLUMNS`, for the runs on the cache."""
    planted: str
    """Of `evals.experiments.planted.SOURCES`."""
    planted_columns: tuple[str, ...]
    pictures: tuple[str, ...]
    """Of `evals.experiments.draw.PICTURES`."""
    grid: str = ""
    """A second sweep file: window × coefficient."""
    null: str = ""
    """A third sweep file: what is also trained where time was destroyed."""
    elsewhere: str = ""
    """What of the idea other commands do."""


IDEAS: Final[Mapping[str, Idea]] = {
    "000": Idea(
        title="Instantaneous top-k orthogonality",
        variant="ortho_pairs",
        measures=("cosines", "condition", "redundancy", "composition"),
        columns=(*_CORE, *_GEOMETRY, "redundant", "clustering_excess", "meta_explained", "jaccard", "gradient_share"),
        planted="hierarchy",
        planted_columns=(*_CORE, "absorption", "are", "all_f1", "mcs", "mmc", "jaccard", "gradient_share"),
        pictures=("pairs", "thresholds", "cosines", "composition", "redundancy", "efficiency", "condition"),
        elsewhere="Absorption on the language model: `make eval EVALS=absorption` on these runs.",
    ),
    "001": Idea(
        title="Adaptively weighted orthogonality",
        variant="ortho_adaptive",
        measures=("cosines", "condition", "redundancy"),
        columns=(*_CORE, *_GEOMETRY, "frame", "kappa", "effective_rank", "weight", "violation", "gradient_share"),
        planted="hierarchy",
        planted_columns=(*_CORE, "absorption", "are", "all_f1", "mcs", "mmc", "gradient_share"),
        pictures=("weights", "cosines", "condition", "efficiency"),
        elsewhere="Automated interpretability: `make eval EVALS=autointerp` on these runs, with a judge.",
    ),
    "002": Idea(
        title="Orthogonal knowledge separation",
        variant="ortho_groups",
        measures=("cosines", "condition", "groups"),
        columns=(
            *_CORE, *_GEOMETRY, "kappa", "leakage", "auc", "kept", "residual", "damage", "affinity", "cross_cosine",
            "gradient_share",
        ),
        planted="domains",
        planted_columns=(
            *_CORE, "all_f1", "mcs", "affinity", "cross_cosine", "left_signal", "gradient_share",
        ),
        pictures=("separation", "condition", "cosines"),
        elsewhere="Unlearning: `make eval EVALS=unlearning` on these runs, of a model that follows instructions.",
    ),
    "003": Idea(
        title="Temporal consistency",
        variant="temporal",
        measures=("time", "kinds", "cosines"),
        columns=(
            *_CORE, "rho_1", "rho_1_shuffled", "rho_1_median", "rho_1_high", "half_life", "stays_on", "smoothness",
            "latents_on", "slow_l0", "gradient_share",
            "position_invariance", "l0_slow", "l0_token", "l0_position", "l0_dense", "silhouette", "cohesion",
        ),
        planted="temporal",
        planted_columns=(*_CORE, "slow_f1", "flicker", "all_f1", "mcs", "mmc", "gradient_share"),
        pictures=("autocorrelation", "positions", "kinds", "grid"),
        grid="003_grid",
        null="003_null",
    ),
    "004": Idea(
        title="Importance-prioritised orthogonality",
        variant="ortho_importance",
        measures=("cosines", "condition", "redundancy", "composition"),
        columns=(*_CORE, *_GEOMETRY, "redundant", "clustering_excess", "meta_explained", "jaccard", "gradient_share"),
        planted="hierarchy",
        planted_columns=(*_CORE, "absorption", "are", "all_f1", "mcs", "mmc", "jaccard", "gradient_share"),
        pictures=("cosines", "redundancy", "composition", "efficiency", "condition"),
        elsewhere="Sparse probing task by task: `make eval EVALS=sparse_probing` on these runs.",
    ),
}  # fmt: skip
