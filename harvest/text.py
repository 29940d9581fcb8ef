"""Documents from one or several sources, mixed, shuffled, cleaned and split, in an order that can be resumed.

Whether a document is held out depends on its content alone, so two copies of it never land on both sides.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from harvest.corpora import Corpus, HubDataset, Miniature, Stream, Strings
from harvest.errors import HarvestError, first_line
from harvest.files import SUFFIXES, Files
from harvest.hub import MINIATURE
from harvest.shuffle import BLOCK_CHARACTERS, BLOCK_DOCUMENTS, Position, ShuffledCorpus

MAX_SOURCES: Final = 255  # a domain is one byte in the cache
Texts = Sequence[str] | Iterable[str] | Callable[[], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """One source of text in a harvest."""

    text: str | Texts
    """`miniature`, a file or folder, a hub id; or from Python a list of strings, an iterator, a function making one."""
    weight: float = 1.0
    """Share of the characters, relative to the other sources, as long as this one lasts."""
    domain: str = ""
    """Tag of every row from here, such as `forget`; all sources of a harvest have one, or none has."""
    revision: str | None = None
    """Hub only: branch, tag or commit."""
    config: str | None = None
    """Hub only: the data set's configuration (subset)."""
    split: str = "train"
    """Hub only: the data set's own split."""
    column: str = "text"
    """The field that holds the text, where there are fields."""
    separator: str | None = None
    """`.txt` only: what stands between documents; without it a file is one document."""

    @property
    def name(self) -> str:
        """What the cache records: a hub id, the last part of a path, `miniature` or `memory`."""
        if not isinstance(self.text, str):
            return "memory"
        path = Path(self.text).expanduser()
        return path.resolve().name if path.exists() else self.text


class Counts(NamedTuple):
    """What became of the documents read so far."""

    documents: int = 0
    """Kept."""
    held_out: int = 0
    """Of these, held out."""
    empty: int = 0
    """Skipped: nothing but white space."""
    binary: int = 0
    """Skipped: not UTF-8, NUL bytes, lone surrogates, not JSON, no string."""


class Cursor(NamedTuple):
    """A place in the mixture: reading from here gives the same documents as an uninterrupted reading."""

    positions: tuple[Position, ...]
    characters: tuple[int, ...]
    """Taken from each source so far; decides whose turn it is."""
    counts: Counts

    @classmethod
    def from_json(cls, value: Any) -> "Cursor":
        """The inverse of what `json` makes of this tuple."""
        positions, characters, counts = value
        return cls(tuple(Position(*position) for position in positions), tuple(characters), Counts(*counts))


class Document(NamedTuple):
    """One text and where it stands."""

    text: str
    held_out: bool
    source: int
    """Index of its source."""
    cursor: Cursor
    """Reading from here starts with this document."""


def is_held_out(text: str, seed: int, fraction: float) -> bool:
    """Whether a document is kept for evaluation: blake2b of seed and exact content, as a fraction of 2^64."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little") < fraction * 2**64


def open_corpus(source: TextSource, seed: int) -> Corpus:
    """Open one source; an iterator is not read yet.

    Raises:
        HarvestError: nothing there, not readable, or without the named column.
    """
    text = source.text
    if not isinstance(text, str):
        seekable = hasattr(text, "__len__") and hasattr(text, "__getitem__")
        return Strings(cast("Sequence[str]", text)) if seekable else Stream(text)
    if text == MINIATURE:
        return Miniature(seed)
    path = Path(text).expanduser()
    if path.exists():
        return Files(path, source.column, source.separator)
    if text.startswith(("/", ".", "~")) or text.endswith(SUFFIXES) or text.count("/") > 1:
        raise HarvestError(f"no file or folder {text!r}: give a path, a hub data set (owner/name) or `{MINIATURE}`")
    return HubDataset(text, source.revision, source.config, source.split, source.column)


class Documents:
    """The documents of a harvest: a pure function of the sources, the seed and the held-out fraction."""

    def __init__(
        self,
        sources: Sequence[TextSource],
        *,
        seed: int = 42,
        held_out_fraction: float = 0.05,
        block_documents: int = BLOCK_DOCUMENTS,
        block_characters: int = BLOCK_CHARACTERS,
    ) -> None:
        """Open the sources and fix their order.

        Raises:
            HarvestError: a source that cannot be opened, or an argument out of range.
        """
        _check(sources, seed, held_out_fraction)
        self.sources = tuple(sources)
        self.seed = seed
        self.held_out_fraction = held_out_fraction
        self.blocks = (block_documents, block_characters)
        self.domains = tuple(dict.fromkeys(source.domain for source in sources if source.domain))
        self._corpora = []
        for source in sources:
            with _reading(source):
                self._corpora.append(ShuffledCorpus(open_corpus(source, seed), seed, block_documents, block_characters))

    def domain(self, source: int) -> int:
        """The domain byte of a source: its tag's place in `domains`, 0 where there are no tags."""
        return self.domains.index(self.sources[source].domain) if self.domains else 0

    def provenance(self) -> list[dict[str, Any]]:
        """One record a source, with the fields of `cache.schema.Source`."""
        return [
            {
                "dataset": source.name if source.config is None else f"{source.name}/{source.config}",
                "revision": shuffled.corpus.revision,
                "split": source.split,
                "weight": float(source.weight),
                "domain": source.domain,
            }
            for source, shuffled in zip(self.sources, self._corpora, strict=True)
        ]

    def read(self, cursor: Cursor | None = None) -> "DocumentReader":
        """Read from the start, or on from a cursor."""
        n = len(self.sources)
        start = cursor or Cursor((Position(),) * n, (0,) * n, Counts())
        streams = [corpus.read(position) for corpus, position in zip(self._corpora, start.positions, strict=True)]
        return DocumentReader(self, streams, start)


class DocumentReader:
    """One reading. Whose turn it is follows from the characters taken so far: the source furthest below its share."""

    def __init__(
        self, documents: Documents, streams: Sequence[Iterator[tuple[Position, str | None]]], start: Cursor
    ) -> None:
        """Continue the streams, which are already at their positions."""
        self._documents = documents
        self._streams = streams
        self._live = set(range(len(streams)))
        self.cursor = start

    def __iter__(self) -> Iterator[Document]:
        """The documents; afterwards, and between two of them, `cursor` is where the next one starts."""
        seed, fraction = self._documents.seed, self._documents.held_out_fraction
        while (source := self._turn()) is not None:
            with _reading(self._documents.sources[source]):
                found = next(self._streams[source], None)
            if found is None:
                self._live.discard(source)
                continue
            position, text = found
            fault = _fault(text)
            held_out = not fault and is_held_out(text or "", seed, fraction)
            here = self.cursor
            self.cursor = self._after(source, position.next(), 0 if fault else len(text or ""), fault, held_out)
            if not fault:
                yield Document(text or "", held_out, source, here)

    def _turn(self) -> int | None:
        taken, sources = self.cursor.characters, self._documents.sources
        return min(self._live, key=lambda i: (taken[i] / sources[i].weight, i), default=None)

    def _after(self, source: int, place: Position, characters: int, fault: str, held_out: bool) -> Cursor:
        positions, taken, counts = list(self.cursor.positions), list(self.cursor.characters), self.cursor.counts
        positions[source] = place
        taken[source] += characters
        if fault:
            counts = counts._replace(**{fault: getattr(counts, fault) + 1})
        else:
            counts = counts._replace(documents=counts.documents + 1, held_out=counts.held_out + held_out)
        return Cursor(tuple(positions), tuple(taken), counts)


def _fault(text: str | None) -> str:
    """Why a document is skipped, by the name of its count; empty for a good one."""
    if text is None or "\x00" in text:
        return "binary"
    if not text.strip():
        return "empty"
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: no tokenizer takes them
        return "binary"
    return ""


@contextmanager
def _reading(source: TextSource) -> Iterator[None]:
    """A damaged file becomes one line."""
    try:
        yield
    except HarvestError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise HarvestError(f"cannot read text source {source.name}: {first_line(error)}") from error


def _check(sources: Sequence[TextSource], seed: int, fraction: float) -> None:
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise HarvestError(f"wanted 1 to {MAX_SOURCES} text sources, got {len(sources)}")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise HarvestError(f"the weight of text source {source.name} must be above 0, got {source.weight}")
    if len({bool(source.domain) for source in sources}) > 1:
        untagged = next(source.name for source in sources if not source.domain)
        raise HarvestError(f"text source {untagged} has no domain, others have: tag all of them or none")
    if not 0 <= seed < 2**63:
        raise HarvestError(f"the seed must be from 0 to 2^63 - 1, got {seed}")
    if not 0 <= fraction < 1:
        raise HarvestError(f"the held-out fraction must be at least 0 and below 1, got {fraction}")
