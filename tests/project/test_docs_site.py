"""The documentation builds without a warning, needs no network, and its reference leaves nothing out."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment

import raffm_ray
from raffm_ray import Experiment, Study, run_study, simulate, write_comparison
from raffm_ray.cli.parser import flags_of

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
DOCS, PACKAGE = ROOT / "docs", ROOT / "raffm_ray"
sys.path.insert(0, str(DOCS / "tools"))

import command_pages  # noqa: E402  (docs/tools is on the path from here on)
import package_graph  # noqa: E402

PAGE = (DOCS / "reference" / "run_folder.md").read_text(encoding="utf-8")
needs_sphinx = pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "myst_parser", "furo"))), reason="Sphinx is not installed: pip install 'raffm-ray[docs]'"
)


IS_MADE = re.compile(r"_build|/generated/|__pycache__")
"""Files that the build or Python makes."""


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    flags = ["--builder", "html", "--fresh-env", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--jobs", "2"]
    command = [sys.executable, "-m", "sphinx", *flags, str(source), str(out), "--doctree-dir", str(out.with_name("doctrees"))]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def site() -> Path:
    """The site that `make docs` has built, as strictly as it can be; CI builds it before the tests."""
    built = DOCS / "_build" / "html" / "objects.inv"
    sources = [
        path for folder in (DOCS, PACKAGE) for path in folder.rglob("*") if path.is_file() and not IS_MADE.search(str(path))
    ]
    if built.is_file() and built.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return built.parent
    pytest.skip("the documentation is not built, or was before something changed: make docs")


LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|object|embed|video|audio)\b[^>]*?\b(?:src|href|srcset|data)=[\"']([^\"']+)[\"']"
)
STYLED = re.compile(r"(?:@import\s*[\"']?|url\(\s*[\"']?)((?:https?:)?//[^\"')\s]+)")


def loaded_from_elsewhere(folder: Path) -> list[str]:
    """What a browser would fetch from another site to show the pages. Links that a reader follows do not count."""
    found = []
    for page in folder.rglob("*.html"):
        found += [target for target in LOADED.findall(page.read_text(encoding="utf-8")) if re.match(r"(https?:)?//", target)]
    for sheet in folder.rglob("*.css"):
        found += STYLED.findall(sheet.read_text(encoding="utf-8"))
    return found


@needs_sphinx
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert loaded_from_elsewhere(site) == []


def test_control_what_comes_from_elsewhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<script async src="https://cdn.example/x.js"></script><a href="https://example.org">a link</a>'
    )
    (tmp_path / "sheet.css").write_text('@import "//fonts.example/a.css"; p { background: url(data:image/png;base64,AA) }')
    assert loaded_from_elsewhere(tmp_path) == ["https://cdn.example/x.js", "//fonts.example/a.css"]


@needs_sphinx
def test_control_a_page_with_a_broken_link_does_not_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (tmp_path / "docs" / "index.md").write_text("# A page\n\n[nowhere](missing.md)\n")
    done = build(tmp_path / "docs", tmp_path / "html")
    assert done.returncode != 0
    assert "missing.md" in done.stderr


def public_objects(package: Path = PACKAGE) -> Iterator[str]:
    """Full names of all public functions, classes, and methods of public classes."""
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.stem == "__main__" or module == package.name:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{module}.{node.name}"
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and ast.get_docstring(inner):
                        yield f"{module}.{node.name}.{inner.name}"


def entries(site: Path) -> dict[str, set[str]]:
    """Domain -> the names that the built site has an entry for."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, target: target)
    found: dict[str, set[str]] = {}
    for kind, names in inventory.items():
        found.setdefault(kind.partition(":")[0], set()).update(names)
        found[kind] = set(names)
    return found


@needs_sphinx
def test_every_public_function_class_and_method_is_in_the_reference(site: Path) -> None:
    documented = entries(site)["py"]
    names = list(public_objects())
    assert len(names) > 500
    assert [name for name in names if name not in documented] == []
    assert {f"raffm_ray.{name}" for name in raffm_ray.__all__} - documented == {"raffm_ray.__version__"}


def test_control_a_new_function_would_be_missed(tmp_path: Path) -> None:
    copy = tmp_path / "raffm_ray"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "axes" / "planted.py").write_text('"""Planted."""\n\n\ndef planted() -> None:\n    """Planted."""\n')
    assert set(public_objects(copy)) - set(public_objects()) == {"raffm_ray.axes.planted.planted"}


def settings(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, field) of all settings; inner groups are found by what they have, not by how the reference is made."""
    for name, field in model.model_fields.items():
        full = f"{path}.{name}" if path else name
        values = [field.annotation, *getattr(field.annotation, "__args__", ())]
        groups = [one for one in values if hasattr(one, "model_fields")]
        if groups and groups[0] is field.annotation:
            yield from settings(groups[0], full)
            continue
        yield full, field
        optional = isinstance(field.annotation, types.UnionType)
        inner = full if optional else f"{full}.<name>"  # a group or none; else a mapping, of which each value is a group
        for group in groups:
            yield from settings(group, inner)


@pytest.mark.parametrize("model", [Experiment, Study])
def test_every_setting_says_what_it_means(model: Any) -> None:
    found = dict(settings(model))
    assert len(found) > 10
    assert [name for name, field in found.items() if len((field.description or "").split()) < 3] == []


@needs_sphinx
def test_every_setting_is_in_the_reference(site: Path) -> None:
    assert {name for name, _ in settings(Experiment)} == entries(site)["std:confval"]
    page = (site / "reference" / "study_settings.html").read_text(encoding="utf-8")
    assert [name for name, _ in settings(Study) if f'<span class="pre">{name}</span>' not in page] == []


def test_every_command_and_flag_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    names = list(command_pages.commands())
    assert [name for name in names if " " not in name and f"## `raffm-ray {name}`" not in page] == []
    flags = {flag for name in names for flag in flags_of(name)}
    assert len(flags) > 15
    assert [flag for flag in sorted(flags) if not re.search(rf"`{flag}\b", page)] == []


def test_the_page_of_a_command_is_its_help_and_that_of_commands_below_it() -> None:
    page = command_pages.command_page("fleet")
    assert page.count("```text\nUsage: raffm-ray fleet") == 3
    assert "--clients.count" not in page
    assert max(map(len, page.splitlines())) <= 80


def rows_of(section: str, page: str = PAGE) -> dict[str, str]:
    """Of the table behind an anchor of the page: the code in the first cell -> that in the second one, or its text."""
    text = page.split(f"({section})=\n", 1)[1]
    table = re.split(r"\n(?:\(|#)", text.split("\n| ---", 1)[1])[0]
    cells = re.findall(r"^\| `([^`]+)` \| (.+?) \|", table, re.MULTILINE)
    return {name: second.strip("`") for name, second in cells}


def stored(schema: pa.Schema) -> dict[str, str]:
    kinds = {field.name: field.type for field in schema}
    return {
        name: f"map<{kind.key_type}, {kind.item_type}>" if pa.types.is_map(kind) else str(kind) for name, kind in kinds.items()
    }


def differences(content: Any, documented: set[str]) -> set[str]:
    """Keys of nested JSON that are not documented, as `+key`, and documented ones that are not there, as `-key`.

    `<name>` in a documented key stands for any key, and `[]` for every item of a list; what is inside an empty list is not missed.
    """
    met, found = set[str](), set[str]()

    def visit(value: Any, path: str) -> None:
        inside = [one for one in documented if one.startswith((f"{path}.", f"{path}[]."))] if path else list(documented)
        if path in documented:
            met.add(path)
        if not inside:
            if path not in documented:
                found.add(f"+{path}")
            return
        if isinstance(value, list):
            if not value:
                met.update(inside)
            for one in value:
                visit(one, f"{path}[]")
            return
        for key, below in value.items():
            full = f"{path}.{key}" if path else key
            known = any(one == full or one.startswith((f"{full}.", f"{full}[]")) for one in documented)
            wild = {one[len(path) + 1 :].split(".")[0] for one in inside if one[len(path) + 1 :].startswith("<")}
            visit(below, full if known or not wild else f"{path}.{min(wild)}")

    visit(content, "")
    return found | {f"-{one}" for one in documented - met}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    clients = {"count": 12, "per_round": 5, "held_out": 0.2, "unseen": 0.1}
    simulate(
        tiny_experiment(rounds=1, clients=clients, evaluation={"sizes": 1, "clients": "all"}, baselines=["smallest"]), folder
    )
    return folder


def test_every_column_of_the_records_is_described(run_folder: Path) -> None:
    for section, file in (
        ("rounds", "rounds/round-000001.parquet"),
        ("clients", "clients/round-000001.parquet"),
        ("evaluations", "evaluations/round-000001.parquet"),
        ("shares-parquet", "shares.parquet"),
    ):
        assert list(stored(pq.read_schema(run_folder / file)).items()) == list(rows_of(section).items())
    found = stored(pq.read_schema(run_folder / "units.parquet"))
    kept = {name for name in found if name.startswith("kept_")}
    assert kept
    assert {name: kind for name, kind in found.items() if name not in kept} | {"kept_<device>": "bool"} == rows_of(
        "units-parquet"
    )


def test_every_key_of_a_summary_is_described(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    documented = set(rows_of("summary-json"))
    assert differences(summary, documented) == set()
    assert differences(summary["client_metrics"], set(rows_of("client-metrics"))) == set()
    del summary["device_types"]["v100"]["params"]
    assert differences({**summary, "planted": 1}, documented) == {"+planted"}
    assert differences(summary, documented | {"gone", "device_types.<device>.gone"}) == {"-gone", "-device_types.<device>.gone"}


def test_every_key_of_what_a_run_was_made_with_is_described(run_folder: Path) -> None:
    content = json.loads((run_folder / "made_with.json").read_text())
    for start in content["starts"]:  # a mapping from names that are no keys, and a list of names
        start["libraries"], start["gpus"] = "", ""
    assert differences(content, set(rows_of("made-with-json"))) == set()


def test_every_key_of_a_comparison_is_described(run_folder: Path, tmp_path: Path) -> None:
    write_comparison([run_folder, run_folder / "baselines" / "smallest"], tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert differences(content, set(rows_of("comparison-json"))) == set()
    columns = (tmp_path / "comparison.csv").read_text().splitlines()[0].split(",")
    devices = json.loads((run_folder / "summary.json").read_text())["device_types"]
    assert list(dict.fromkeys("<device>" if name in devices else name for name in columns)) == list(rows_of("comparison-csv"))


def test_every_file_of_a_run_is_described(run_folder: Path) -> None:
    raffm_ray.write_report(run_folder)
    table = PAGE.split("## `rounds/`")[0]
    for path in run_folder.rglob("*"):
        name = path.relative_to(run_folder).as_posix()
        if path.is_file() and not path.name.startswith(".") and not name.startswith(("baselines/", "tensorboard/")):
            assert re.sub(r"round-\d+", "round-*", name) in table or path.name in table, name


@pytest.fixture(scope="module")
def picture() -> str:
    return package_graph.drawn()


def test_the_picture_of_the_packages_is_up_to_date(picture: str) -> None:
    assert package_graph.PICTURE.read_text(encoding="utf-8") == picture, "run python docs/tools/package_graph.py"


def test_control_a_planted_import_changes_the_picture(tmp_path: Path, picture: str) -> None:
    copy = tmp_path / "raffm_ray"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert package_graph.drawn(copy) == picture
    file = copy / "settings" / "base.py"
    file.write_text(file.read_text() + "\nimport raffm_ray.axes.indexing\n")
    assert package_graph.package_graph(copy)["settings"] == {"axes", "basics"}
    assert package_graph.drawn(copy) != picture


def test_the_picture_has_the_edges_that_do_not_follow_from_others() -> None:
    graph = {"low": set(), "middle": {"low"}, "high": {"low", "middle"}, "side": {"low"}}
    assert package_graph.reduced(graph) == {"low": set(), "middle": {"low"}, "high": {"middle"}, "side": {"low"}}
    assert package_graph.heights(package_graph.reduced(graph)) == {"low": 0, "middle": 1, "high": 2, "side": 1}


def test_every_key_of_a_study_is_described(tmp_path: Path) -> None:
    values = {
        "experiment": tiny_experiment(rounds=1).model_dump(mode="json"),
        "space": {"local.learning_rate": [0.001, 0.01]},
        "objectives": ["full_model"],
        "constraints": ["full_model >= 0"],
        "trials": 1,
    }
    content = run_study(Study.model_validate(values), tiny_experiment(rounds=1), tmp_path / "study")
    documented = set(rows_of("study-json"))
    assert differences(content, documented) == set()
    assert differences({**content, "planted": 1}, documented) == {"+planted"}
