"""Plug-ins as settings: what is written is a path or a module, and what a run keeps is that with its digest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.basics.plugins import (
    Plugin,
    check_digest,
    installed,
    is_file_name,
    is_imported,
    label_of,
    pinned_plugins,
    read_plugin,
    use,
)
from raffm_ray.settings.base import Settings


class PluginSettings(Settings):
    """Python code that adds rows to tables; written as its name alone where the digest is not known yet."""

    name: str = Field(min_length=1, description="path of a Python file, or name of a module that can be imported")
    sha256: str | None = Field(default=None, description="digest of its source; a run's config.yaml says it")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _short(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(self) if self.sha256 else self.name


Entry = dict[str, Any]
"""A plug-in in nested settings: its `name`, and its `sha256` where that is known."""


def _entries(given: Any) -> list[Entry]:
    if not isinstance(given, list | tuple):
        raise UserError(f'plugins: expected a list, such as ["my_method.py"], got {shortened(given)}')
    found = []
    for one in given:
        entry = {"name": one} if isinstance(one, str) else dict(one) if isinstance(one, Mapping) else {}
        if not isinstance(entry.get("name"), str) or not entry["name"] or not isinstance(entry.get("sha256", ""), str | None):
            raise UserError(f"plugins: expected paths of Python files and names of modules, got {shortened(one)}")
        found.append(entry)
    return found


def with_plugins(values: Mapping[str, Any], more: Sequence[str] = (), installed_too: bool = True) -> dict[str, Any]:
    """Nested settings whose plug-ins, and `more`, are imported, with their digests. `installed_too`: whether those of installed packages
    join them. Raises UserError for one that is not there, is not what its digest says, or cannot be imported."""
    entries = [*_entries(values.get("plugins", [])), *({"name": _here(name)} for name in more)]
    names = {entry["name"] for entry in entries}
    entries += [{"name": name} for name in (installed() if installed_too else ()) if name not in names]
    plugins = pinned_plugins((entry["name"], entry.get("sha256")) for entry in entries)
    use(plugins)
    if not plugins and "plugins" not in values:
        return dict(values)
    return {**values, "plugins": [{"name": one.name, "sha256": one.digest} for one in plugins]}


def _here(name: str) -> str:
    """A name that was given on the command line: paths are relative to the working directory."""
    return str(Path(name).expanduser().resolve()) if is_file_name(name) else name


def plugins_of(plugins: Sequence[PluginSettings]) -> list[Plugin]:
    """An experiment's plug-ins, which the tables have the rows of from now on. Raises UserError as `with_plugins`."""
    found = pinned_plugins((one.name, one.sha256) for one in plugins)
    use(found)
    return found


def pinned_settings(plugins: Sequence[PluginSettings]) -> tuple[PluginSettings, ...]:
    """The same with their digests, imported as by `plugins_of`."""
    return tuple(PluginSettings(name=one.name, sha256=one.digest) for one in plugins_of(plugins))


def wherever(values: Any) -> Any:
    """Nested settings in which plug-ins have no folders: two of a run that differ in these alone are the same."""
    if not isinstance(values, Mapping) or not isinstance(values.get("plugins"), list):
        return values
    return {**values, "plugins": [{**one, "name": label_of(one["name"])} for one in _entries(values["plugins"])]}


def found_again(values: Mapping[str, Any], folder: Path, given: Sequence[str] = ()) -> dict[str, Any]:
    """The nested settings of a run's or a study's folder, with the plug-ins where they are here: where they were, or as `given`.

    The folder may be somebody else's: nothing in it is ever imported. Raises UserError for a plug-in that is not there, is not what it
    was, or is in the folder.
    """
    entries, here = _entries(values.get("plugins", [])), {}
    for name in given:
        plugin = read_plugin(_here(name))
        here[plugin.label] = plugin
        if plugin.label not in (known := [label_of(entry["name"]) for entry in entries]):
            there = f"it was made with {', '.join(known)}" if known else "it was made with none"
            raise UserError(f"--plugin {name}: {folder} was not made with it: {there}")
    found = []
    for entry in entries:
        name, label = entry["name"], label_of(entry["name"])
        place = here[label].name if label in here else name
        if not entry.get("sha256"):
            raise UserError(f"{folder}: says no digest of the plug-in {label}, so nothing is imported")
        if is_file_name(place) and Path(place).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder}: the plug-in {label} is inside: nothing in a run's folder is imported; copy it elsewhere")
        if not is_file_name(place) or Path(place).is_file():
            check_digest(read_plugin(place), entry["sha256"])
        elif not is_imported(place, entry["sha256"]):
            raise UserError(
                f"{folder}: was made with the plug-in {label}, which was {place} and is not there: --plugin {label} says where it is now"
            )
        found.append({"name": place, "sha256": entry["sha256"]})
    return {**values, "plugins": found} if found else dict(values)
