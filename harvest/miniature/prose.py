"""English prose that every Python installation carries: the documentation inside its standard library.

Two sources, read as files and never imported: the reference topics of `help()` (pydoc_data) and the docstrings of
its modules. Both differ between Python releases, so nothing depends on the exact text: tests check only what
holds on all of them, and the training log names the release whose text the shipped model saw.
"""

import ast
import re
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIN_CHARS = 100  # shorter paragraphs are mostly signatures and headings
MAX_CHARS = 700  # longer ones are cut at a sentence, so that one paragraph does not fill several rows
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}


@cache
def paragraphs() -> tuple[str, ...]:
    """All prose paragraphs, whitespace collapsed, without duplicates, in a fixed order of sources."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = (piece for text in _sources(stdlib) for piece in _split(text))
    return tuple(dict.fromkeys(found))


def is_held_out(paragraph: str) -> bool:
    """Every tenth paragraph, chosen by a hash of its text, never enters the training text."""
    return zlib.crc32(paragraph.encode()) % 10 == 0


@cache
def training_paragraphs() -> tuple[str, ...]:
    """The paragraphs that training may see."""
    return tuple(paragraph for paragraph in paragraphs() if not is_held_out(paragraph))


@cache
def held_out_paragraphs() -> tuple[str, ...]:
    """The paragraphs kept for evaluation."""
    return tuple(paragraph for paragraph in paragraphs() if is_held_out(paragraph))


def _sources(stdlib: Path) -> Iterator[str]:
    yield from _strings(stdlib / "pydoc_data" / "topics.py")
    for path in sorted([*stdlib.glob("*.py"), *stdlib.glob("*/*.py")]):
        if path.parent.name not in _SKIPPED and not path.name.startswith("_sysconfigdata"):
            yield from _docstrings(path)


def _strings(path: Path) -> Iterator[str]:
    """The string constants of a file: the values of the topics dictionary."""
    if not path.exists():
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _split(text: str) -> Iterator[str]:
    """Paragraphs of running English: enough letters, few symbols, starting with a capital."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"\s+", " ", block.replace("**", "").replace('"', "").replace("*", "")).strip()
        if len(paragraph) > MAX_CHARS:
            paragraph = paragraph[:MAX_CHARS].rsplit(". ", 1)[0] + "."
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        is_prose = paragraph.isascii() and letters > 0.9 * len(paragraph) and paragraph[:1].isupper()
        if is_prose and len(paragraph) >= MIN_CHARS:
            yield paragraph
