"""The project's own rules: imports only downwards, files of one idea, nothing of one machine."""

import ast
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from selection import STARTS_PROCESSES, slow_tests

ROOT = Path(__file__).parents[2]
PACKAGE, TESTS = ROOT / "raffm_ray", ROOT / "tests"
USES = {
    "basics": "",
    "settings": "basics",
    "axes": "",
    "data": "basics settings",
    "models": "axes basics data settings",
    "subnetworks": "axes basics models",
    "devices": "basics settings subnetworks",
    "clients": "axes basics data models settings subnetworks",
    "server": "axes basics clients data devices models settings subnetworks",
    "pool": "axes basics clients models settings subnetworks",
    "preparation": "axes basics clients data devices models pool server settings subnetworks",
    "runs": "axes basics clients data models pool preparation server settings subnetworks",
    "reports": "basics data runs subnetworks",
    "studies": "basics clients data models pool preparation reports runs settings",
    "deployment": "axes basics clients data models preparation reports runs server settings subnetworks",
    "benchmarks": "axes basics clients data models pool preparation reports runs server settings subnetworks",
    "fleet": "axes basics benchmarks clients data devices models pool preparation runs server settings subnetworks",
    "cli": "basics benchmarks data deployment fleet models pool preparation reports runs settings studies",
}
"""Package -> the packages that it imports, lowest package first. A package may only use those above it in this table."""
MOST_ENTRIES, MOST_MODULES, MOST_LINES = 20, 16, 300


def module_name(path: Path, package: Path = PACKAGE) -> str:
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


def sources(package: Path = PACKAGE) -> dict[str, Path]:
    """Module -> its file; the package's own `__init__` is the public interface, which may use everything."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: path for name, path in files.items() if name != "__init__"}


@cache
def imported(text: str) -> tuple[str, ...]:
    """What a module's text imports, anywhere in it, in full."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import of {node.module}"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports, anywhere in it."""
    files = sources(package)
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for full in imported(path.read_text()):
            if full.partition(".")[0] == "raffm_ray":
                inner = full.removeprefix("raffm_ray").removeprefix(".")
                fits = [other for other in files if inner == other or inner.startswith(f"{other}.")]
                found[name].add(max(fits, key=len, default="__init__"))
    return {name: others - {name} for name, others in found.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def package_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Package -> the other packages that its modules import."""
    found: dict[str, set[str]] = {room(name): set() for name in graph}
    for name, others in graph.items():
        found[room(name)] |= {room(other) for other in others} - {room(name)}
    return found


def faults(package: Path = PACKAGE) -> list[str]:
    """What breaks the rules of imports: packages that the table does not know, upward imports, cycles, modules that no door names."""
    graph, order = imports(package), list(USES)
    found = [f"{name}: not in the table" for name in package_graph(graph) if name not in USES]
    for name, others in package_graph(graph).items():
        found += [f"{name} imports {other}, which is above it" for other in others if order_of(other) >= order_of(name)]
        found += [f"{name} imports {other}, which its line does not name" for other in others - set(USES.get(name, "").split())]
        found += [f"{name} no longer imports {other}" for other in set(USES.get(name, "").split()) - others]
    assert order == sorted(order, key=order_of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"cycle of modules: {' -> '.join(error.args[1])}")
    for name, others in graph.items():
        for other in others:
            if room(other) != room(name) and not opens(package, other):
                found.append(f"{name} imports {other}, which the door of {room(other)} does not open")
    return found


def test_a_door_says_what_its_package_imports() -> None:
    for name, others in USES.items():
        (line,) = re.findall(r"^Imports (.*?)\.$", door(PACKAGE, name)[0], re.MULTILINE | re.DOTALL)
        assert set(re.findall(r"`(\w+)`", line)) == set(others.split()), name


def opens(package: Path, module: str) -> bool:
    """Whether a module may be imported by other packages: the door of its package names it, or its folder, whose door names it."""
    *folders, name = module.split(".")
    return all(part in door(package, "/".join(folders[: number + 1]))[1] for number, part in enumerate([*folders[1:], name]))


def order_of(package: str) -> int:
    return list(USES).index(package) if package in USES else len(USES)


def door(package: Path, name: str) -> tuple[str, list[str]]:
    """A package's docstring, and its `__all__`: the modules that other packages may import."""
    file = package / name / "__init__.py"
    if not file.exists():
        return "", []
    tree = ast.parse(file.read_text())
    named = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return ast.get_docstring(tree) or "", ast.literal_eval(named[0])


def test_imports_only_point_down_and_through_doors() -> None:
    assert not faults()


@pytest.mark.parametrize(
    ("file", "planted", "told"),
    [
        ("axes/indexing.py", "from raffm_ray.server.state import Setup", "axes imports server, which is above it"),
        ("settings/base.py", "def f():\n    from raffm_ray.settings.loading import load", "cycle of modules"),
        ("runs/loop.py", "import raffm_ray.pool.call_timeout", "which the door of pool does not open"),
        ("deployment/deploy.py", "import raffm_ray.runs.loggers.table", "which the door of runs does not open"),
        ("runs/loop.py", "from raffm_ray.devices.profiles import Device", "runs imports devices, which its line does not name"),
        ("basics/errors.py", "from raffm_ray import simulate", "__init__"),
    ],
)
def test_control_a_planted_import_is_seen(tmp_path: Path, file: str, planted: str, told: str) -> None:
    copy = tmp_path / "raffm_ray"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / file).write_text((copy / file).read_text() + f"\n{planted}\n")
    assert any(told in fault for fault in faults(copy))


def test_control_a_module_without_a_room_is_seen(tmp_path: Path) -> None:
    copy = tmp_path / "raffm_ray"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "helpers.py").write_text("from raffm_ray.basics import files\n")
    assert "helpers: not in the table" in faults(copy)


def test_the_folder_shows_the_packages_and_next_to_nothing_else() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    assert {path.name for path in entries if path.is_dir()} == set(USES)


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}), ids=lambda path: path.name
)
def test_a_package_is_small_and_its_door_names_every_module(folder: Path) -> None:
    modules = {path.stem for path in folder.glob("*.py")} - {"__main__"}
    assert len(modules) <= MOST_MODULES
    text, opened = door(PACKAGE, str(folder.relative_to(PACKAGE)))
    named = set(re.findall(r"^- `(\w+)`:", text, re.MULTILINE))
    folders = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    assert named == modules - {"__init__"} | folders
    assert set(opened) <= named


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_a_file_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_only_the_pool_knows_ray_and_the_benchmark_without_it() -> None:
    users = {module_name(path) for path in PACKAGE.rglob("*.py") if re.search(r"(import|from) ray\b", path.read_text())}
    assert users == {
        "pool.call_scheduler",
        "pool.ray_pool",
        "pool.ray_start",
        "cli.submit",
        "runs.loggers.telemetry",
        "studies.ray_trials",
        "benchmarks.bare_ray",
    }


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_nothing_is_of_one_machine() -> None:
    for path in tracked():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            for place in ("/ro" + "ot/", "/ho" + "me/", "file" + "://"):
                assert place not in text, f"{path.name} names {place}"


def test_nothing_reads_pickles_or_remote_code() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "torch.load" not in text
        assert "pickle.load" not in text
        assert "trust_remote_code" not in text


def test_every_package_has_a_folder_of_tests_with_its_name() -> None:
    files = sorted(TESTS.rglob("test_*.py"))
    assert {path.parent.relative_to(TESTS).as_posix() for path in files} == {*USES, "project"}
    assert len({path.name for path in files}) == len(files), "pytest imports test files by their names"


def test_slow_tests_exist_and_every_package_keeps_fast_ones() -> None:
    functions = {
        f"{path.relative_to(ROOT).as_posix()}::{node.name}": ast.unparse(node)
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert slow_tests() <= set(functions)
    kept = {name for name, text in functions.items() if name not in slow_tests() and not STARTS_PROCESSES.search(text)}
    assert {name.split("/")[1] for name in kept} >= set(USES)
