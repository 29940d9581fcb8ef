"""The variants: name → architecture + penalties + defaults. A new variant is one file in `penalties/` (or
`architectures/`) and one line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cache.reader import CacheReader
from train import schedule, settings
from train.architectures import ARCHITECTURES
from train.config import RunConfig, TrainingConfig
from train.errors import TrainError
from train.feed.config import FeedConfig
from train.penalties import PENALTIES


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    summary: str
    base: str
    penalties: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Defaults that differ from the fields' own; each with its source."""


VARIANTS: dict[str, Variant] = {
    "relu": Variant("ReLU + L1, unit-norm decoder (Bricken et al. 2023)", "relu", settings={"sparsity_warmup": 1000}),
    "relu_april": Variant(
        "ReLU + L1 weighted by decoder norms (Anthropic, April 2024)",
        "relu",
        settings={"form": "april", "lr": 5e-5, "sparsity_warmup": 1000, "b_dec": "zero"},
    ),
    "topk": Variant("the k largest a row, AuxK (Gao et al. 2024)", "topk"),
    "batchtopk": Variant("the B·k largest a batch, learned threshold (Bussmann et al. 2024)", "batchtopk"),
    "jumprelu": Variant(
        "learned thresholds, straight-through (Rajamanoharan et al. 2024b)",
        "jumprelu",
        settings={"beta1": 0.0, "sparsity_warmup": 1000},
    ),
    "gated": Variant(
        "gate and magnitude (Rajamanoharan et al. 2024a)", "gated", settings={"beta1": 0.0, "sparsity_warmup": 1000}
    ),
    "matryoshka": Variant("nested BatchTopK dictionaries (Bussmann et al. 2025)", "matryoshka"),
    "ortho_active": Variant("latents that are active together are pushed apart", "batchtopk", ("ortho_active",)),
    "ortho_importance": Variant("important latents that are near parallel", "batchtopk", ("ortho_importance",)),
    "ortho_pairs": Variant("the top pairs by co-activation and cosine", "batchtopk", ("ortho_pairs",)),
    "ortsae": Variant("each latent's nearest in a random chunk (Korznikov et al. 2025)", "batchtopk", ("ortsae",)),
    "ortho_adaptive": Variant(
        "frame potential with a weight that tunes itself (dual ascent)", "batchtopk", ("ortho_adaptive",)
    ),
    "ortho_groups": Variant("two domains' latents in subspaces apart", "batchtopk", ("ortho_groups",)),
    "temporal": Variant(
        "slow latents stay on: contrast of neighbouring positions", "batchtopk", ("temporal",), {"window": 8}
    ),
    "temporal_variance": Variant(
        "variance within windows on a Matryoshka prefix: the ablation of temporal",
        "matryoshka",
        ("temporal_variance",),
        {"prefixes": (0.2, 1.0), "window": 8},
    ),
    "tsae": Variant(
        "T-SAE as in the paper (arXiv 2511.05541): cosine contrast of neighbours on the first fifth",
        "matryoshka",
        ("tsae",),
        {"prefixes": (0.2, 1.0), "window": 8},
    ),
    "tsae_code": Variant(
        "T-SAE as its released code: dot products with a random earlier position, dictionaries weighed 0.2 and 0.8",
        "matryoshka",
        ("tsae",),
        {"prefixes": (0.2, 1.0), "weights": (0.2, 0.8), "window": 8, "source": "code", "tsae.coeff": 0.005},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run as it was asked for."""

    variant: str
    base: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """As on the command line."""
        parts = [f"BASE={self.base}"] if self.base else []
        return " ".join([self.variant, *parts, *(f"{key}={value}" for key, value in self.settings.items())])


def resolve(request: Request, reader: CacheReader, layer: int) -> RunConfig:
    """Fill in everything that a request leaves open: the variant's defaults, then the rules of each source.

    Raises:
        TrainError: unknown variant, base or key (naming the valid ones), or values that no run can have.
    """
    variant = _lookup("VARIANT", request.variant, VARIANTS)
    base = request.base or variant.base
    architecture = _lookup("BASE", base, ARCHITECTURES)
    penalties = {name: PENALTIES[name] for name in variant.penalties}
    sections = sections_of(request.variant, request.base)
    own = settings.sort_into(sections, _own(variant, base, sections))
    asked = settings.sort_into(sections, request.settings)
    values = {section: own[section] | asked[section] for section in sections}
    sae = {"d_sae": 8 * reader.meta.d_model} | values["sae"] | {"d_model": reader.meta.d_model}
    feed = FeedConfig(**values["feed"])
    steps = values["training"].get("steps", TrainingConfig.steps)
    rules = {
        "lr": schedule.default_lr(base, sae["d_sae"]),
        "dead_after": max(1, min(10_000_000, steps * feed.batch // 10)),
    }
    training = rules | values["training"]
    for name in ("warmup", "sparsity_warmup"):  # a run of hundreds of steps cannot warm up for a thousand
        if name not in asked["training"]:
            training[name] = min(training.get(name, getattr(TrainingConfig, name)), steps // 10)
    terms = {
        name: kind.config(**kind.config.fitted(values[name], steps) | asked[name]) for name, kind in penalties.items()
    }
    sae["group_biases"] = max((term.group_biases for term in terms.values()), default=0)
    run = RunConfig(
        variant=request.variant,
        architecture=base,
        sae=architecture.config(**sae),
        penalties=terms,
        training=TrainingConfig(**training),
        feed=feed,
        cache=reader.meta.fingerprint,
        sequences=reader.n_sequences,
        layer=layer,
    )
    _check_needs(run, reader)
    return run


def _check_needs(run: RunConfig, reader: CacheReader) -> None:
    """Refuse held-out rows, and what would train without its term: what the feed or the cache cannot serve."""
    if run.feed.split != "train":
        raise TrainError(
            f"split must be train, got {run.feed.split!r}: held-out rows are never trained on, for every score is of"
            " them; leave split out"
        )
    if run.feed.window > reader.meta.context:
        raise TrainError(f"window must be at most the cache's context, {reader.meta.context}, got {run.feed.window}")
    for name, penalty in run.penalties.items():
        if run.feed.window < penalty.least_window:
            raise TrainError(
                f"{name} needs windows of at least {penalty.least_window} positions, got window={run.feed.window}:"
                " set window=8, say"
            )
        if penalty.needs_domains and len(reader.meta.domains) < 2:
            raise TrainError(
                f"{name} tells domains apart, and {reader.folder.name} has {len(reader.meta.domains)}: harvest sources"
                " with a domain each, or say SET=ortho_groups.by=clusters"
            )


def sections_of(name: str, base: str = "") -> dict[str, type[Any]]:
    """Where a variant's settings lie: section → config.

    Raises:
        TrainError: unknown variant or base.
    """
    variant = _lookup("VARIANT", name, VARIANTS)
    architecture = _lookup("BASE", base or variant.base, ARCHITECTURES)
    own = {penalty: PENALTIES[penalty].config for penalty in variant.penalties}
    return {"sae": architecture.config, "training": TrainingConfig, "feed": FeedConfig} | own


def widen(runs: list[RunConfig]) -> list[RunConfig]:
    """Give runs that will share a feed one batch pattern: the widest window that any of them asks for."""
    widest = max(run.feed.window for run in runs)
    return [replace(run, feed=replace(run.feed, window=widest)) for run in runs]


def _own(variant: Variant, base: str, sections: settings.Sections) -> dict[str, Any]:
    """The variant's defaults; those of its own base's fields are dropped where another base was asked for."""
    if base == variant.base:
        return dict(variant.settings)
    own = {"form", "beta1", "lr", "sparsity_warmup", "b_dec", "prefixes", "weights"}
    return {key: value for key, value in variant.settings.items() if key not in own and settings.has(sections, key)}


def _lookup(what: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise TrainError(f"unknown {what} {name!r}: choose from {', '.join(table)}")
    return table[name]
