"""Fenced blocks of documentation pages: which there are, running them as a reader would, and checking commands that are not run."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffm_ray.basics.flags import take_flag
from raffm_ray.cli.commands import COMMANDS
from raffm_ray.cli.main import main
from raffm_ray.settings.loading import load

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+?) -->\n+)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LOADS_EXPERIMENT = ("run", "submit", "compare", "shares")
NO_SETTINGS = ("--equal", "--tune", "--out", "--address", "--pip", "--seeds", "--cluster")
"""Flags of commands that are no settings."""


@dataclass(frozen=True)
class Block:
    """A fenced block. `line`: of the page; `not_run`: why it is not run, if it is not."""

    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def commands(self) -> list[str]:
        """Of bash, without comments; a backslash at a line's end joins it to the next."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(page: str) -> list[Block]:
    """A page's fenced blocks in their order."""
    return [
        Block(line=page[: match.start()].count("\n") + 1, language=match[2], text=match[3], not_run=match[1])
        for match in BLOCK.finditer(page)
    ]


def _starts_ray(words: list[str]) -> bool:
    """Whether a command of `raffm-ray` has a pool of Ray's workers."""
    if words[0] not in ("run", "compare"):
        return False
    flags = words[2:]
    for name in NO_SETTINGS:
        take_flag(flags, name)
    return load(Path(words[1]), flags).pool.backend == "ray"


def run_command(command: str) -> None:
    """Runs a line of bash; raises where it does not end with exit code 0. `raffm-ray` is called in this process, unless it starts Ray."""
    words = shlex.split(command, comments=True)
    if words[0] != "raffm-ray":
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=60)
    elif _starts_ray(words[1:]):
        subprocess.run([sys.executable, "-m", "raffm_ray.cli", *words[1:]], check=True, timeout=300)
    else:
        code = main(words[1:])
        assert code == 0, f"{command}: exit code {code}"


def check_command(command: str) -> None:
    """Raises where a command could not be run: commands, settings, files or make targets that there are not."""
    words = shlex.split(command, comments=True)
    for word in words:
        if re.match(r"(cluster|experiments|notebooks)/", word):
            assert (ROOT / word).exists(), f"{command}: {word} does not exist"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{command}: the Makefile has {targets}"
    if "raffm-ray" not in words:
        return
    rest = words[words.index("raffm-ray") + 1 :]
    name = rest.pop(0)
    assert name in COMMANDS, f"{command}: raffm-ray has {sorted(COMMANDS)}"
    if name == "fleet" and rest.pop(0) == "show":
        name = "run"
    if name in LOADS_EXPERIMENT and rest[0].startswith("experiments/"):
        for flag in NO_SETTINGS:
            take_flag(rest, flag)
        load(ROOT / rest[0], rest[1:])


def run_page(page: str) -> None:
    """Runs a page's blocks in the current folder; raises at the first that fails."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.not_run:
            for command in block.commands:
                check_command(command)
        elif block.language == "python":
            exec(compile("\n" * block.line + block.text, "page", "exec"), variables)
        elif block.language == "bash":
            for command in block.commands:
                run_command(command)
        elif block.language == "yaml":
            named = re.match(r"# ([\w.-]+\.yaml)\n", block.text)
            assert named, f"line {block.line}: the first line of a yaml block names its file"
            Path(named[1]).write_text(block.text)
        else:
            assert block.language == "text", f"line {block.line}: a block of {block.language or 'no language'} would not be run"
