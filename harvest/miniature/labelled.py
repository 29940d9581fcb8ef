"""What the generator hands out: a text and the latent factors that produced it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """One document. `latents` are true by construction: they were drawn first, the text was written from them."""

    text: str
    domain: str  # which part of the generator wrote it: topic, bio, review, fact, question, spelling, list or prose
    latents: Mapping[str, str]  # factor -> value, for example {"profession": "nurse", "gender": "female"}
