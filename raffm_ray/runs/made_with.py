"""What a run was made with: command, versions, and hardware, at every start. Nothing that names the machine, its user or its folders."""

import json
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from shlex import join
from typing import Any

import torch

from raffm_ray.basics.errors import UserError, in_short, without_secrets
from raffm_ray.basics.files import read_whole, write_atomically
from raffm_ray.basics.machine import processor, usable_cores
from raffm_ray.basics.version import version_text
from raffm_ray.runs.checkpoint import versions

MADE_WITH = "made_with.json"
PROGRAMS = ("raffm-ray", "raffm_ray/__main__.py", "raffm_ray/cli/__main__.py")
"""Ends of the paths by which the command is started."""
FOLDERS = re.compile(r"(?<![^\s\"'=\[{,:(])~?/(?:[^/\s\"',\]})]+/)+")
"""The folders of an absolute path inside of a word."""


def command_line(words: Sequence[str]) -> str:
    """The command as it is typed, with `...` for the folders of absolute paths and without secrets; empty where another program, such as a
    notebook, started this process. `words`: as in `sys.argv`."""
    if not words or not words[0].endswith(PROGRAMS):
        return ""
    rest = [f".../{Path(word).name}" if word.startswith(("/", "~/")) else FOLDERS.sub(".../", word) for word in words[1:]]
    return without_secrets(join(["raffm-ray", *rest]))


@cache
def _version() -> str:
    """With the commit: git is asked once in a process, whose code stays as it was loaded."""
    return version_text()


def _gpus(device: str) -> list[str]:
    """Names of the GPUs of this process; none where clients are trained on the CPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def record_start(folder: Path, done: int, device: str) -> None:
    """Adds a start to `made_with.json`. `done`: rounds of the run, or trials of the study, that were done before; `device`: where clients
    are trained. Raises UserError as `read_starts`, and where the file cannot be written."""
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "done": done,
        "command": command_line(sys.argv),
        "version": _version(),
        "python": platform.python_version(),
        "libraries": {name: number for name, number in versions().items() if name != "raffm_ray"},
        "processor": processor(),
        "cores": usable_cores(),
        "gpus": _gpus(device),
    }
    content = {"starts": [*read_starts(folder), start]}
    try:
        write_atomically(folder / MADE_WITH, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder / MADE_WITH}: cannot be written: {error.strerror}") from None


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """All starts, in order; none where an earlier version made the run. Raises UserError where the file is damaged."""
    path = folder / MADE_WITH
    if not path.is_file():
        return []
    try:
        starts = json.loads(read_whole(path))["starts"]
        return [{**start, "libraries": dict(start["libraries"])} for start in starts]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not what a run was made with: {in_short(error)}") from None
