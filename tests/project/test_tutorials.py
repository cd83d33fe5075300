"""Every command and every code block of the tutorials runs as it is shown.

A page's fenced blocks run in their order, in an empty folder that holds copies of `experiments/` and `cluster/`, as a reader who stands
in the project's folder would run them. Nothing is shortened here: the pages themselves use small values.

- `python`: all blocks of a page share their variables. A block of which the first line names a file (`# mine.py`) is written to that file.
- `bash`: line by line. `raffm-ray` is called in this process, unless it starts Ray; anything else is run by bash.
- `yaml`, of which the first line names a file (`# reviews.yaml`): is written to that file.
- `text`: shows output, and is not run.
- A block after `<!-- not run: why -->` is not run. Its options must be settings that there are, its files and make targets must exist.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, ROOT, blocks_of, run_page

from raffm_ray.basics.errors import UserError
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.salience import METRICS

PAGES = sorted(path for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder as the reader's; tables that a page adds rows to are as before afterwards."""
    for name in ("experiments", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    tables: list[dict[str, Any]] = [STRATEGIES, METRICS]  # type: ignore[list-item]  # rows of any kind
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_there_are_tutorials_and_most_of_their_blocks_run() -> None:
    assert {path.stem for path in PAGES} >= {"first_run", "own_data", "own_strategy", "laptop_to_cluster"}
    blocks = [block for path in PAGES for block in blocks_of(path.read_text()) if block.language != "text"]
    assert sum(block.not_run is None for block in blocks) > len(blocks) / 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_tutorial_runs_as_it_is_shown(reader: None, path: Path) -> None:
    run_page(path.read_text())


@pytest.mark.parametrize(
    "page",
    [
        "```python\nassert 1 + 1 == 3\n```\n",
        "```python\nnumber = 2\n```\n\n```python\nassert number == 3\n```\n",
        "```bash\nfalse\n```\n",
        "```bash\nraffm-ray run experiments/missing.yaml\n```\n",
        "```bash\nraffm-ray run experiments/digits.yaml --rouns 2\n```\n",
        "```yaml\nrounds: 2\n```\n",
        "```console\nraffm-ray --help\n```\n",
        "<!-- not run: needs a cluster -->\n```bash\nraffm-ray submit experiments/digits.yaml --rouns 2\n```\n",
        "<!-- not run: needs a cluster -->\n```bash\nsbatch cluster/slurm/missing.sbatch run experiments/digits.yaml\n```\n",
        "<!-- not run: takes minutes -->\n```bash\nmake dmo\n```\n",
    ],
)
def test_control_a_page_with_a_mistake_fails(reader: None, page: str) -> None:
    with pytest.raises((AssertionError, subprocess.CalledProcessError, UserError)):
        run_page(page)
