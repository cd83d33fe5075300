"""Notebooks: the tests run them, shortened; script and notebook of a pair say the same; outputs are never committed."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "notebooks").glob("*_*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_every_notebook_is_run_with_the_tests(request: pytest.FixtureRequest) -> None:
    assert "notebooks" in request.config.getini("testpaths")
    assert [path.stem for path in SCRIPTS] == [path.stem for path in NOTEBOOKS]
    assert len(NOTEBOOKS) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_script_and_notebook_say_the_same(path: Path, tmp_path: Path) -> None:
    script = path.with_suffix(".py")
    assert cells(path) == cells(script), "jupytext --to ipynb notebooks/*.py makes them anew"
    for cell in jupytext.read(path).cells:
        assert not cell.get("outputs"), "outputs are not committed"
        assert cell.get("execution_count") is None
    control = tmp_path / script.name
    control.write_text(script.read_text().replace("import os", "import sys").replace("import torch", "import sys"))
    assert cells(path) != cells(control)


def test_control_a_failing_cell_fails_the_tests(tmp_path: Path) -> None:
    notebook = tmp_path / "broken.ipynb"
    jupytext.write(jupytext.reads("# %%\nassert 1 + 1 == 3\n", "py:percent"), notebook)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", str(notebook)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
