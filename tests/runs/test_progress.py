"""What is shown of a run's progress: a bar where one can be shown, else lines; and no long silence between them."""

import io
import warnings

import pytest
from conftest import tiny_experiment
from rich.console import Console

from raffm_ray.runs import progress
from raffm_ray.runs.progress import Display
from raffm_ray.runs.simulation import simulate


def _notebook() -> Console:
    return Console(force_jupyter=True, width=100)


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_without_widgets_has_lines_instead_of_warnings(widgets, monkeypatch) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    shown: list[str] = []
    monkeypatch.setattr(Console, "print", lambda _, *words, **__: shown.extend(map(str, words)))
    assert progress.has_bar(_notebook()) == widgets
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        display = Display(_notebook(), "raffm", 2)
        if not widgets:
            display.__enter__()
            display.stage("2 rounds", 2)
            display.doing("timing")
            display.advance(1)
            display.__exit__()
            assert shown == ["raffm: 2 rounds", "raffm: timing"]
    assert not warned


def test_a_file_has_no_bar_and_a_terminal_has_one() -> None:
    assert not progress.has_bar(Console(file=io.StringIO()))
    assert progress.has_bar(Console(file=io.StringIO(), force_terminal=True))  # control


def test_every_long_step_is_told_before_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path / "cache"))  # nothing is pretrained yet
    shown = io.StringIO()
    experiment = tiny_experiment(model={"pretrain": {"epochs": 2}}, evaluation={"sizes": 0})
    simulate(experiment, tmp_path / "run", Console(file=shown, width=200), report=lambda _: shown.write("(report)\n") and None)
    lines = shown.getvalue().splitlines()

    def first(word: str) -> int:
        return next(number for number, line in enumerate(lines) if word in line)

    told = [
        "expected peak of memory",
        "timing a few steps on each worker",
        "expected time of all rounds: roughly ",
        "pretraining: 2 epochs of the full model on",
        "-> ",
        "ranking the parameters",
    ]
    told += ["timing a few steps of clients", "expected time of 2 rounds", "round 0/2", "drawing the report", "(report)"]
    assert sorted(map(first, told)) == [first(word) for word in told]
    assert "inf" not in " ".join(lines)
