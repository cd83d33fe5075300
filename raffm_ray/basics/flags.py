"""Flags of a command that are not settings."""

import re

from raffm_ray.basics.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How the URL of a folder begins; one letter before the colon would be a drive."""


def is_url(text: str) -> bool:
    """Whether a folder is named by a URL."""
    return URL.match(text) is not None


def take_flag(words: list[str], name: str) -> str | None:
    """Removes `name VALUE` or `name=VALUE` from the words; returns the value. Raises UserError where it has none."""
    for position, word in enumerate(words):
        if word == name:
            if position + 1 == len(words):
                raise UserError(f"{name}: expected a value after it")
            value = words[position + 1]
            del words[position : position + 2]
        elif word.startswith(f"{name}="):
            value = words.pop(position).split("=", 1)[1]
        else:
            continue
        if not value or value.startswith("--"):
            raise UserError(f"{name}: expected a value after it, got {value!r}")
        return value
    return None
