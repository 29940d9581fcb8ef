"""Penalties: what can be added to an architecture's loss. One file each: `ortho_active` is `OrthoActive` of
`ortho_active.py`, with the settings that its attribute `config` is annotated with; the other files are what they share.
"""

import typing
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from train.penalties.penalty import Penalty as Penalty
from train.penalties.penalty import PenaltyConfig as PenaltyConfig


@dataclass(frozen=True)
class PenaltyKind:
    """A row of the table."""

    config: type[PenaltyConfig]
    penalty: type[Penalty]


def _kind(name: str) -> PenaltyKind | None:
    """The penalty that a file is named after, if it is."""
    for one in vars(import_module(f"{__name__}.{name}")).values():
        if isinstance(one, type) and issubclass(one, Penalty) and one.__name__.lower() == name.replace("_", ""):
            config = typing.get_type_hints(one).get("config", PenaltyConfig)
            return PenaltyKind(config, one) if one is not Penalty else None
    return None


PENALTIES: dict[str, PenaltyKind] = {
    name: kind for name in sorted(one.name for one in iter_modules(__path__)) if (kind := _kind(name))
}
