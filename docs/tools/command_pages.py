"""The reference of the commands as Markdown: what `raffm-ray --help` and each command's own help say."""

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from raffm_ray.cli.main import main

WITH_HELP = ("deploy", "bench", "study")
"""Commands whose `--help` needs no configuration."""


def help_of(*words: str) -> str:
    """What a command prints when it is asked for help. Raises RuntimeError where it has none."""
    with redirect_stdout(StringIO()) as printed:
        code = main([*words, "--help"])
    if code or not printed.getvalue().strip():
        raise RuntimeError(f"raffm-ray {' '.join(words)} --help: exit code {code}, printed {printed.getvalue()!r}")
    return printed.getvalue().strip("\n")


def usages(text: str) -> Iterator[tuple[str, str, str]]:
    """(command, how it is called, what it does) of every entry of `raffm-ray --help`, in its order."""
    for block in re.split(r"\n(?=  raffm-ray )", text)[1:]:
        first, *more = block.split("\n\n")[0].splitlines()
        called, _, does = first.strip().partition("   ") if "   " in first.strip() else first.strip().partition("  ")
        yield called.split()[1], called, " ".join(" ".join([does, *more]).split())


def command_page(name: str, text: str) -> str:
    """A command's lines of `raffm-ray --help`, and its own help where it has one."""
    parts = []
    for command, called, does in usages(text):
        if command == name and not called.endswith("--help"):
            parts.append(f"```text\n{called}\n```\n\n{does[:1].upper()}{does[1:]}.\n")
    if name in WITH_HELP:
        parts.append(f"`raffm-ray {name} --help`:\n\n```text\n{help_of(name)}\n```\n")
    return "\n".join(parts)


def write_pages(folder: Path) -> dict[Path, str]:
    """File -> content: one for each command."""
    text = help_of()
    names = dict.fromkeys(command for command, *_ in usages(text) if not command.startswith("-"))
    return {folder / f"{name}.md": command_page(name, text) for name in names}
