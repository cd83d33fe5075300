"""Tables of variants: a name, and the row that it stands for. Whoever writes a method adds rows by a decorator."""

import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from dataclasses import replace as with_fields
from inspect import Signature, signature
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from raffm_ray.basics.errors import UserError, in_short, look_up, near_miss

if TYPE_CHECKING:  # what loads a deployed model alone has no pydantic
    from pydantic import BaseModel

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
TABLES: dict[str, "Table[Any]"] = {}
"""Every table that is imported, by its decorator."""


@dataclass(frozen=True)
class Entry(Generic[R]):
    """A row of a table. `module`: which one added it, empty for those that are built in; `settings`: the model of its own settings, and
    `make`: what makes the row of them, None where it has none; `replaces`: whether it may stand in another's place, `before`: in whose."""

    row: R
    module: str
    settings: "type[BaseModel] | None" = None
    make: Callable[[Any], R] | None = None
    replaces: bool = False
    before: "Entry[R] | None" = None


class Table(dict[str, R]):
    """Name -> row. Rows are functions of one signature, or dataclasses with a field for the function that is decorated.

    `decorator`: its name in `raffm_ray`. `function`: the field that is decorated, None for the first. `make(function, like, **fields)`: a
    row of a function, another row or None, and fields that are given. `signatures`: of fields that the first row has not. `in_workers`:
    whether workers look names up in it, so that their processes need its rows too. `without_settings`: why its rows have no settings of
    their own, None where they may.
    """

    def __init__(
        self,
        decorator: str,
        rows: Mapping[str, R],
        *,
        function: str | None = None,
        make: Callable[..., R] | None = None,
        signatures: Mapping[str, Callable[..., Any]] | None = None,
        in_workers: bool = False,
        without_settings: str | None = None,
    ) -> None:
        super().__init__(rows)
        self.decorator, self.in_workers, self._without_settings = decorator, in_workers, without_settings
        self.entries = {name: Entry(row, "") for name, row in rows.items()}
        self.shelf: dict[tuple[str, str], Entry[R]] = {}
        self._first: Any = next(iter(rows.values()), None)
        self._fields = [one.name for one in fields(self._first)] if is_dataclass(self._first) else []
        self._function = function or next(iter(self._fields), "")
        self._make, self._signatures = make, signatures or {}
        TABLES[decorator] = self

    def add(
        self,
        name: str,
        *,
        like: str | None = None,
        replace: bool = False,
        settings: "type[BaseModel] | None" = None,
        **others: Any,
    ) -> Callable[[F], F]:
        """A decorator that adds a row of the table under a name. `others`: the row's other fields; what they leave out is as in the row
        `like`.

        `settings`: a model that `raffm_ray.plugin_settings` declared. What is decorated is then given such settings, and returns the
        function. Raises UserError for a name that is there already, unless it is to `replace` that, and for a function or fields that
        are not those of the table.
        """
        module = str(sys._getframe(1).f_globals.get("__name__", "__main__"))

        def added(function: F) -> F:
            def make(given: Any) -> R:
                return self._row(name, function(given) if settings else function, like, others)

            if settings is not None and self._without_settings:
                raise UserError(f"raffm_ray.{self.decorator}: {name!r}: {self._without_settings}")
            if settings is not None and settings not in PLUGIN_SETTINGS.values():
                raise UserError(
                    f"raffm_ray.{self.decorator}: {name!r}: {settings.__name__} is declared first, by "
                    '@raffm_ray.plugin_settings("a name")'
                )
            self._check_free(name, replace)
            row = make(None if settings is None else settings.model_validate({}))
            self._put(name, Entry(row, module, settings, make if settings else None, replace))
            return function

        return added

    def chosen(self, name: str, own: Mapping[str, Any], what: str = "") -> R:
        """The row of a name, made of its own settings where it has some. `own`: settings by the name of their model, as in an experiment's
        `plugin_settings`; `what`: the setting that has the name. Raises UserError for a name that is not known."""
        row, entry = look_up(self, name, what or self.decorator), self.entries.get(name)
        if entry is None or entry.make is None or entry.settings is None or entry.row is not row:
            return row
        return entry.make(entry.settings.model_validate(own.get(settings_name(entry.settings), {})))

    def beside(self, modules: Collection[str]) -> list[str]:
        """Names of rows that neither are built in nor were added by one of these modules, or are not what was added."""
        known = self.entries
        return [
            name
            for name, row in self.items()
            if name not in known or known[name].row is not row or (known[name].module and known[name].module not in modules)
        ]

    def withdraw(self, modules: Collection[str]) -> None:
        """Takes rows that these modules added out of the table, and what they replaced back into it."""
        for name in list(self.entries):
            while (entry := self.entries.get(name)) and entry.module in modules:
                self.shelf[entry.module, name] = entry
                self.pop(name, None)
                del self.entries[name]
                if entry.before is not None:
                    self._put(name, entry.before)

    def put_back(self, modules: Collection[str]) -> None:
        """Takes what was withdrawn into the table again. Raises UserError for a name that is there already."""
        for module, name in [key for key in self.shelf if key[0] in modules]:
            self._check_free(name, self.shelf[module, name].replaces)
            self._put(name, self.shelf.pop((module, name)))

    def forget(self, modules: Collection[str]) -> None:
        """Takes rows that these modules added out of the table, for good."""
        self.withdraw(modules)
        self.shelf = {key: entry for key, entry in self.shelf.items() if key[0] not in modules}

    def _check_free(self, name: str, replaces: bool) -> None:
        if name in self and not replaces:
            of = self.entries[name].module if name in self.entries else "somebody"
            raise UserError(
                f"raffm_ray.{self.decorator}: {name!r} is there already, {f'added by {of}' if of else 'built in'}: another "
                "name, or replace=True"
            )

    def _put(self, name: str, entry: Entry[R]) -> None:
        before = self.entries.get(name)
        self[name] = entry.row
        self.entries[name] = with_fields(entry, before=before) if entry.module else entry

    def _row(self, name: str, given: Any, like: str | None, others: Mapping[str, Any]) -> R:
        """A row of what was decorated. Raises UserError where it is none of this table's."""
        told = f"raffm_ray.{self.decorator}: {name!r}"
        if not self._fields:
            if others or like:
                raise UserError(f"{told}: {next(iter(others), 'like')!r} is not one of its fields: it has none")
            _check_signature(told, given, self._first)
            return given  # type: ignore[no-any-return]  # its signature was checked, its type is the table's
        for field in others:
            if field not in self._fields:
                raise UserError(f"{told}: {field!r} is not one of its fields{near_miss(field, self._fields)}")
        row: Any = given
        if not isinstance(given, type(self._first)):
            base = look_up(self, like, f"{told}: like") if like else None
            try:
                row = self._made(given, base, others)
            except TypeError as error:
                raise UserError(f"{told}: {in_short(error).rpartition('() ')[2]}") from None
        for field in self._fields:
            if (value := getattr(row, field)) is not None or field == self._function:
                _check_signature(f"{told}: {field}", value, self._signatures.get(field, getattr(self._first, field)))
        return row  # type: ignore[no-any-return]  # as above

    def _made(self, function: Any, base: Any, others: Mapping[str, Any]) -> Any:
        if self._make is not None:
            return self._make(function, base, **others)
        given = {**others, self._function: function}
        return type(self._first)(**given) if base is None else with_fields(base, **given)


def _shown(form: Signature) -> str:
    """A signature without the modules of its types."""
    told = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(form).replace("'", ""))
    return re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]", r"NDArray[\1]", told)


def _check_signature(told: str, given: Any, like: Any) -> None:
    """Raises UserError, which shows the right signature, for what cannot be called as `like` is."""
    if not callable(like) or isinstance(like, type):
        return
    right = signature(like)
    wanted = [one for one in right.parameters.values() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if not callable(given):
        raise UserError(f"{told}: expected a function {_shown(right)}, got {type(given).__name__}")
    try:
        form = signature(given)
    except (TypeError, ValueError):  # of C, which tells nobody
        return
    try:
        form.bind(*[None] * len(wanted))
    except TypeError:
        raise UserError(f"{told}: expected a function {_shown(right)}, got {_shown(form)}") from None


class _Settings(Table["type[BaseModel]"]):
    """The models of plug-ins' own settings."""

    def _row(self, name: str, given: Any, like: str | None, others: Mapping[str, Any]) -> "type[BaseModel]":
        from pydantic import BaseModel

        if not (isinstance(given, type) and issubclass(given, BaseModel)):
            raise UserError(f"raffm_ray.{self.decorator}: {name!r}: expected a class of pydantic's BaseModel, got {given!r}")
        for field, one in given.model_fields.items():
            if one.is_required():
                raise UserError(f"raffm_ray.{self.decorator}: {name!r}: {field} needs a default: the rows are tried with it")
        return given


PLUGIN_SETTINGS = _Settings("plugin_settings", {})
"""By the name in an experiment's `plugin_settings`."""


def settings_name(model: "type[BaseModel]") -> str:
    """What a model of settings is called in YAML."""
    return next((name for name, one in PLUGIN_SETTINGS.items() if one is model), "")


def own_settings(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of plug-ins, all of them, as plain values. Raises ValueError for a name, a key or a value that no plug-in takes."""
    from pydantic import ValidationError

    for name in given:
        if name not in PLUGIN_SETTINGS:
            known = near_miss(name, PLUGIN_SETTINGS) if PLUGIN_SETTINGS else ""
            raise ValueError(f"{name!r} is declared by no plug-in{known}")
    found = {}
    for name, model in PLUGIN_SETTINGS.items():
        values = given.get(name) or {}
        if not isinstance(values, Mapping):
            raise ValueError(f"{name}: expected a mapping of settings, got {type(values).__name__}")
        for key in values:
            if key not in model.model_fields:
                raise ValueError(f"{name}.{key}: unknown key{near_miss(str(key), model.model_fields)}")
        try:
            found[name] = model.model_validate(dict(values)).model_dump(mode="json")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in (name, *problem["loc"]))
            raise ValueError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from None
    return found
