"""The reference of the Python API as reStructuredText: the public interface, and a page for every package with all its modules."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from inspect import isclass, isroutine
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import raffm_ray

SKIPPED = ("__main__", "_")
"""Beginnings of the names of modules that are not in the reference."""


def modules(package: ModuleType) -> Iterator[str]:
    """Full names of all modules below a package, those of inner packages after it."""
    for found in walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.rpartition(".")[2].startswith(SKIPPED):
            yield found.name


def packages() -> dict[str, list[str]]:
    """Full name of a package -> full names of the modules in it."""
    found: dict[str, list[str]] = {}
    for name in modules(raffm_ray):
        first = ".".join(name.split(".")[:2])
        if name == first:
            found[name] = []
        else:
            found[first].append(name)
    return found


def public_names(module: str) -> list[str]:
    """Functions, classes and described data that a module defines, in their order, without those that begin with an underscore."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    found = list[str]()
    for node, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and described:
            found.append(ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and described:
            found += [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def public_page() -> str:
    """What `import raffm_ray` gives: every name of its `__all__`, documented under that name."""
    parts = [_heading("The public interface", "=")]
    for name in raffm_ray.__all__:
        value = getattr(raffm_ray, name)
        if isclass(value) or isroutine(value):
            parts.append(f".. auto{'class' if isclass(value) else 'function'}:: raffm_ray.{name}\n")
    return "\n".join(parts)


def package_page(package: str, inner: list[str]) -> str:
    """A package's door and all its modules."""
    parts = [_heading(package, "="), f".. automodule:: {package}\n"]
    for name in inner:
        # Names are listed because Sphinx would otherwise first read the sources of everything that a module imports.
        listed = public_names(name)
        members = f"   :members: {', '.join(listed)}\n" if listed else ""
        parts += [_heading(name.removeprefix(f"{package}."), "-"), f".. automodule:: {name}\n{members}"]
    return "\n".join(parts)


def write_pages(folder: Path) -> dict[Path, str]:
    """File -> content of all pages."""
    pages = {folder / "public.rst": public_page()}
    for package, inner in packages().items():
        pages[folder / "packages" / f"{package.rpartition('.')[2]}.rst"] = package_page(package, inner)
    return pages
