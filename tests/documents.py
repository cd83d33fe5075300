"""Fenced blocks of documentation pages: which there are, running them as a reader would, and checking commands that are not run."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.registry import TABLES
from raffm_ray.cli.main import main
from raffm_ray.cli.parser import SETTINGS_OF, command_of, parsed
from raffm_ray.settings.loading import load, pairs_of
from raffm_ray.studies.study_settings import load_study

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+?) -->\n+)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CALL = re.compile(r"(?<![\w/.-])raffm-ray ([a-z][^`\n|]*)")
"""A call of the command line, in a text or in a block."""


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
    if words[0] not in ("run", "compare") or "--help" in words:
        return False
    config, *settings = parsed(words).args
    return load(Path(config), settings).pool.backend == "ray"


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
    if "raffm-ray" in words:
        check_call(words[words.index("raffm-ray") + 1 :])


def calls_in(text: str) -> list[list[str]]:
    """The calls of `raffm-ray` that a page or a file shows, as words; what only names a command is none."""
    found = [shlex.split(call, comments=True) for call in CALL.findall(re.sub(r"\\\n\s*#?\s*", "", text))]
    return [words for words in found if words != command_of(words).split()]


def check_call(words: list[str]) -> None:
    """Raises UserError for a call that is none, and for settings that the file in `experiments` does not take."""
    if {"-h", "--help", "--version"} & set(words):
        command_of(words) if words[0] != "--version" else None
        return
    call, kind = parsed(words), SETTINGS_OF.get(command_of(words))
    if call.args and str(call.args[0]).startswith("experiments/"):
        path, *settings = call.args
        if kind == "experiment":
            load(ROOT / path, settings)
        elif kind == "study":
            load_study(ROOT / path, settings)
    elif kind in ("experiment", "checkpoint", "run"):
        settings = [str(word) for word in call.args[1:]]
        try:
            load(ROOT / "experiments" / "digits.yaml", settings)
        except UserError as error:  # with another file, other values may go together
            if not set(pairs_of(settings)) or "unknown key" in str(error):
                raise


def run_page(page: str) -> None:
    """Runs a page's blocks in the current folder; raises at the first that fails."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    try:
        _run_blocks(page, variables)
    finally:
        forget_rows("__main__")


def forget_rows(module: str) -> None:
    """Takes what a module added to the tables out of them."""
    for table in TABLES.values():
        table.forget({module})


def _run_blocks(page: str, variables: dict[str, Any]) -> None:
    for block in blocks_of(page):
        if block.not_run:
            for command in block.commands:
                check_command(command)
        elif block.language == "python" and (named := re.match(r"# ([\w.-]+\.py)\n", block.text)):
            Path(named[1]).write_text(block.text)
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
