"""The page of a comparison: the same numbers whenever it is made, what they come from, and nothing of another commit replaced unasked."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.machine import processor
from raffm_ray.cli.main import main as cli
from raffm_ray.runs.simulation import completed
from raffm_ray.settings.loading import dump
from raffm_ray.studies import comparison
from raffm_ray.studies.comparison import compare, runs_of
from raffm_ray.studies.published.markdown_page import PageRequest, check_origin, check_place
from raffm_ray.studies.published.origin import Origin, digest_of_settings, facts_of, origin_of, read_origin

EXPERIMENT = tiny_experiment(
    rounds=1, baselines=("heterofl",), salience={"metric": "l2"}, evaluation={"sizes": 0}, pool={"backend": "in_process"}
)
ONE, OTHER, CHANGED = (f"raffm-ray 0.1.0 (commit {name})" for name in ("1111111", "2222222", "1111111, modified"))
NUMBERS = re.compile(r"^\| (\w+) \| (\d) \| .* \| `(\w{16})` \|$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _commit(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by(ONE, monkeypatch)
    monkeypatch.setattr(comparison, "write_report", lambda folder: None)  # pictures take longer than these runs


def made_by(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raffm_ray.runs.made_with._version", lambda: version)
    monkeypatch.setattr("raffm_ray.studies.published.origin.version_text", lambda: version)


def numbers(page: Path) -> dict[tuple[str, str], str]:
    """(strategy, seed) -> the digest of its parameters."""
    return {(name, seed): digest for name, seed, digest in NUMBERS.findall(page.read_text())}


def no_training(*_: Any) -> None:
    pytest.fail("training started")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison in `runs`, and its page."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        made_by(ONE, patch)
        patch.setattr(comparison, "write_report", lambda folder: None)
        patch.setattr(sys, "argv", ["/somewhere/raffm-ray", "compare", "tiny.yaml", "--task.x", "a|b", "--out", "/disk/ann/runs"])
        compare(EXPERIMENT, [0, 1], folder / "runs", page=folder / "tiny.md")
    return folder


def test_a_page_has_the_table_its_picture_and_what_its_numbers_come_from(published) -> None:
    page, folder = (published / "tiny.md").read_text(), published / "runs"
    table = [line for line in (folder / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert set(table) <= set(page.splitlines())
    assert "](tiny.png)" in page
    assert (published / "tiny.png").read_bytes() == (folder / "comparison.png").read_bytes()
    assert "```bash\nraffm-ray compare tiny.yaml --task.x 'a|b' --out .../runs\n```" in page
    for told in (f"| Version | {ONE} |", processor(), "torch ", "transformers ", "CPU hours", "| Partition |"):
        assert told in page, told
    runs = runs_of(EXPERIMENT, [0, 1], folder)
    digests = {
        (run.strategy, str(run.seed)): json.loads((run.folder / "summary.json").read_text())["params_sha256"][:16] for run in runs
    }
    assert numbers(published / "tiny.md") == digests
    assert len(set(digests.values())) == 4
    columns = {line.count("|") for line in page.replace(r"\|", "").splitlines() if line.startswith("| raffm |")}
    assert len(columns) == 2, "two tables"
    assert str(published) not in page


def test_one_cell_run_again_has_the_same_numbers(published, tmp_path) -> None:
    compare(EXPERIMENT, [1], tmp_path / "again", page=tmp_path / "again.md")
    again, first = numbers(tmp_path / "again.md"), numbers(published / "tiny.md")
    assert again == {cell: digest for cell, digest in first.items() if cell[1] == "1"}
    assert again["raffm", "1"] != first["raffm", "0"]  # control


def test_an_interrupted_comparison_has_no_page_and_goes_on(published, tmp_path, monkeypatch) -> None:
    done: list[Path] = []

    def interrupted(prepared: Any, start: Any, folder: Path, *others: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(folder)
        return completed(prepared, start, folder, *others)

    monkeypatch.setattr(comparison, "completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(EXPERIMENT, [0, 1], tmp_path / "runs", page=tmp_path / "tiny.md")
    assert not (tmp_path / "tiny.md").exists()

    def noted(prepared: Any, start: Any, folder: Path, *others: Any) -> Any:
        done.append(folder)
        return completed(prepared, start, folder, *others)

    monkeypatch.setattr(comparison, "completed", noted)
    compare(EXPERIMENT, [0, 1], tmp_path / "runs", page=tmp_path / "tiny.md")
    assert len(set(done)) == len(done) == 4, "no run twice"
    assert numbers(tmp_path / "tiny.md") == numbers(published / "tiny.md")


def test_numbers_of_another_commit_are_only_replaced_where_that_is_asked_for(published, tmp_path, monkeypatch) -> None:
    page, new = tmp_path / "tiny.md", tmp_path / "new"
    page.write_text((published / "tiny.md").read_text())
    made_by(OTHER, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_run_all", no_training)
        with pytest.raises(UserError, match=r"holds numbers of .*1111111\), and these are of .*2222222\): --renew replaces them"):
            compare(EXPERIMENT, [0, 1], new, page=page)
        with pytest.raises(UserError, match="holds numbers of .*, and these are of"):
            compare(EXPERIMENT, [0], new, page=page)
        with pytest.raises(pytest.fail.Exception):  # control: only the page was in the way
            compare(EXPERIMENT, [0], new, page=page, renew=True)
    assert page.read_text() == (published / "tiny.md").read_text()
    compare(EXPERIMENT, [0], new, page=page, renew=True)
    assert read_origin(page.read_text()) == Origin(
        OTHER, digest_of_settings([run.experiment for run in runs_of(prepared(), [0], new)])
    )
    compare(EXPERIMENT, [0], new, page=page)  # of the same commit, unasked


def prepared() -> Any:
    """The experiment with what it leaves open chosen, as its runs have it."""
    from raffm_ray.preparation.prepare import prepare

    return prepare(EXPERIMENT).setup.experiment


def test_finished_runs_keep_the_commit_that_made_them(published, tmp_path, monkeypatch) -> None:
    """The page is written by other code than the numbers."""
    made_by(OTHER, monkeypatch)
    compare(EXPERIMENT, [0, 1], published / "runs", page=tmp_path / "late.md")
    assert (read_origin((tmp_path / "late.md").read_text()) or Origin("", "")).version == ONE
    runs = runs_of(EXPERIMENT, [0, 1, 2], published / "runs")
    experiments, folders = [run.experiment for run in runs], [run.folder for run in runs]
    assert origin_of(experiments, folders).version == f"{ONE}; then {OTHER}"  # control: some are to be run yet


PAGE = "# A page\n\n| what | which |\n| --- | --- |\n| Version | {} |\n| Settings | {} |\n"


@pytest.mark.parametrize(
    ("there", "here", "told"),
    [
        (Origin(ONE, "aa"), Origin(ONE, "aa"), None),
        (Origin(ONE, "aa"), Origin(OTHER, "aa"), "and these are of raffm-ray 0.1.0 (commit 2222222)"),
        (Origin(ONE, "aa"), Origin(f"{ONE}; then {OTHER}", "aa"), "2222222"),
        (Origin(ONE, "aa"), Origin(ONE, "bb"), "of other settings or seeds"),
        (Origin(CHANGED, "aa"), Origin(CHANGED, "aa"), "of modified code"),
    ],
)
def test_the_rule_of_what_replaces_what(there, here, told, tmp_path) -> None:
    page = tmp_path / "page.md"
    check_origin(PageRequest(page), here)
    page.write_text(PAGE.format(*there))
    check_place(PageRequest(page))
    check_origin(PageRequest(page, renew=True), here)
    if told is None:
        check_origin(PageRequest(page), here)
        return
    with pytest.raises(UserError) as error:
        check_origin(PageRequest(page), here)
    assert told in str(error.value)
    assert str(error.value).endswith("--renew replaces them")


def test_settings_that_change_no_result_do_not_count() -> None:
    workers = EXPERIMENT.with_settings(pool={"workers": 2}, checkpoint={"every": 1}, loggers=())
    assert digest_of_settings([EXPERIMENT]) == digest_of_settings([workers])
    assert digest_of_settings([EXPERIMENT]) != digest_of_settings([EXPERIMENT.with_settings(seed=1)])
    assert digest_of_settings([EXPERIMENT]) != digest_of_settings([EXPERIMENT.with_settings(local={"batch_size": 3})])


def test_hours_are_those_of_rounds_times_worker_processes(published, monkeypatch) -> None:
    folders = [run.folder for run in runs_of(EXPERIMENT, [0, 1], published / "runs")]
    monkeypatch.setattr(
        "raffm_ray.studies.published.origin.read_rounds", lambda folder: [{"wall_seconds": 1800.0}, {"wall_seconds": 900.0}]
    )
    assert facts_of(Origin(ONE, ""), folders)["Time"].startswith("3.0 hours of rounds, 3.0 CPU hours")
    two = {"pool": {"backend": "ray", "workers": 2}}
    monkeypatch.setattr("raffm_ray.studies.published.origin.read_configuration", lambda folder: ("", two))
    assert facts_of(Origin(ONE, ""), folders)["Time"].startswith("3.0 hours of rounds, 6.0 CPU hours")


@pytest.mark.parametrize(
    ("words", "there", "told"),
    [
        (["--page", "a.txt"], {}, "--page a.txt: expected a name that ends in .md"),
        (["--page", "a.md"], {"a.md": "mine"}, "--page a.md: exists, and no comparison wrote it"),
        (["--page", "a.md"], {"a.png": "mine"}, "--page a.md: a.png beside it exists already"),
        (["--page", "a.md", "--renew"], {"a.md": "mine"}, "--page a.md: exists, and no comparison wrote it"),
        (["--page", "."], {}, "--page .: expected a name that ends in .md"),
        (["--renew"], {}, "compare: --renew is for --page"),
    ],
)
def test_a_page_that_cannot_be_is_one_line_before_any_training(words, there, told, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(dump(EXPERIMENT))
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(comparison, "prepare", no_training)
    assert cli(["compare", "tiny.yaml", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert all((tmp_path / name).read_text() == text for name, text in there.items())
