"""Where a round's real time goes: every second belongs to one phase, and older records without the column are read."""

from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment

from raffm_ray.basics import profiling as phases
from raffm_ray.basics.profiling import BY_WORKERS, PHASES, Profile, Stopwatch, explained
from raffm_ray.reports.drawing import plt
from raffm_ray.reports.profile_picture import COLORS, picture_of_profile
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.reader import read_rounds
from raffm_ray.runs.simulation import simulate


def tick(monkeypatch: pytest.MonkeyPatch, *gaps: float) -> None:
    """Every look at the clock comes so many seconds after the one before."""
    looks = accumulate(gaps)
    monkeypatch.setattr(phases, "perf_counter", lambda: next(looks))


def test_every_second_belongs_to_the_innermost_phase(monkeypatch) -> None:
    tick(monkeypatch, 0, 1, 2, 4, 8, 16, 32)
    watch = Stopwatch()
    with watch.during("train"), watch.during("cut"):
        pass
    assert watch.taken() == {"other": 1 + 16, "train": 2 + 8, "cut": 4}
    assert watch.taken() == {"other": 32}


def test_a_phase_ends_where_an_error_leaves_it(monkeypatch) -> None:
    tick(monkeypatch, 0, 1, 2, 4)
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.during("train"):
        _ = 1 / 0
    assert watch.taken() == {"other": 1 + 4, "train": 2}


def test_waiting_is_divided_as_the_workers_time_was() -> None:
    driver = {"plan": 1.0, "wait": 10.0, "evaluate": 0.5}
    told = explained(driver, {"train": 6.0, "evaluate": 2.0})
    assert list(told) == list(PHASES)
    assert (told["plan"], told["train"], told["evaluate"], told["wait"]) == (1.0, 6.0, 2.5, 2.0)
    hidden = explained(driver, {"train": 15.0, "cut": 5.0})  # they worked while the driver did too
    assert (hidden["train"], hidden["cut"], hidden["wait"]) == (7.5, 2.5, 0.0)
    for one in (told, hidden, explained(driver, {})):
        assert sum(one.values()) == pytest.approx(sum(driver.values()))


def test_what_workers_told_is_a_mean_over_them(monkeypatch) -> None:
    tick(monkeypatch, 0, 1, 10, 3)
    profile = Profile()
    with profile.during("wait"):
        pass
    for _ in range(2):
        profile.add({"train": 8.0, "other": 100.0}, 2)
    told = profile.taken()
    assert (told["train"], told["wait"], told["other"]) == (8.0, 2.0, 4.0)


def test_a_run_s_phases_add_up_to_its_real_seconds_and_are_drawn(out: Path) -> None:
    simulate(tiny_experiment(evaluation={"every": 1}), out)
    rounds = read_rounds(out)
    for row in rounds:
        told = dict(row["phase_seconds"])
        assert list(told) == list(PHASES)
        assert all(seconds >= 0 for seconds in told.values())
        assert sum(told.values()) == pytest.approx(row["wall_seconds"])
        assert (told["train"] > 0) == (row["round"] > 0)
        assert all(told[phase] > 0 for phase in ("plan", "cut", "add"))
    assert dict(rounds[0]["phase_seconds"])["calibrate"] > 0
    assert dict(rounds[-1]["phase_seconds"])["evaluate"] > 0
    write_report(out)
    assert "where every round" in (out / "report.html").read_text()
    assert (out / "profile.png").stat().st_size > 5_000
    for path in (out / "rounds").iterdir():  # records from before there was such a column
        pq.write_table(pq.read_table(path).drop_columns("phase_seconds"), path)
    write_report(out)
    assert "where every round" not in (out / "report.html").read_text()


@pytest.mark.parametrize(("slow", "told"), [(1.0, ""), (90.0, "; 1 column is higher than shown")])
def test_a_column_that_is_cut_off_is_told(slow, told) -> None:
    rows = [{"round": number, "phase_seconds": [("train", slow if number == 9 else 1.0)]} for number in range(80)]
    figure = picture_of_profile(rows)
    assert figure is not None
    assert figure.axes[0].get_title().endswith(f"before the first{told}")
    plt.close(figure)


@pytest.mark.parametrize("rounds", [1, 2, 250])
def test_the_picture_of_few_and_many_rounds(rounds) -> None:
    rows = [{"round": number, "phase_seconds": [("train", 1.0 + number % 2), ("add", 0.001)]} for number in range(rounds + 1)]
    figure = picture_of_profile(rows)
    assert figure is not None
    bars = figure.axes[0].patches
    columns = rounds if rounds <= 100 else 84
    assert len(bars) == 2 * columns  # training, and all that is small together
    assert sum(bar.get_height() for bar in bars) == pytest.approx(
        sum(1.001 + number % 2 for number in range(1, rounds + 1)) * columns / rounds, rel=0.02
    )


def test_nothing_to_draw_and_a_colour_for_everything() -> None:
    assert picture_of_profile([{"round": 0, "phase_seconds": [("train", 1.0)]}, {"round": 1}]) is None
    assert set(COLORS) == set(PHASES) > set(BY_WORKERS)
