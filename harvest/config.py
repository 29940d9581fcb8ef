"""What a harvest is asked for: one frozen description, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harvest.errors import HarvestError
from harvest.hub import MINIATURE
from harvest.sources import parse_sources
from harvest.text import TextSource

DEFAULT_MODEL: Final = "google/gemma-2-2b"
DEFAULT_DATASET: Final = "monology/pile-uncopyrighted"
DEFAULT_TOKENS: Final = 10_000_000  # 4882 steps of 2048 tokens, the run length of the experiments
MINIATURE_TOKENS: Final = 1_000_000  # a minute on a laptop


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """One harvest; `model` and `sources` decide what is read, `cache` where it goes."""

    model: str = DEFAULT_MODEL
    revision: str | None = None
    layers: tuple[int, ...]
    sources: tuple[TextSource, ...]
    tokens: int
    """At least this many; rounded up to whole sequences."""
    context: int = 128
    packing: str = "pack"
    cache: Path
    batch: int = 32
    """Sequences a forward pass."""
    dtype: str = "bfloat16"
    attention: str | None = None
    device: str = "cpu"
    seed: int = 42
    held_out_fraction: float = 0.05
    shard_sequences: int = 512
    random_weights: bool = False
    """Seeded random weights and random tokens, for speed measurements; the cache is marked."""

    def __post_init__(self) -> None:
        """Refuse what no harvest can be.

        Raises:
            HarvestError: naming the setting, what it must be and what came.
        """
        if not self.layers:
            raise HarvestError("LAYER must name at least one layer, such as 12 or 5,12,19")
        for name, low in (("tokens", 1), ("context", 2), ("batch", 1), ("shard_sequences", 1)):
            value = getattr(self, name)
            if value < low:
                raise HarvestError(f"{name.upper()} must be at least {low}, got {value}")
        if self.packing not in ("pack", "truncate"):
            raise HarvestError(f"PACKING must be pack or truncate, got {self.packing!r}")

    @property
    def sequences(self) -> int:
        """N that holds the tokens asked for."""
        return -(-self.tokens // self.context)


def default_sources(
    model: str, dataset: str | None, options: Mapping[str, str] | None = None
) -> tuple[TextSource, ...]:
    """The text that is meant when none is named: the miniature's own for the miniature, else the Pile.

    Raises:
        HarvestError: as `parse_sources`.
    """
    return parse_sources(dataset or (MINIATURE if model == MINIATURE else DEFAULT_DATASET), options)


def default_tokens(model: str) -> int:
    """The length that is meant when none is given."""
    return MINIATURE_TOKENS if model == MINIATURE else DEFAULT_TOKENS


def default_cache(model: str, sources: tuple[TextSource, ...], context: int) -> Path:
    """One folder for one model, text and context, so that another LAYER= or more TOKENS= find it again."""
    texts = [(source.name, source.config, source.split if source.split != "train" else None) for source in sources]
    names = [model, *(part for text in texts for part in text if part)]
    parts = [
        "".join(c if c.isalnum() or c in "-." else "-" for c in name.rstrip("/").rsplit("/", 1)[-1]) for name in names
    ]
    return Path("caches") / "_".join([*dict.fromkeys(parts), str(context)])


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `12` or `5,12,19`.

    Raises:
        HarvestError: not block numbers.
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise HarvestError(f"LAYER must be a block number or several, such as 12 or 5,12,19, got {text!r}") from None


def parse_tokens(text: str) -> int:
    """Read `10000000`, `10_000_000`, `10M`, `1.5B` or `500k`.

    Raises:
        HarvestError: no such number.
    """
    scale = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    try:
        return round(float(text.replace("_", "")[: None if scale == 1 else -1]) * scale)
    except ValueError:
        raise HarvestError(f"TOKENS must be a number such as 2000000, 10M or 1.5B, got {text!r}") from None
