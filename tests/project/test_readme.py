"""README.md, CONTRIBUTING.md, CHANGELOG.md and CITATION.cff: the examples run, and what they name exists.

Of the README's commands, `make demo` and `make test` are not run here: the one takes two minutes, the other would run this test again.
`source .venv/bin/activate` depends on where the package is installed. Everything else runs, with fewer rounds and without Ray.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, small_tokenizer
from documents import forget_rows
from transformers import AutoModel

from raffm_ray.basics.version import __version__
from raffm_ray.cli.main import main
from raffm_ray.data.task_types import TASK_TYPES
from raffm_ray.models.architecture import FAMILIES
from raffm_ray.models.foundation import PACKAGED
from raffm_ray.models.model_config import parse_config
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.salience import METRICS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NOT_RUN = {"make demo", "make test", "source .venv/bin/activate"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines()]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the Markdown table whose first header is `first`, cell by cell; without its header."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@contextmanager
def added(rows: dict[str, Any]) -> Iterator[None]:
    """Takes out again what was added to a table of the package."""
    before = dict(rows)
    try:
        yield
    finally:
        rows.clear()
        rows.update(before)


def reviews(path: Path, count: int, shops: int) -> None:
    """A CSV file of the README's columns, whose texts a model can learn."""
    rng = np.random.default_rng(0)
    lines = ["review,sentiment,shop"]
    for number, positive in enumerate(rng.integers(2, size=count)):
        word = rng.choice([["bad", "poor"], ["good", "great"]][positive])
        lines.append(f"a {word} shop,{'positive' if positive else 'negative'},shop {number % shops}")
    path.write_text("\n".join(lines) + "\n")


def small_bert(folder: Path) -> None:
    """The folder of a pretrained model that is small and knows nothing."""
    AutoModel.from_config(parse_config(TINY["bert"])).save_pretrained(folder)
    small_tokenizer(["a", "bad", "poor", "good", "great", "shop"]).save_pretrained(folder)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_code_block_is_run_by_a_test_here() -> None:
    assert len(blocks("yaml")) == len(blocks("python")) == 1
    assert set(re.findall(r"```(\w+)", README)) == {"bash", "yaml", "python"}
    assert [line for line in commands() if line not in NOT_RUN] == ["raffm-ray run reviews.yaml --out runs/reviews"]


def test_the_commands_that_are_not_run_here_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"`make ([\w-]+)", README + CONTRIBUTING)) | {
        line.split()[1] for line in NOT_RUN if line.startswith("make")
    }
    assert named <= set(targets)


def test_the_example_of_ones_own_data_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    text = blocks("yaml")[0]
    assert "public: 200" in text
    reviews(tmp_path / "reviews.csv", count=600, shops=30)
    small_bert(tmp_path / "small")
    assert yaml.safe_load(text)["model"]["pretrained"] in PACKAGED
    (tmp_path / "reviews.yaml").write_text(text.replace("all-MiniLM-L6-v2", "./small"))
    (command,) = (line for line in commands() if line.startswith("raffm-ray"))
    small = [
        "--rounds",
        "2",
        "--pool.backend",
        "in_process",
        "--extraction.floors",
        "{}",
        "--extraction.steps",
        "{heads: 1, ffn: 4}",
    ]
    assert main([*shlex.split(command)[1:], *small]) == 0
    assert (tmp_path / "runs" / "reviews" / "summary.json").is_file()
    assert "after 2 rounds, 20 clients" in capsys.readouterr().out


def test_the_example_of_ones_own_strategy_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (code,) = blocks("python")
    assert code.count('"--rounds", "20"') == 1
    small = '"--rounds", "2", "--pool.backend", "in_process", "--model.pretrain.epochs", "5", "--salience.clients", "1"'
    with added(STRATEGIES):
        exec(code.replace('"--rounds", "20"', small), {"__name__": "__main__"})
    forget_rows("__main__")
    accuracy, worst = map(float, capsys.readouterr().out.split()[-2:])
    assert 0 < worst <= max(accuracy, worst) <= 1
    assert yaml.safe_load((tmp_path / "runs" / "alternate" / "config.yaml").read_text())["strategy"]["name"] == "alternate"


def test_the_means_follow_from_the_rows() -> None:
    """Means and standard errors of the tutorial's table are those of its rows, from means of rounded values; the README has the same."""
    *rows, mean = table((ROOT / "docs" / "tutorials" / "first_run.md").read_text(), "seed")
    numbers = np.array([[float(cell.strip("%")) for cell in row[1:-1]] for row in rows])
    told = np.array([[float(part) for part in cell.split(" ± ")] for cell in mean[1:-1]])
    assert mean[0] == "mean"
    np.testing.assert_allclose(told[:, 0], numbers.mean(0), atol=0.1)
    np.testing.assert_allclose(told[:, 1], numbers.std(0, ddof=1) / np.sqrt(len(rows)), atol=0.06)
    shown = [part for row in table(README, "model") for part in row[1].split(", ")]
    assert shown == mean[1:-1]


def test_what_exists_is_what_there_is() -> None:
    rows = {row[0].split(" (")[0]: row[1] for row in table(README, "what")}
    assert set(re.findall(r"`(\w+)`", rows["strategies"])) == set(STRATEGIES)
    assert set(re.findall(r"`(\w+)`", rows["salience"])) == set(METRICS)
    models = rows["models"].lower().replace("-", "").replace(" and flant5", ",")
    assert all(re.search(rf"\b{name}\b", models) for name in FAMILIES)
    assert len(rows["budgets"].split(", ")) == len(Budget.__dataclass_fields__)
    for name in TASK_TYPES:
        assert name.replace("_", " ").removeprefix("text ").removeprefix("image ") in rows["tasks"]


@pytest.mark.parametrize("row", table(CONTRIBUTING, "to add"), ids=lambda row: row[0])
def test_the_tables_that_a_contributor_is_sent_to_exist(row: list[str]) -> None:
    """Every `NAME` in the cell is defined by the file before it in the same cell."""
    named = re.findall(r"`([\w/]+\.py)`|`([A-Z][A-Za-z_]+)(?:\.\w+)?`", row[1])
    assert named
    text = ""
    for path, name in named:
        if path:
            text = (ROOT / path).read_text()
        else:
            assert re.search(rf"^(class )?{name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "experiments/README.md",
        "experiments/paper/README.md",
        "notebooks/README.md",
    ],
)
def test_every_local_link_of_these_pages_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_changelog_has_an_entry_for_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert __version__ in [version for version, _ in headings]
    days = [date.fromisoformat(day) for _, day in headings[1:]]
    assert days == sorted(days, reverse=True)


def citation_faults(cff: dict[str, Any]) -> list[str]:
    """What the Citation File Format 1.2.0 asks for and is not there."""
    found = [f"{key} is missing" for key in ("cff-version", "message", "title", "authors") if not cff.get(key)]
    found += ["cff-version"] if cff.get("cff-version") != "1.2.0" else []
    works = [
        ("", cff),
        ("preferred-citation", cff.get("preferred-citation", {})),
        *(("references", one) for one in cff.get("references", [])),
    ]
    for where, work in works:
        found += [f"{where} {key} is missing" for key in ("authors", "title", *(["type"] if where else [])) if not work.get(key)]
        for author in work.get("authors", []):
            if not ({"family-names", "given-names"} <= set(author) or "name" in author):
                found.append(f"{where}: {author} is neither a person nor an entity")
    return found


def test_the_citation_file_is_valid_and_of_this_version() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert not citation_faults(cff)
    assert (cff["type"], cff["version"], cff["license"]) == ("software", __version__, "Apache-2.0")
    assert isinstance(cff["version"], str)
    paper = cff["preferred-citation"]
    assert paper["url"].endswith("2310.00247")
    assert [author["family-names"] for author in paper["authors"]] == ["Yu", "Muñoz", "Jannesari"]


def test_control_a_citation_that_lacks_something_is_refused() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("message", "title", "authors", "cff-version", "preferred-citation"):
        assert citation_faults({name: value for name, value in cff.items() if name != key})
