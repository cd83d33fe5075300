"""The reference of the commands as Markdown: how each is called, and what its own help says."""

import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from raffm_ray.cli.main import main
from raffm_ray.cli.parser import TREE

SETTINGS = "\nSettings"
"""How the part of a help begins that the reference of the settings has too."""


def help_of(*words: str) -> str:
    """What a command prints when it is asked for help, without its settings. Raises RuntimeError where it has none."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "80"
    try:
        with redirect_stdout(StringIO()) as printed:
            code = main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    if code or not printed.getvalue().strip():
        raise RuntimeError(f"raffm-ray {' '.join(words)} --help: exit code {code}, printed {printed.getvalue()!r}")
    text = printed.getvalue().split(SETTINGS)[0].split("\nKeys of a study")[0]
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def commands() -> Iterator[str]:
    """The names of all commands, those below others after them."""
    for name in TREE:
        if not name.startswith("-"):
            yield name
            yield from (f"{name} {inner}" for inner in TREE[name] if not inner.startswith("-"))


def command_page(name: str) -> str:
    """The help of a command and of those below it."""
    own = [command for command in commands() if command.split()[0] == name]
    return "\n".join(f"```text\n{help_of(*command.split())}\n```\n" for command in own)


def write_pages(folder: Path) -> dict[Path, str]:
    """File -> content: one for each command."""
    return {folder / f"{name}.md": command_page(name) for name in commands() if " " not in name}
