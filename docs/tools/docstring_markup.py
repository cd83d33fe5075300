"""Turns a docstring, written as plain text with backticks, into reStructuredText that means the same.

Docstrings are written to be read in an editor: names and code stand in single backticks, and `*`, `|` and `_` are themselves. Sphinx
reads reStructuredText, where these are markup.
"""

import re
from collections.abc import Iterator, Sequence

SPAN = re.compile(r"`+[^`]+`+")
"""Code in backticks."""
NAME = re.compile(r"[A-Za-z_][\w.]*")
"""What may be the name of something in the reference: Sphinx makes it a link where it is."""


def _plain(text: str) -> str:
    """Text in which nothing is markup but `*emphasis*`."""
    text = re.sub(r"([\\|])", r"\\\1", text)
    text = re.sub(r"(?<![\w*])(\*\w[\w -]*\*)(?![\w*])|(\*)", lambda found: found[1] or "\\*", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\_", text)


def _code(span: str) -> str:
    inner = span.strip("`")
    return f"`{inner}`" if NAME.fullmatch(inner) else f"``{inner}``"


def line_markup(line: str) -> str:
    """One line. Code is set apart from letters that touch it, as reStructuredText asks."""
    parts, at = list[str](), 0
    for found in SPAN.finditer(line):
        before, after = line[at : found.start()], line[found.end() : found.end() + 1]
        parts.append(_plain(before))
        left = line[found.start() - 1 : found.start()]
        parts.append("\\ " if left and not left.isspace() and left not in "'\"([{<-/:" else "")
        parts.append(_code(found.group()))
        parts.append("\\ " if after and (after.isalnum() or after in "_(`") else "")
        at = found.end()
    return "".join([*parts, _plain(line[at:])])


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def markup(lines: Sequence[str]) -> Iterator[str]:
    """All lines of a docstring. An indented block after a line that ends in a colon and an empty line is code."""
    code_from: int | None = None
    for number, line in enumerate(lines):
        if code_from is not None and line.strip() and _indentation(line) < code_from:
            code_from = None
        if code_from is not None or not line.strip():
            yield line
            continue
        following = lines[number + 2] if number + 2 < len(lines) and not lines[number + 1].strip() else ""
        if line.rstrip().endswith(":") and following.strip() and _indentation(following) > _indentation(line):
            code_from = _indentation(following)
            yield line_markup(line.rstrip()) + ":"
        else:
            yield line_markup(line)
