"""What several runs say of themselves: once, with whose it is; of a study only what all of them say."""

import io

from rich.console import Console

from raffm_ray.reports.comparisons.sentences import common_warnings, together
from raffm_ray.runs.progress import Notes

START = "note: the full model starts at chance, accuracy 11.0% where always answering label 3 has 11.1%: its head is new"
END = "warning: the run ends no better than it began, accuracy 11.0% -> {}%: local.learning_rate {} may be too {}"


def test_a_hint_of_all_runs_is_told_once_whatever_its_numbers() -> None:
    low, other = END.format("11.0", "1e-12", "low"), END.format("10.5", "0.002", "low")
    hints = {"raffm": [[START, low], [START, low]], "full": [[START, other], [START, low]]}
    start, end = together(hints)
    assert start == f"{START} (all 4 runs)"
    assert end == f"{low} (all 4 runs; the numbers are of raffm)"


def test_a_hint_of_some_runs_is_told_with_whose_it_is() -> None:
    low, high = END.format("11.0", "1e-12", "low"), END.format("10.5", "0.2", "high")
    hints = {"raffm": [[], [low]], "full": [[low], [low]], "heterofl": [[high], []]}
    first, second = together(hints)
    assert first == f"{low} (1 of 2 runs of raffm, full)"
    assert second == f"{high} (1 of 2 runs of heterofl)"  # another cause is another hint
    assert together({"raffm": [[low]]}) == [low]
    assert together({"raffm": [[]], "full": [[]]}) == []


def test_only_a_warning_of_all_runs_is_told_of_a_study_whatever_their_causes() -> None:
    low, high = END.format("11.0", "1e-12", "low"), END.format("10.5", "0.2", "high")
    (told,) = common_warnings({"trial 3": [[START, low]], "trial 0": [[START, high]]})
    assert told == f"{low} (all 2 runs; the numbers are of trial 3)"
    assert common_warnings({"trial 3": [[START, low]], "trial 0": [[START]]}) == []  # control: one learns
    assert common_warnings({}) == []


def test_what_runs_tell_is_told_once_and_results_every_time() -> None:
    shown = io.StringIO()
    notes = Notes(Console(file=shown, width=200))
    low, other = END.format("11.0", "1e-12", "low"), END.format("10.5", "0.002", "low")
    high = END.format("10.5", "0.2", "high")
    for line in (low, other, high, "raffm: loss 2.3", "raffm: loss 2.4", "raffm: loss 2.3"):
        notes.tell(line)
    assert shown.getvalue().splitlines() == [low, high, "raffm: loss 2.3", "raffm: loss 2.4", "raffm: loss 2.3"]
