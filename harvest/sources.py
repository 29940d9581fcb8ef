"""The text that a command line names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harvest.errors import HarvestError
from harvest.hub import MINIATURE
from harvest.text import TextSource

OPTIONS: Final = {
    "split": "DATASET_SPLIT",
    "revision": "DATASET_REVISION",
    "column": "TEXT_COLUMN",
    "separator": "SEPARATOR",
}
"""Fields of `TextSource` that hold for all sources of a harvest, and what the command line calls them."""
_HUB: Final = ("split", "revision", "column")
_LOCAL: Final = ("column", "separator")


def parse_sources(text: str, options: Mapping[str, str] | None = None) -> tuple[TextSource, ...]:
    """Read `NAME[:CONFIG][=DOMAIN][*WEIGHT]`, several divided by commas: `forget.jsonl=forget*1,retain.jsonl=retain*3`.

    A file or folder whose path has such signs in it is taken for what it is. CONFIG is for a hub id alone.

    Args:
        text: what the user wrote.
        options: fields of `TextSource` that hold for all sources which have a use for them, see `OPTIONS`.

    Raises:
        HarvestError: a part that has not this form, or an option that no source of these has a use for.
    """
    parts, sources = text.split(","), []
    while parts:
        taken = next((n for n in range(len(parts), 1, -1) if _path_of(",".join(parts[:n]))), 1)
        sources.append(_parse_source(",".join(parts[:taken])))
        parts = parts[taken:]
    return tuple(_with_options(sources, options or {}))


def _path_of(part: str) -> tuple[str, str, str] | None:
    """Path, domain and weight of a part that names a file or folder which exists; the longest such path."""
    part = part.strip()
    untagged = re.sub(r"=[^=*]+$", "", part)
    unweighted, weight = re.fullmatch(r"(.*?)(?:\*(\d+(?:\.\d+)?))?", part, re.DOTALL).groups()  # type: ignore[union-attr]
    bare = re.sub(r"=[^=*]+$", "", unweighted)
    for path, tag, share in (
        (part, "", ""),
        (untagged, part[len(untagged) + 1 :], ""),
        (unweighted, "", weight),
        (bare, unweighted[len(bare) + 1 :], weight),
    ):
        if path and Path(path).expanduser().exists():
            return path, tag, share or ""
    return None


def _parse_source(part: str) -> TextSource:
    if found := _path_of(part):
        path, domain, weight = found
        return TextSource(text=path, domain=domain, weight=float(weight or 1))
    match = re.fullmatch(r"\s*([^=*]+?)(?:=([^=*]+?))?(?:\*(\d+(?:\.\d+)?))?\s*", part)
    if match is None or not match[1].strip():
        raise HarvestError(f"text source {part!r} has not the form NAME[:CONFIG][=DOMAIN][*WEIGHT]")
    name, config = match[1], None
    if hub := re.fullmatch(r"([\w.-]+/[\w.-]+):(\S+)", name):
        name, config = hub[1], hub[2]
    return TextSource(text=name, config=config, domain=match[2] or "", weight=float(match[3] or 1))


def _with_options(sources: Sequence[TextSource], options: Mapping[str, str]) -> Iterator[TextSource]:
    """Each source with those of the options that it has a use for."""
    used: set[str] = set()
    for source in sources:
        here = source.text == MINIATURE or Path(str(source.text)).expanduser().exists()
        own = () if source.text == MINIATURE else _LOCAL if here else _HUB
        given: dict[str, Any] = {name: value for name, value in options.items() if name in own}
        used |= given.keys()
        yield replace(source, **given)
    if unused := sorted(options.keys() - used):
        names = ", ".join(source.name for source in sources)
        raise HarvestError(f"{OPTIONS[unused[0]]} {options[unused[0]]!r} means nothing for {names}: leave it out")
