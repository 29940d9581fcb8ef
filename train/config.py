"""What one run is: a frozen, fully resolved description, and its exact JSON form."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from train.architectures import ARCHITECTURES
from train.errors import TrainError
from train.feed.config import FeedConfig
from train.kernels.products import PRODUCTS
from train.penalties import PENALTIES, PenaltyConfig
from train.sae import SAEConfig
from train.schedule import TOP_K_FAMILIES

YOUNGER: Final[dict[str, Any]] = {"group_biases": 0, "biases": False, "graph": "off", "products": "auto"}
"""Settings that the first runs did not have, with what they did. Where a run does the same it is written without them,
so that its name stays the same and old runs can be read."""
B_DEC: Final = ("geometric_median", "zero")
_WORDS: Final = {"b_dec": B_DEC, "graph": ("off", "auto"), "products": PRODUCTS}
_LEAST: Final = {
    "steps": 1,
    "dead_after": 1,
    "dead_every": 1,
    "warmup": 0,
    "clip": 0,
    "sparsity_warmup": 0,
    "resample_every": 0,
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an SAE is trained; everything here changes the result."""

    steps: int = 4882
    """Optimiser steps; 4882 × 2048 rows are 10M."""
    lr: float = 3e-4
    warmup: int = 1000
    """Steps of linear learning-rate warm-up."""
    decay: float = 0.2
    """Share of the steps, at the end, over which the rate falls to 0."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 is no clipping."""
    sparsity_warmup: int = 0
    """Steps over which sparsity coefficients grow from 0."""
    b_dec: str = "geometric_median"
    """Initial decoder bias: of the first batch, or `zero`."""
    dead_after: int = 1_000_000
    """Rows without firing after which a latent counts as dead (10M in most trainers: beyond a short run's length)."""
    dead_every: int = 100
    """Steps between two looks at which latents are dead; between them nothing waits for the device."""
    resample_every: int = 0
    """Steps between two re-initialisations of dead latents (Bricken et al. 2023), a multiple of `dead_every`; 0 is
    never."""
    graph: str = "off"
    """`auto`: on a GPU, steps that are the same kernels on the same shapes are recorded once and replayed."""
    products: str = "auto"
    """Precision of matrix products on a GPU: `float32`, `tf32` (which `auto` is), or `bfloat16` in the kernels of
    sparse codes. Compiled kernels on a CPU are exact whatever it says."""

    def __post_init__(self) -> None:
        """Check each value.

        Raises:
            TrainError: naming the setting, what it must be and what came.
        """
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise TrainError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "decay"):
            if not 0 <= getattr(self, name) <= 1 or (getattr(self, name) == 1 and name != "decay"):
                raise TrainError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.resample_every % self.dead_every:
            raise TrainError(
                f"resample_every must be a multiple of dead_every={self.dead_every}, got {self.resample_every}: only"
                " then is it known which latents are dead"
            )
        for name, valid in _WORDS.items():
            if getattr(self, name) not in valid:
                raise TrainError(f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One SAE's training, resolved: equal configurations give equal bits."""

    variant: str
    architecture: str
    sae: SAEConfig
    penalties: Mapping[str, PenaltyConfig] = field(default_factory=dict)
    training: TrainingConfig
    feed: FeedConfig
    cache: str
    """Fingerprint of the cache."""
    sequences: int
    """Sequences in it: an extended cache has another order of rows."""
    layer: int

    def __post_init__(self) -> None:
        """Check what concerns more than one part: group biases that penalties ask for, products of sparse codes.

        Raises:
            TrainError: naming the setting.
        """
        wanted = max((one.group_biases for one in self.penalties.values()), default=0)
        if self.sae.group_biases != wanted:
            raise TrainError(
                f"group_biases must be {wanted}, what the penalties ask for, got {self.sae.group_biases}: leave it out"
            )
        if self.training.products == "bfloat16" and self.architecture not in TOP_K_FAMILIES:
            raise TrainError(
                f"products=bfloat16 needs sparse codes ({', '.join(TOP_K_FAMILIES)}), those of {self.architecture} are"
                " dense: leave it out"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` is its exact inverse."""
        return _without_younger(asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "RunConfig":
        """Read a description back.

        Raises:
            TrainError: a key too many or too few, or a value that no run can have.
        """
        known = {one.name for one in fields(cls)}
        if set(content) != known:
            raise TrainError(f"a run's config has the keys {sorted(known)}, got {sorted(content)}")
        kinds = {"architecture": ARCHITECTURES} | {f"penalty {name}": PENALTIES for name in content["penalties"]}
        for what, table in kinds.items():
            name = content["architecture"] if what == "architecture" else what.removeprefix("penalty ")
            if name not in table:
                raise TrainError(f"unknown {what} {name!r}: choose from {', '.join(table)}")
        return cls(
            **{name: content[name] for name in ("variant", "architecture", "cache", "sequences", "layer")},
            sae=_build(ARCHITECTURES[content["architecture"]].config, content["sae"]),
            penalties={name: _build(PENALTIES[name].config, one) for name, one in content["penalties"].items()},
            training=_build(TrainingConfig, content["training"]),
            feed=_build(FeedConfig, content["feed"]),
        )

    @property
    def fingerprint(self) -> str:
        """8 hex digits that change with every value."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Of the run's folder: readable, and different for different runs."""
        k = f"-k{k}" if (k := getattr(self.sae, "k", 0)) else ""
        base = "" if self.architecture == self.variant else f"-{self.architecture}"
        return f"{self.variant}{base}-L{self.layer}-F{self.sae.d_sae}{k}-s{self.sae.seed}-{self.fingerprint}"


def _without_younger(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out younger settings that change nothing, at any depth."""
    return {
        key: _without_younger(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in YOUNGER or value != YOUNGER[key]
    }


def _build(kind: type[Any], content: Mapping[str, Any]) -> Any:
    """A frozen config from its JSON form (lists become tuples again)."""
    known = {one.name for one in fields(kind)}
    content = {key: value for key, value in YOUNGER.items() if key in known} | dict(content)
    if set(content) != known:
        raise TrainError(f"{kind.__name__} has the keys {sorted(known)}, got {sorted(content)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:  # a text where a number is compared
        raise TrainError(f"{kind.__name__} has a value of the wrong type: {error}") from None
