"""What a metadata field may hold, and how it is refused: nothing from a stranger's file is trusted."""

import sys
from typing import Any, Final, NoReturn

from cache.errors import CacheError

MAX_TEXT: Final = 4096


def is_int(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_text(name: str, value: Any) -> None:
    """Refuse what is no short, printable text.

    Raises:
        CacheError: naming the field.
    """
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        refuse(name, f"a text of at most {MAX_TEXT} printable characters", value)


def short(value: Any) -> str:
    """A value as part of a one-line message, however large or deep it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # lists in lists in lists; a number of 5000 digits
        text = f"a monstrous {type(value).__name__}"
    return text if len(text) <= 120 else text[:117] + "..."


def refuse(name: str, wanted: str, came: Any) -> NoReturn:
    """Say what was wanted and what came.

    Raises:
        CacheError: always.
    """
    raise CacheError(f"{name} must be {wanted}, got {short(came)}")
