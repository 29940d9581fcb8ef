"""How large an experiment is: the same plan for a laptop's miniature and for Gemma-2-2B on a GPU."""

from dataclasses import dataclass
from typing import Final

WRITTEN_FOR: Final = 4882
"""Steps that the sweep files' own step counts are meant for: 10M tokens at 2048 a step."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of every run of an experiment."""

    d_sae: int
    k: int
    """Of the architectures that have it."""
    batch: int
    steps: int
    """The last one is a multiple of 20, so that penalties that run every 4, 5 or 10 steps are in the last log line."""
    sequences: int
    """Held-out sequences that the analyses read."""
    grid_seeds: int = 3
    """Of the window × coefficient grid, at most; fewer than 3 leave it without a spread."""
    meta_steps: int = 1500
    """Of the Meta-SAE that measures composition."""


SCALES: Final = {
    "miniature": Scale(d_sae=1024, k=16, batch=1024, steps=501, sequences=128, meta_steps=300),
    # Absorption needs L0 25 to 70 and 16k latents or more (reference/variants.md §0.3); 10M tokens, as the logs had.
    "gemma": Scale(d_sae=18432, k=64, batch=2048, steps=4881, sequences=512),
    # The logs' own sizes, to compare with their baselines.
    "logs": Scale(d_sae=18432, k=320, batch=2048, steps=4881, sequences=512),
}
PLANTED: Final = {
    # d_sae near each planted source's own number of truths, k its L0 (reference/variants.md §8). One below it leaves no
    # room for the quietest features: at k 5 the slow ones of `temporal` (L0 5.6) stay at F1 0.37, whatever the penalty.
    "hierarchy": Scale(d_sae=160, k=6, batch=512, steps=1501, sequences=200),
    "domains": Scale(d_sae=128, k=4, batch=512, steps=1501, sequences=200),
    "temporal": Scale(d_sae=240, k=6, batch=512, steps=1501, sequences=200),
}
PLANTED_LR: Final = 3e-3
"""Small dictionaries on clean data learn ten times as fast; as in the planted tests."""


def default_scale(d_model: int) -> str:
    """`miniature` for models of laptop size, else `gemma`."""
    return "miniature" if d_model <= 256 else "gemma"
