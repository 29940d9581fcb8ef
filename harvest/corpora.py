"""Where documents are read from: the hub, a list or an iterator of strings, the miniature's generator; files.py: files.

A corpus is a row of units that can be read from any point on: a document of a seekable source, a row group of a
parquet file, a whole compressed file, a file of a hub data set. `None` in place of a text: bytes that are no text.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol, runtime_checkable

from harvest.errors import HarvestError, first_line
from harvest.hub import content_revision, resolve_dataset

MINIATURE_DOCUMENTS: Final = 2**40  # the generator does not end


@runtime_checkable
class Corpus(Protocol):
    """Documents in a fixed order, readable from any unit on."""

    revision: str
    """40-hex commit or content hash."""
    units: int
    indexed: bool
    """Every unit is one document that can be read alone: the whole corpus can be permuted."""
    shuffled: bool
    """The order is random already."""

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """The documents of one unit from its `offset`-th on."""
        ...


class Strings:
    """A sequence of strings in memory, or anything with a length and an index, such as a column of a data set."""

    indexed = True
    shuffled = False

    def __init__(self, texts: Sequence[str]) -> None:
        """Hash a list's content; other sequences are known by their length only."""
        self.texts = texts
        self.units = len(texts)
        total = hashlib.sha256(str(self.units).encode())
        for text in texts if isinstance(texts, list | tuple) else ():
            total.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
        self.revision = total.hexdigest()[:40]

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """One text."""
        return islice(iter((self.texts[unit],)), offset, None)


class Stream:
    """An iterable of strings, or a function that returns one; read once from its start, so resuming skips."""

    indexed = False
    shuffled = False
    units = 1
    revision = "0" * 40  # what an iterator will give cannot be known: the caller vouches for it

    def __init__(self, texts: Iterable[str] | Callable[[], Iterable[str]]) -> None:
        """Keep the source; nothing is read yet."""
        self.texts = texts
        self.spent = False

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """All texts after the first `offset`.

        Raises:
            HarvestError: an iterator that was read before.
        """
        texts = self.texts() if callable(self.texts) else self.texts
        if isinstance(texts, Iterator) and not callable(self.texts):
            if self.spent:
                raise HarvestError("this iterator of texts was read before: give a list, or a function that makes one")
            self.spent = True
        return islice(iter(texts), offset, None)


class Miniature:
    """The generator of `harvest.miniature`: document i of a seed, without an end."""

    indexed = True
    shuffled = True
    units = MINIATURE_DOCUMENTS

    def __init__(self, seed: int) -> None:
        """Identify the generator by what it writes, because its prose comes from the running Python."""
        self.seed = seed
        sample = "\x00".join(self._text(unit) for unit in range(256))
        self.revision = content_revision(sample.encode())

    def _text(self, unit: int) -> str:
        from harvest.miniature import document

        return document(self.seed, unit).text

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """One document."""
        return islice(iter((self._text(unit),)), offset, None)


class HubDataset:
    """A data set of the hub, streamed; a unit is one of its files."""

    indexed = False
    shuffled = False

    def __init__(self, name: str, revision: str | None, config: str | None, split: str, column: str) -> None:
        """Resolve the commit and open the stream.

        Raises:
            HarvestError: not reachable, or no such configuration, split or column.
        """
        self.name = name
        self.column = column
        self.revision = resolve_dataset(name, revision)
        from datasets import load_dataset

        try:
            self.rows = load_dataset(name, config, split=split, streaming=True, revision=self.revision)
        except (OSError, ValueError, RuntimeError) as error:
            raise HarvestError(f"cannot read data set {name}, split {split!r}: {first_line(error)}") from error
        self.units = int(self.rows.num_shards)
        for row in self._rows(0, 0):
            check_field(row, column, f"data set {name}")
            break

    def _rows(self, unit: int, offset: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self.rows.shard(num_shards=self.units, index=unit).skip(offset)
        except (OSError, RuntimeError) as error:
            raise HarvestError(f"reading data set {self.name} failed ({first_line(error)}): run it again") from error

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """The rows of one file; the skipped ones are read and dropped by `datasets`.

        Raises:
            HarvestError: the hub fails midway.
        """
        for row in self._rows(unit, offset):
            yield field_text(row, self.column)


def field_text(row: Any, column: str) -> str | None:
    """The text of one record: empty for null, None for a record without it or a value that is no string."""
    value = row.get(column) if isinstance(row, dict) else None
    if value is None and isinstance(row, dict) and column in row:
        return ""
    return value if isinstance(value, str) else None


def check_field(fields: Iterable[str], column: str, where: str) -> None:
    """Refuse a source without the column.

    Raises:
        HarvestError: names the columns that exist.
    """
    fields = list(fields)
    if column not in fields:
        raise HarvestError(f"{where} has no field {column!r}: choose from {', '.join(map(str, fields)) or 'none'}")
