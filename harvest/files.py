"""Documents of local files: text, JSON lines, parquet, compressed ones, and folders of them."""

import gzip
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from harvest.corpora import check_field, field_text
from harvest.errors import HarvestError
from harvest.zstd import open_zstd

SUFFIXES: Final = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
MAX_DOCUMENT_BYTES: Final = 2**28
"""A .txt file above this is refused without a separator: it is a collection and not one document."""
SLOW_BYTES: Final = 10**10
"""Above this, reading the text once to identify it takes a time that a person should know of."""


class Files:
    """Local files; a folder is read in the order of its sorted paths.

    `.txt`: one document a file, or documents between `separator`. `.jsonl`: one JSON object a line. Both also as `.gz`
    and `.zst`. `.parquet`: one document a row. Text is UTF-8. Where all files are `.jsonl`, or `.txt` without a
    separator, every document is found directly (a line by its byte offset, 8 bytes of memory each).
    """

    shuffled = False

    def __init__(self, root: Path, column: str, separator: str | None) -> None:
        """List and index the files, and read all of them once to know which text this is.

        Raises:
            HarvestError: no file that can be read, a missing column, a `.txt` too large to be one document.
        """
        self.column = column
        self.separator = separator
        self.files = list_files(root)
        self.revision = files_revision(root, self.files)
        kinds = {_kind(file) for file in self.files}
        self.indexed = kinds <= {".txt", ".txt.gz", ".txt.zst", ".jsonl"} and not (separator and kinds != {".jsonl"})
        self.starts = {file: line_starts(file) for file in self.files if self.indexed and _kind(file) == ".jsonl"}
        self.sizes = [self._units_of(file) for file in self.files]
        self.ends = np.cumsum(self.sizes)
        self.units = int(self.ends[-1])

    def _units_of(self, file: Path) -> int:
        if _kind(file).startswith(".jsonl"):
            _check_first_line(file, self.column)
        if file in self.starts:
            return len(self.starts[file])
        if _kind(file) == ".parquet":
            return _row_groups(file, self.column)
        if _kind(file) == ".txt" and not self.separator and file.stat().st_size > MAX_DOCUMENT_BYTES:
            raise HarvestError(
                f"{file} has {file.stat().st_size} bytes and would be one document: "
                "name the separator of its documents, or give .jsonl"
            )
        return 1

    def read(self, unit: int, offset: int) -> Iterator[str | None]:
        """One document where `indexed`, else the documents of a file or row group."""
        number = int(np.searchsorted(self.ends, unit, side="right"))
        file, part = self.files[number], unit - int(self.ends[number] - self.sizes[number])
        kind = _kind(file)
        if kind == ".parquet":
            return islice(_read_row_group(file, part, self.column), offset, None)
        if kind.startswith(".jsonl"):
            start = int(self.starts[file][part]) if file in self.starts else 0
            lines = islice(_read_lines(file, start, self.column), 1 if file in self.starts else None)
            return islice(lines, offset, None)
        return islice(_read_text(file, self.separator), offset, None)


def list_files(root: Path) -> list[Path]:
    """The readable files below a folder, sorted, hidden ones left out; or the one file.

    Raises:
        HarvestError: none.
    """
    if root.is_file():
        found = [root]
    else:
        found = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = [file for file in found if _kind(file)]
    if not files:
        raise HarvestError(f"{root} holds no text: wanted {', '.join(SUFFIXES)} files")
    return files


def files_revision(root: Path, files: Sequence[Path]) -> str:
    """Identity of local text: blake2b over each file's name, size and content; 40 hex digits.

    All of the content is read, about 1 GB a second of one core: a cache that is extended from a text in which one
    letter was changed would be wrong. Times of change are no part of it, so that copies are the same text.
    """
    sizes = [file.stat().st_size for file in files]
    if sum(sizes) > SLOW_BYTES:
        sys.stderr.write(f"reading {sum(sizes) / 1e9:,.1f} GB of text once, to know by its content which text it is\n")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        contents = list(pool.map(_content_digest, files))
    total = hashlib.blake2b(digest_size=20)
    for file, size, content in zip(files, sizes, contents, strict=True):
        name = file.name if file == root else file.relative_to(root).as_posix()
        total.update(f"{name} {size} {content}\n".encode())
    return total.hexdigest()


def line_starts(file: Path) -> NDArray[np.int64]:
    """Byte offset of every line."""
    found = [np.zeros(1, dtype=np.int64)]
    position = 0
    with file.open("rb") as opened:
        while block := opened.read(2**24):
            found.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + position + 1)
            position += len(block)
    starts = np.concatenate(found)
    return starts[starts < position]  # no line begins at the end of the file


def _kind(file: Path) -> str:
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), "")


def _content_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _open(file: Path) -> io.BufferedIOBase:
    if file.name.lower().endswith(".zst"):
        return open_zstd(file)
    return gzip.GzipFile(file) if file.name.lower().endswith(".gz") else file.open("rb")


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _read_lines(file: Path, start: int, column: str) -> Iterator[str | None]:
    with _open(file) as opened:
        if start:
            opened.seek(start)
        for line in opened:
            try:
                yield field_text(json.loads(line), column) if line.strip() else ""
            except ValueError:  # not JSON, or bytes that are no UTF-8
                yield None


def _check_first_line(file: Path, column: str) -> None:
    """A wrong column is a mistake in the request; a later line without it is junk, and counted."""
    with _open(file) as opened:
        first = next((line for line in opened if line.strip()), b"{}")
    try:
        record = json.loads(first)
    except ValueError:
        return
    if isinstance(record, dict) and record:
        check_field(record, column, str(file))


def _read_text(file: Path, separator: str | None) -> Iterator[str | None]:
    with _open(file) as opened:
        if not separator:
            yield _decoded(opened.read())
            return
        mark, rest = separator.encode(), b""
        while block := opened.read(2**20):
            *complete, rest = (rest + block).split(mark)
            yield from map(_decoded, complete)
        if rest:
            yield _decoded(rest)


def _row_groups(file: Path, column: str) -> int:
    from pyarrow import parquet  # type: ignore[import-untyped]

    opened = parquet.ParquetFile(file)
    check_field(opened.schema_arrow.names, column, str(file))
    return int(opened.num_row_groups)


def _read_row_group(file: Path, group: int, column: str) -> Iterator[str | None]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(row_groups=[group], columns=[column], batch_size=1024):
        for row in batch.to_pylist():
            yield field_text(row, column)
