"""Words of the command line that are not settings."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from raffm_ray.basics.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How the URL of a folder begins; one letter before the colon would be a drive."""


def is_url(text: str) -> bool:
    """Whether a folder is named by a URL."""
    return URL.match(text) is not None


def whole(expected: str = "", least: int = 1) -> Callable[[Any, Sequence[Any]], int]:
    """Reads the value of a flag, as a converter of cyclopts; it raises UserError, with what is `expected` in words, for anything but a
    whole number from `least` on."""
    expected = expected or f"a whole number from {least}"

    def read(_: Any, tokens: Sequence[Any]) -> int:
        text = str(tokens[0].value)
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise UserError(f"{tokens[0].keyword}: expected {expected}, got {text!r}")
        return int(text)

    return read
