"""Documents of local files: text, JSON lines, parquet, gzip, and folders of them."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from harvest.corpora import check_field, field_text
from harvest.errors import HarvestError

SUFFIXES: Final = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
MAX_DOCUMENT_BYTES: Final = 2**28
"""A .txt file above this is refused without a separator: it is a collection and not one document."""
FINGERPRINT_BYTES: Final = 2**20


class Files:
    """Local files; a folder is read in the order of its sorted paths.

    `.txt` and `.txt.gz`: one document a file, or documents between `separator`. `.jsonl` and `.jsonl.gz`: one JSON
    object a line. `.parquet`: one document a row. Text is UTF-8. Where all files are `.jsonl`, or `.txt` without
    separator, every document is found directly (a line by its byte offset, 8 bytes of memory each).
    """

    shuffled = False

    def __init__(self, root: Path, column: str, separator: str | None) -> None:
        """List and index the files; nothing else is read.

        Raises:
            HarvestError: no file that can be read, a missing column, a `.txt` too large to be one document.
        """
        self.column = column
        self.separator = separator
        self.files = list_files(root)
        self.revision = files_revision(root, self.files)
        kinds = {_kind(file) for file in self.files}
        self.indexed = kinds <= {".txt", ".txt.gz", ".jsonl"} and not (separator and kinds != {".jsonl"})
        self.starts = {file: line_starts(file) for file in self.files if self.indexed and _kind(file) == ".jsonl"}
        self.sizes = [self._units_of(file) for file in self.files]
        self.ends = np.cumsum(self.sizes)
        self.units = int(self.ends[-1])

    def _units_of(self, file: Path) -> int:
        if _kind(file) in {".jsonl", ".jsonl.gz"}:
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
        if kind in {".jsonl", ".jsonl.gz"}:
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
    """Identity of local text: sha256 over each file's name, size, first and last MiB; first 40 hex digits."""
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.name if file == root else file.relative_to(root).as_posix()
        total.update(f"{name} {size}\n".encode())
        with file.open("rb") as opened:
            total.update(opened.read(FINGERPRINT_BYTES))
            opened.seek(max(0, size - FINGERPRINT_BYTES))
            total.update(opened.read(FINGERPRINT_BYTES))
    return total.hexdigest()[:40]


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


def _open(file: Path) -> Any:
    return gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb")


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _read_lines(file: Path, start: int, column: str) -> Iterator[str | None]:
    with _open(file) as opened:
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
