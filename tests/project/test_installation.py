"""What is installed: the package with its data files, and the part that loads models with three libraries and NumPy."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from test_structure import PACKAGE, ROOT, USES, tracked

from raffm_ray.basics.version import __version__

FULL, LOADER = (tomllib.loads((ROOT / path / "pyproject.toml").read_text()) for path in (".", "loader"))
SHIPPED = LOADER["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def needed(package: str, uses: dict[str, str]) -> set[str]:
    """A package and all that it imports, directly or not."""
    return {package}.union(*(needed(other, uses) for other in uses[package].split()))


def test_the_loader_has_the_packages_that_loading_needs() -> None:
    packages = {Path(place).name for place in SHIPPED.values() if (ROOT / place).is_dir()}
    assert packages == needed("subnetworks", USES)
    assert packages != needed("server", USES)  # control
    for source, place in SHIPPED.items():
        assert (ROOT / "loader" / source).exists()
        assert place == source.removeprefix("../") or source == "../LICENSE"


def test_the_loader_allows_the_versions_that_the_package_allows() -> None:
    assert set(LOADER["project"]["dependencies"]) < set(FULL["project"]["dependencies"])
    assert {re.match(r"\w+", one)[0] for one in LOADER["project"]["dependencies"]} == {
        "numpy",
        "safetensors",
        "torch",
        "transformers",
    }
    assert LOADER["project"]["requires-python"] == FULL["project"]["requires-python"]
    versions = (ROOT / "loader" / LOADER["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'__version__ = "{__version__}"' in versions


def test_every_file_of_the_package_is_in_the_repository_and_so_in_the_wheel() -> None:
    found = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert found <= set(tracked())
    assert {path.suffix for path in found} == {".py", ".yaml", ".typed"}
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *map(str, found)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""


@pytest.mark.parametrize("path", ["docs/how_to/install.md", "loader/README.md"])
def test_what_is_said_of_versions_is_so(path: str) -> None:
    text = (ROOT / path).read_text()
    named = set(re.findall(r'"((?:torch|transformers|safetensors|numpy)>=[\d.]+)"', text))
    assert named <= set(FULL["project"]["dependencies"])
    extras = re.findall(r"raffm-ray\[(\w+)\]", text)
    assert set(extras) <= set(FULL["project"]["optional-dependencies"])
