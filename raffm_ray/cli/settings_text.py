"""Settings as lines of text: for `raffm-ray settings`, and for the help of commands that take them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from inspect import getdoc
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.settings.description import TABLE, Setting, groups, table_at
from raffm_ray.settings.experiment import Experiment
from raffm_ray.studies.study_settings import Study

WIDEST = 100
NAMES_IN_TABLES = "The names in a table, such as STRATEGIES: raffm-ray settings strategy.name"


def _width() -> int:
    """Of a line: the terminal's, 80 columns where there is none."""
    return min(shutil.get_terminal_size((80, 24)).columns, WIDEST)


def top_keys(command: str) -> set[str]:
    """The keys at the top of the settings that a command takes."""
    return set((Study if command == "study" else Experiment).model_fields)


def _lines(setting: Setting, values: Any = None, tables: bool = False, entry: bool = False) -> Iterator[str]:
    """One setting. `values`: nested settings whose own value is shown; `tables`: whether names of tables are listed, which takes imports;
    `entry`: whether it is of the entries of a list, which have no flags of their own."""
    here = ""
    if values is not None and "<" not in setting.path:
        *sections, name = setting.path.split(".")
        for key in sections:
            values = values[key] or {}  # a group that may be left out, and is
        short = isinstance(values, str)  # a group that is written as its name, where all else has its default
        values = (values if name == "name" else setting.default.strip("`")) if short else values.get(name)
        here = f"; here: {'none' if values is None else values if isinstance(values, str) else json.dumps(values)}"
    kind = setting.type.replace("`", "").replace("≥", ">=").replace("≤", "<=")  # whatever a terminal's letters are
    flag = setting.path.rpartition(".")[2] if entry else f"--{setting.path}"
    told = f"{flag}  {kind}; default: {setting.default.strip('`')}{here}"
    yield from wrap(told, _width(), initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
    meaning = setting.meaning
    for name in TABLE.findall(meaning) if tables else ():
        if (table := table_at(name)) is not None:
            meaning += f". Names: {', '.join(table)}"
    yield from wrap(meaning, _width(), initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def _grouped(model: type[BaseModel], values: Any = None, only: Sequence[str] | None = None, tables: bool = False) -> str:
    """All settings of a model, or `only` some, group by group."""
    found = list(groups(model))
    lists = {f"{one.path}.<name>" for *_, own in found for one in own if one.type.startswith("list of groups")}
    parts = []
    for path, group, own in found:
        shown = [setting for setting in own if only is None or setting.path in only]
        if shown:
            entry, meaning = path in lists, " ".join((getdoc(group) or "").split())
            name = f"entries of the list `{path.removesuffix('.<name>')}`" if entry else path
            title = f"{name}: {meaning}" if path else "At the top:"
            lines = (line for one in shown for line in _lines(one, values, tables, entry))
            parts.append("\n".join([*wrap(title, _width()), "", *lines]))
    return "\n\n".join(parts)


def settings_text(prefix: str) -> str:
    """The settings of an experiment at or below a dotted name, or of that last name in any group; all for an empty one.

    Raises UserError where there are none.
    """
    paths = {setting.path for _, _, own in groups(Experiment) for setting in own}
    name = prefix.removeprefix("--").rstrip(".")
    found = [path for path in paths if not name or path == name or path.startswith(f"{name}.")]
    found = found or [path for path in paths if path.rpartition(".")[2] == name]
    if not found:
        known = {*paths, *(path for path, *_ in groups(Experiment) if path), *(path.rpartition(".")[2] for path in paths)}
        raise UserError(f"settings: {prefix!r} is no setting and no group of settings{near_miss(name, known)}")
    return _grouped(Experiment, only=found, tables=bool(name))


def settings_help(command: str, kind: str, first: str, flags: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """The settings that a command takes, with their values where it is told of which file. `kind`: of `parser.SETTINGS_OF`; `first`: its
    file or folder, empty where it has none. Raises UserError for a file that cannot be read."""
    if kind == "study":
        return f"Keys of a study, as --key value:\n\n{_grouped(Study)}"
    if kind == "checkpoint":
        return "Settings of a checkpoint's data: --task.*, --salience.* and --extraction.*;\nraffm-ray settings task says what they are."
    if kind == "run":
        from raffm_ray.runs.resuming import FREE

        return f"Settings that may be others, as --key.path value:\n\n{_grouped(Experiment, only=FREE)}"
    values, of = None, ""
    if kind == "extraction":
        from raffm_ray.benchmarks.extraction import DEFAULTS
        from raffm_ray.settings.loading import override, parse

        values, of = parse(override(DEFAULTS, flags)).model_dump(mode="json"), f" of {command}"
    elif first:
        from raffm_ray.settings.loading import load

        values, of = load(Path(first), flags, plugins).model_dump(mode="json"), f" of {first}"
    title = f"Settings{of}, as --key.path value or --key.path=value.\n{NAMES_IN_TABLES}"
    return f"{title}\n\n{_grouped(Experiment, values)}"
