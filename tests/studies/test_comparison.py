"""Sizes that nobody trained, and several strategies over several seeds."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_experiment
from html_pages import rows_of
from rich.console import Console

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.comparisons.content import rows_of_runs
from raffm_ray.reports.comparisons.picture import mean_curve
from raffm_ray.reports.comparisons.sentences import notes
from raffm_ray.reports.run_picture import sizes_of
from raffm_ray.reports.run_report import write_report
from raffm_ray.reports.seed_statistics import statistic
from raffm_ray.runs.evaluation import area, grid
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.settings.loading import dump, load
from raffm_ray.studies import comparison
from raffm_ray.studies.comparison import compare, runs_of

SEEDS = (0, 1)
NAMES = ("raffm", "heterofl")
EXPERIMENT = tiny_experiment(rounds=1, baselines=("heterofl",), salience={"metric": "l2"})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compared") / "all"
    return folder, compare(EXPERIMENT, SEEDS, folder)


def summary_of(folder: Path, name: str, seed: int) -> dict[str, Any]:
    return json.loads((folder / name / f"seed-{seed}" / "summary.json").read_text())


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "seed-" in str(path) and path.is_file()}


def test_every_seed_divides_the_data_anew(tmp_path, monkeypatch) -> None:
    """Each run has the clients' data that it would have alone."""
    found: dict[Path, list[list[int]]] = {}

    def noted(prepared: Any, start: Any, folder: Path, environment: Any) -> None:
        found[folder] = [share.tolist() for share in prepared.shares]

    monkeypatch.setattr(comparison, "completed", noted)
    monkeypatch.setattr(comparison, "starting", lambda *_: None)
    runs = runs_of(EXPERIMENT, SEEDS, tmp_path)
    comparison._run_all(runs, EXPERIMENT, Console(quiet=True))
    alone = {seed: [share.tolist() for share in prepare(EXPERIMENT.model_copy(update={"seed": seed})).shares] for seed in SEEDS}
    assert found == {run.folder: alone[run.seed] for run in runs}
    assert alone[0] != alone[1]  # control


def test_the_grid_is_even_and_leaves_the_ends_out() -> None:
    assert grid(100, 900, 3) == [300, 500, 700]
    assert grid(100, 900, 0) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_area_of_a_constant_curve_is_the_constant(seed) -> None:
    sizes = np.sort(np.random.default_rng(seed).uniform(0.1, 1.0, 6))
    assert area([{"params_fraction": size, "metric": 0.7} for size in sizes]) == pytest.approx(0.7)
    assert area([{"params_fraction": size, "metric": size} for size in sizes]) == pytest.approx((sizes[0] + sizes[-1]) / 2)


def test_the_area_weighs_sizes_by_their_distance() -> None:
    points = [{"params_fraction": size, "metric": metric} for size, metric in ((0.2, 0.0), (0.3, 1.0), (1.0, 1.0))]
    assert area(points) == pytest.approx((0.1 * 0.5 + 0.7 * 1.0) / 0.8)
    assert area(points) != pytest.approx(np.mean([0.0, 1.0, 1.0]))
    assert area([{"params_fraction": 1.0, "metric": 0.4}]) == 0.4


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_has_every_device_type_and_the_full_model_and_sizes_between(compared, name) -> None:
    summary = summary_of(compared[0], name, 0)
    curve = summary["curve"]
    trained = {point["params"]: point["metric"] for point in curve if point["trained"]}
    device_types = {device_type["params"]: device_type["metric"] for device_type in summary["device_types"].values()}
    assert trained == device_types | {summary["params"]: summary["full_model"]}
    sizes = [point["params"] for point in curve]
    assert sizes == sorted(set(sizes))
    unseen = [point for point in curve if not point["trained"]]
    assert 1 <= len(unseen) <= EXPERIMENT.evaluation.sizes
    assert all(min(trained) < point["params"] < max(trained) for point in unseen)
    assert summary["curve_area"] == pytest.approx(area(curve))
    assert summary["worst_device_type"]["metric"] == min(device_types.values())
    assert summary["device_types"][summary["worst_device_type"]["name"]]["metric"] == min(device_types.values())


def test_an_unseen_size_is_measured_as_a_device_type_of_that_size_would_be(tmp_path) -> None:
    """The untrained curve against device types that get those sizes: both are cut from the same start by the same list."""
    sizes = [0.4, 0.52, 0.64, 0.76, 1.0]
    budgets = {name: {"params": size} for name, size in zip(EXPERIMENT.fleet.budgets, sizes, strict=True)}
    still = {"local": {"optimizer": "sgd", "learning_rate": 1e-30}, "salience": {"metric": "l2"}, "rounds": 1}
    wanted = simulate(tiny_experiment(fleet={"budgets": budgets}, **still), tmp_path / "device_types")
    ends = {name: {"params": size} for name, size in zip(budgets, [0.4, 0.4, 0.4, 1.0, 1.0], strict=True)}
    found = simulate(tiny_experiment(fleet={"budgets": ends}, evaluation={"sizes": 4}, **still), tmp_path / "curve")
    measured = {point["params"]: point["metric"] for point in found["curve"]}
    expected = {device_type["params"]: device_type["metric"] for device_type in wanted["device_types"].values()}
    assert len(expected.keys() & measured.keys()) >= 4
    assert all(measured[size] == expected[size] for size in expected.keys() & measured.keys())
    assert len(set(measured.values())) > 1


def test_sizes_that_no_plan_fits_are_skipped_with_the_reason(out, monkeypatch) -> None:
    from dataclasses import replace

    real = STRATEGIES["heterofl"]

    def picky(view, budget, client):
        if client == -1 and budget.params is not None and 9_500 < budget.params < 11_000:
            raise UserError("nothing of that size")
        return real.deploy(view, budget, client)

    monkeypatch.setitem(STRATEGIES, "heterofl", replace(real, deploy=picky))
    summary = simulate(tiny_experiment(rounds=1, strategy={"name": "heterofl"}), out)
    assert summary["curve_skipped"]
    assert all(9_500 < one["params"] < 11_000 and one["reason"] == "nothing of that size" for one in summary["curve_skipped"])
    assert len(summary["curve"]) < 6 + EXPERIMENT.evaluation.sizes


@pytest.mark.drawn
def test_no_sizes_are_measured_where_none_are_asked_for(compared, out) -> None:
    own = runs_of(EXPERIMENT, SEEDS, out)[0].experiment
    off = own.model_copy(update={"evaluation": own.evaluation.model_copy(update={"sizes": 0})})
    summary = simulate(off, out)
    assert (summary["curve"], summary["curve_area"]) == ([], None)
    assert summary["params_sha256"] == summary_of(compared[0], "raffm", 0)["params_sha256"]
    assert [point["params_fraction"] for point in sizes_of(summary)][-1] == 1.0
    for page in write_report(out):
        assert page.stat().st_size > 10_000
    assert "mean over sizes" not in (out / "report.html").read_text()


def test_a_report_shows_the_area_and_the_worst_device_type(compared) -> None:
    folder = compared[0] / "raffm" / "seed-0"
    summary, page = summary_of(compared[0], "raffm", 0), (folder / "report.html").read_text()
    shown = {row[0]: row for row in rows_of(page)}
    assert shown["mean over sizes"][3] == f"{100 * summary['curve_area']:.1f}"
    assert shown["worst device type"][3].split(" ")[0] == f"{100 * summary['worst_device_type']['metric']:.1f}"
    assert f"that of {summary['worst_device_type']['name'].replace('_', ' ')}," in page


def test_a_comparison_leaves_every_run_and_one_table(compared) -> None:
    folder, content = compared
    assert {path.name for path in folder.iterdir()} == {
        *NAMES,
        *(f"comparison.{kind}" for kind in ("html", "json", "csv", "md", "png")),
    }
    assert json.loads((folder / "comparison.json").read_text()) == content
    assert content["seeds"] == list(SEEDS)
    assert (folder / "comparison.png").stat().st_size > 10_000
    for name in NAMES:
        for seed in SEEDS:
            run = folder / name / f"seed-{seed}"
            assert {"config.yaml", "rounds", "clients", "checkpoints", "summary.json", "report.html"} <= {
                p.name for p in run.iterdir()
            }
            assert [path.name for path in (run / "checkpoints").iterdir()] == ["final"]  # too many runs to keep more
            assert load(run / "config.yaml").seed == seed
    rows = list(csv.DictReader((folder / "comparison.csv").open()))
    assert [(row["strategy"], int(row["seed"])) for row in rows] == [(name, seed) for name in NAMES for seed in SEEDS]
    assert [float(row["full_model"]) for row in rows] == [
        summary_of(folder, row["strategy"], int(row["seed"]))["full_model"] for row in rows
    ]
    lines = (folder / "comparison.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(NAMES)
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_its_numbers_are_the_runs_own(compared, name) -> None:
    folder, content = compared
    runs = [summary_of(folder, name, seed) for seed in SEEDS]
    one = content["strategies"][name]
    expected = {
        "full_model": [run["full_model"] for run in runs],
        "worst_device_type": [min(device_type["metric"] for device_type in run["device_types"].values()) for run in runs],
        "curve_area": [run["curve_area"] for run in runs],
        "bytes": [run["bytes_down"] + run["bytes_up"] for run in runs],
        "simulated_seconds": [run["simulated_seconds"] for run in runs],
        "energy_joules": [run["energy_joules"] for run in runs],
    }
    for measure, values in expected.items():
        assert one[measure]["values"] == values
        assert one[measure]["mean"] == pytest.approx(np.mean(values))
        assert one[measure]["standard_error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)))
    for device, value in one["device_types"].items():
        assert value["values"] == [run["device_types"][device]["metric"] for run in runs]
    assert (one["over_budget"]["mean"] == 0) == STRATEGIES[name].budgeted


def test_a_run_of_a_comparison_is_the_run_alone(compared, tmp_path) -> None:
    folder = compared[0]
    for name in NAMES:
        config = folder / name / "seed-1" / "config.yaml"
        assert simulate(load(config), tmp_path / name)["params_sha256"] == summary_of(folder, name, 1)["params_sha256"]
    hashes = {summary_of(folder, name, seed)["params_sha256"] for name in NAMES for seed in SEEDS}
    assert len(hashes) == len(NAMES) * len(SEEDS)


def test_finished_runs_are_reused_and_an_interrupted_one_is_completed(compared, tmp_path, monkeypatch) -> None:
    import shutil

    folder, content = compared
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    broken = again / "heterofl" / "seed-1"
    for name in ("summary.json", "report.html"):
        (broken / name).unlink()
    before = written(again)
    console = Console(record=True, file=io.StringIO(), width=200)
    assert compare(EXPERIMENT, SEEDS, again, console) == content
    after = written(again)
    changed = {path for path in after if before.get(path) != after[path]}
    assert changed <= {path for path in after if broken in path.parents}
    assert {broken / "summary.json", broken / "report.html", broken / "rounds" / "round-000001.parquet"} <= changed
    said = console.export_text()
    assert said.count(": reused") == 3
    assert "compare: run 4 of 4: heterofl, seed 1" in said
    for name in ("starting", "open_pool", "completed"):
        monkeypatch.setattr(f"raffm_ray.studies.comparison.{name}", lambda *_: pytest.fail("nothing was left to run"))
    assert compare(EXPERIMENT, SEEDS, again) == content
    assert written(again) == after
    assert compare(EXPERIMENT, [1], again)["seeds"] == [1]


def test_an_interrupted_comparison_says_how_to_go_on(out, tmp_path, capsys, monkeypatch) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(EXPERIMENT))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("raffm_ray.studies.comparison.completed", interrupted)
    assert cli(["compare", str(config), "--out", str(out)]) == 130
    assert f"the same command with --out {out} goes on" in capsys.readouterr().err


def test_runs_that_learn_nothing_say_so_once(tmp_path) -> None:
    still = {
        "model": {"seed": 0, "pretrain": {"epochs": 0}},
        "local": {"learning_rate": 1e-12},
        "evaluation": {"every": 1, "sizes": 0},
    }
    shown, lazy = io.StringIO(), tiny_experiment(rounds=1, baselines=("heterofl",), salience={"metric": "l2"}, **still)
    content = compare(lazy, SEEDS, tmp_path / "out", Console(file=shown, width=400))
    for told in ("the full model starts at chance", "the run ends no better than it began"):
        assert shown.getvalue().count(told) == 1
        (line,) = [line for line in notes(content) if told in line]
        assert "(all 4 runs" in line
    assert {key: len(own) for key, own in content["hints"].items()} == dict.fromkeys(NAMES, 2)


def test_refused_updates_are_noted(compared) -> None:
    content = compared[1]
    assert not any("refused" in note for note in notes(content))
    strategies = {**content["strategies"], "heterofl": {**content["strategies"]["heterofl"], "rejected_updates": 3}}
    assert "updates refused (clients' records say why): heterofl 3" in notes({**content, "strategies": strategies})[-1]


def test_a_folder_of_another_configuration_is_refused_and_left_alone(compared) -> None:
    folder, before = compared[0], written(compared[0])
    with pytest.raises(UserError, match="raffm/seed-0 holds a run of another configuration: rounds is 1 there and 2 here"):
        compare(EXPERIMENT.model_copy(update={"rounds": 2}), SEEDS, folder)
    assert written(folder) == before


def test_a_folder_of_something_else_is_refused(out) -> None:
    (out / "heterofl" / "seed-1").mkdir(parents=True)
    (out / "heterofl" / "seed-1" / "precious").write_text("mine")
    with pytest.raises(UserError, match="heterofl/seed-1: exists and is not an empty folder"):
        compare(EXPERIMENT, SEEDS, out)
    (out / "heterofl" / "seed-1" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml: cannot be read"):
        compare(EXPERIMENT, SEEDS, out)
    assert [path.name for path in out.iterdir()] == ["heterofl"]


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.2, 0.6, 0.9], [3.0, 3.0, 3.0]])
def test_a_statistic_is_numpy_s(values) -> None:
    found = statistic(values)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["standard_error"] == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5)
    assert statistic(values[:1])["standard_error"] is None
    assert statistic([*values, None])["mean"] is None


def test_curves_of_seeds_are_averaged_at_the_sizes_they_share() -> None:
    first = [{"params_fraction": size, "metric": size} for size in (0.2, 0.5, 1.0)]
    second = [{"params_fraction": size, "metric": size + 0.1} for size in (0.3, 0.8, 1.0)]
    sizes, mean, error = mean_curve([first, second])
    assert (sizes[0], sizes[-1]) == (0.3, 1.0)
    np.testing.assert_allclose(mean, sizes + 0.05)
    np.testing.assert_allclose(error, 0.05)


def test_the_command_prints_the_table_and_where_it_is(compared, tmp_path, capsys) -> None:
    import shutil

    again, config = tmp_path / "again", tmp_path / "tiny.yaml"
    shutil.copytree(compared[0], again)
    config.write_text(dump(EXPERIMENT))
    assert cli(["compare", str(config), "--seeds", "0,1", "--out", str(again)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert str(again / "comparison.png") in said
    assert "first seen" not in said
    assert cli(["compare", str(config), "--seeds", "0,1", "--out", str(again), "--target", "0.01"]) == 0
    told = capsys.readouterr()
    assert "the full model is first seen at accuracy 1.0% or better by raffm after 0 rounds (" in " ".join(told.out.split())
    assert "reused" in told.err  # nothing runs again
    assert all(len(line) <= 100 for line in said.splitlines() if str(again) not in line and "over seeds" not in line)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "compare: expected the path of a YAML file"),
        (["CONFIG", "--seeds", "0,x"], "--seeds: expected whole numbers with commas between them, such as 0,1,2, got '0,x'"),
        (["CONFIG", "--seeds", "-1"], "got '-1'"),
        (["CONFIG", "--seeds", "1,1"], "--seeds: every seed once, got '1,1'"),
        (["CONFIG", "--seeds"], "--seeds: expected a value after it"),
        (["CONFIG", "--target", "85"], "--target: expected a part of 1, such as 0.85 for accuracy, got 85"),
        (["CONFIG", "--baselines", "[heterofll]"], "baselines: strategy 'heterofll' is not known (did you mean 'heterofl'?)"),
        (["CONFIG", "--clients.count", "5000", "--seeds", "0,1"], "clients.count: 5000 clients cannot share"),
    ],
)
def test_a_mistake_is_one_line_before_any_training(words, told, out, tmp_path, capsys, monkeypatch) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(EXPERIMENT))
    monkeypatch.setattr("raffm_ray.preparation.starting_parameters.pretrained", lambda *_: pytest.fail("training started"))
    given = [str(config) if word == "CONFIG" else word for word in words]
    assert cli(["compare", *given, *(["--out", str(out)] if given and given[-1] != "--seeds" else [])]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_the_csv_leaves_a_missing_value_empty(compared) -> None:
    summary = {**summary_of(compared[0], "raffm", 0), "curve_area": None}
    (row,) = csv.DictReader(io.StringIO(rows_of_runs({"raffm": {0: summary}})))
    assert row["curve_area"] == ""
    assert row["full_model"] == str(summary["full_model"])
