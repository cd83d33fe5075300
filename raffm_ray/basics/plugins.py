"""Plug-ins: Python files and modules whose code adds rows to tables, as sources with a digest, the same in every process.

A plug-in is read before it is imported, so that what is imported is what the digest is of. Workers import the sources that they are sent.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.registry import TABLES

GROUP = "raffm_ray"
"""The entry points of installed packages that are plug-ins of every experiment."""
LARGEST_BYTES = 20 * 2**20
"""Of a plug-in's sources: more is a library, which is installed where it is needed."""

Sources = tuple[tuple[str, str, bytes], ...]
"""(module, place, text) of modules; the place of a package ends in `__init__.py`."""


@dataclass(frozen=True)
class Plugin:
    """`name`: the path of a file or the name of a module, as settings say it; `module`: what is imported; `sources`: of it,
    and of all other modules of the package that it is in."""

    name: str
    module: str
    sources: Sources

    @property
    def digest(self) -> str:
        """SHA-256 of all sources: of a file's content, where it is one file."""
        return _digest(self.sources)

    @property
    def label(self) -> str:
        """What it is called where its folder does not matter: `my_method.py`."""
        return label_of(self.name)

    @property
    def modules(self) -> set[str]:
        """All of its modules."""
        return {name for name, *_ in self.sources}


_READ: dict[tuple[str, str], Plugin] = {}
"""By name and digest: what this process has imported, or tried to."""


def _digest(sources: Sources) -> str:
    if len(sources) == 1:
        return sha256(sources[0][2]).hexdigest()
    return sha256("\n".join(f"{one} {sha256(text).hexdigest()}" for one, _, text in sources).encode()).hexdigest()


def is_file_name(name: str) -> bool:
    """Whether a plug-in is named by a file, and not as a module."""
    return name.endswith(".py") or "/" in name


def label_of(name: str) -> str:
    """A file's name without its folders, a module's as it is."""
    return Path(name).name if is_file_name(name) else name


def read_plugin(name: str) -> Plugin:
    """The plug-in of a file, by its path, or of a module that can be imported here. Raises UserError where there is none."""
    if is_file_name(name):
        try:
            text = Path(name).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"plugins: {name}: cannot be read: {getattr(error, 'strerror', None) or in_short(error)}") from None
        module = f"raffm_ray_plugin_{re.sub(r'[^0-9a-zA-Z]', '_', Path(name).stem)}_{sha256(text).hexdigest()[:12]}"
        return Plugin(name, module, ((module, name, text),))
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"plugins: {name!r}: expected the path of a Python file, or the name of a module such as my_package.rules"
        )
    found = _sources(name.partition(".")[0])
    if name not in {one for one, *_ in found}:
        raise UserError(
            f"plugins: {name}: no module of that name is installed here; a file is named by its path, such as {name}.py"
        )
    return Plugin(name, name, found)


def _sources(top: str) -> Sources:
    """(module, place, text) of a module at the top, or of all modules of a package; nothing of it is imported."""
    if top in _IMPORTER.sources:
        return tuple((one, *rest) for one, rest in _IMPORTER.sources.items() if one.partition(".")[0] == top)
    try:
        spec = find_spec(top)
    except ValueError:  # of modules that were made by hand
        spec = None
    if spec is None:
        return ()
    if not spec.submodule_search_locations:
        place = spec.origin or ""
        return ((top, place, Path(place).read_bytes()),) if place.endswith(".py") else ()
    found, total = [], 0
    for folder in map(Path, spec.submodule_search_locations):
        for file in sorted(folder.rglob("*.py")):
            parts = [top, *file.relative_to(folder).with_suffix("").parts]
            found.append((".".join(parts).removesuffix(".__init__"), str(file), file.read_bytes()))
            total += len(found[-1][2])
            if total > LARGEST_BYTES:
                raise UserError(f"plugins: {top}: more than {LARGEST_BYTES // 2**20} MB of Python: {folder} is a library")
    return tuple(found)


class _Importer(MetaPathFinder, InspectLoader):
    """Imports the sources of plug-ins, wherever a file or package of that name may be."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[str, bytes]] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The loader's interface."""
        if fullname not in self.sources:
            return None
        place = self.sources[fullname][0]
        return spec_from_loader(fullname, self, origin=place, is_package=self.is_package(fullname))

    def is_package(self, fullname: str) -> bool:
        """The loader's interface."""
        return Path(self.sources[fullname][0]).name == "__init__.py"

    def get_source(self, fullname: str) -> str:
        """The loader's interface; also what tracebacks show."""
        return self.sources[fullname][1].decode()

    def get_code(self, fullname: str) -> Any:
        """The loader's interface."""
        place, text = self.sources[fullname]
        return compile(text, place, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """The loader's interface."""
        module.__file__ = self.sources[module.__name__][0]
        super().exec_module(module)


_IMPORTER = _Importer()


@lru_cache(maxsize=1)
def installed() -> tuple[str, ...]:
    """The modules of installed packages that are plug-ins of every experiment."""
    return tuple(sorted({one.module for one in entry_points(group=GROUP)}))


def check_digest(plugin: Plugin, digest: str) -> None:
    """Raises UserError for a plug-in that has another digest."""
    if plugin.digest != digest:
        raise UserError(
            f"plugins: {plugin.name}: is not what it was when the run began (its SHA-256 was {digest[:12]}..., and is "
            f"{plugin.digest[:12]}...); the run can only go on with that"
        )


def is_imported(name: str, digest: str) -> bool:
    """Whether this process has a plug-in already, such as a worker that was sent it."""
    return (name, digest) in _READ


def pinned_plugins(given: Iterable[tuple[str, str | None]]) -> list[Plugin]:
    """The plug-ins of these names. What is imported already is not read again where its digest is said. Raises UserError for one that is
    not there, is there twice, or has another digest."""
    found: dict[str, Plugin] = {}
    for name, digest in given:
        plugin = _READ.get((name, digest or "")) or read_plugin(name)
        if digest:
            check_digest(plugin, digest)
        if plugin.label in found and found[plugin.label] != plugin:
            raise UserError(f"plugins: {name} and {found[plugin.label].name}: two of one name: rename one")
        found[plugin.label] = plugin
    return list(found.values())


def use(plugins: Sequence[Plugin]) -> None:
    """Imports plug-ins, and lets the tables have the rows of these alone: whatever else was run in this process before.

    Raises UserError, which names the line, for one that cannot be imported.
    """
    wanted = {module for plugin in plugins for module in plugin.modules}
    others = {module for plugin in _READ.values() for module in plugin.modules} - wanted
    for table in TABLES.values():
        table.withdraw(others)
    if _IMPORTER not in sys.meta_path:
        sys.meta_path.insert(0, _IMPORTER)
    for plugin in plugins:
        for table in TABLES.values():
            table.put_back(plugin.modules)
        if _READ.get((plugin.name, plugin.digest)) != plugin or plugin.module not in sys.modules:
            _import(plugin)


def _import(plugin: Plugin) -> None:
    top = plugin.module.partition(".")[0]
    if is_file_name(plugin.name) or (top not in sys.modules and _digest(_sources(top)) != plugin.digest):
        _IMPORTER.sources |= {name: (place, text) for name, place, text in plugin.sources}
    _READ[plugin.name, plugin.digest] = plugin
    before = set(sys.modules)
    try:
        import_module(plugin.module)
    except Exception as error:
        for table in TABLES.values():
            table.forget(plugin.modules)
        for name in plugin.modules & (set(sys.modules) - before):
            del sys.modules[name]
        places = {place for _, place, _ in plugin.sources}
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename in places]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        where = plugin.label + (f" line {line}" if line else "")
        raise UserError(f"plugins: {where}: {kind}{in_short(error)}") from None


def check_rows_reach_workers(plugins: Sequence[Plugin]) -> None:
    """Raises UserError where a table that workers look names up in has a row that their processes would not have."""
    modules = {module for plugin in plugins for module in plugin.modules}
    for table in TABLES.values():
        if table.in_workers and (names := table.beside(modules)):
            raise UserError(
                f"raffm_ray.{table.decorator}: {names[0]!r} was added by no plug-in, so workers on Ray would not have it: put it "
                "into a file that `plugins` names, or set pool.backend: in_process"
            )
