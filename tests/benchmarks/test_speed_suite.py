"""The speed suite runs, in small, and both sides of every ratio do the same work. No time is asserted."""

import json
import math
import os

import numpy as np
import pytest
import torch
from rich.console import Console

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.benchmarks.bare_ray import CHANGE, adders, bare_round, dismiss
from raffm_ray.benchmarks.empty_rounds import LOCAL
from raffm_ray.benchmarks.measurement import Bench, Row, interleaved, peak_growth
from raffm_ray.benchmarks.plain_loop import train_clients
from raffm_ray.benchmarks.rounds import Rounds, nothing_runner, numpy_of, starting_flat
from raffm_ray.benchmarks.scale import registered
from raffm_ray.benchmarks.subnetworks import FRACTIONS, client_of, plan_of_fraction
from raffm_ray.benchmarks.suite import CASES, Options, run_suite, table_of
from raffm_ray.benchmarks.synthetic_data import synthetic, vit
from raffm_ray.benchmarks.training import WORKLOADS, batches_of
from raffm_ray.benchmarks.warm_processes import WarmProcesses, in_fresh_process
from raffm_ray.cli.main import main as cli
from raffm_ray.models.architecture import new_model
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import new_state

KEYS = {
    "what",
    "unit",
    "ours",
    "limit",
    "target",
    "judged",
    "at_least",
    "details",
    "ours_median",
    "limit_median",
    "ratio",
    "value",
    "quartiles",
    "met",
}


@pytest.fixture(scope="module")
def suite(four_cores, tmp_path_factory):
    """All cases, most of them without starting workers on Ray, which each would do for itself."""
    folder = tmp_path_factory.mktemp("bench")
    on_ray = run_suite(["noop-small"], folder / "ray", Console(quiet=True), options=Options(workers=1, repetitions=1, quick=True))
    others = [name for name in CASES if name not in ("noop-small", "gpu")]
    content = run_suite(
        names=others,
        folder=folder / "run",
        console=Console(quiet=True),
        options=Options(workers=1, repetitions=1, quick=True, backend="in_process"),
    )
    return on_ray, content, folder


@pytest.mark.parametrize("name", [name for name in CASES if name != "gpu"])  # which has tests of its own
def test_every_case_runs_in_small_and_is_written_down(suite, name) -> None:
    on_ray, content, folder = suite
    content, folder = (on_ray, folder / "ray") if name == "noop-small" else (content, folder / "run")
    case = json.loads((folder / "bench.json").read_text())["cases"][name]
    assert case["rows"]
    assert case["says"] == CASES[name].says
    assert case["seconds"] > 0
    for row in case["rows"]:
        assert set(row) == KEYS
        assert len(row["ours"]) == len(row["limit"]) == 1
        assert all(math.isfinite(value) for value in (*row["ours"], *row["limit"]))
        assert row["met"] is None or isinstance(row["met"], bool)
    assert any(row["target"] is not None for row in case["rows"])
    assert len(case["rows"]) == len(content["rows"][name])


def test_the_json_says_what_the_numbers_depend_on(suite) -> None:
    for content, backend in zip(suite, ("ray", "in_process"), strict=False):
        assert {"processor", "cores", "torch", "ray", "threads_a_worker", "load_before"} <= set(content["machine"])
        assert (content["machine"]["workers"], content["quick"], content["backend"]) == (1, True, backend)


def test_the_table_has_a_line_a_row(suite) -> None:
    rows = suite[1]["rows"]
    assert table_of(rows, "").row_count == sum(map(len, rows.values()))


def trained_by_us(prepared, flat, job, context) -> torch.Tensor:
    update, summed = prepared.runner().block(context, flat, [job])
    return torch.from_numpy(flat) + torch.from_numpy(summed) / sum(update.weights.values())


def trained_by_the_plain_loop(prepared, flat, context, *jobs) -> torch.Tensor:
    architecture = prepared.setup.architecture
    model = new_model(architecture, 1).train()
    model.load_state_dict(views(torch.from_numpy(flat.copy()), architecture.shapes), strict=False)
    start = {name: values.clone() for name, values in model.state_dict().items()}
    clients = [batches_of(prepared, context, job) for job in jobs]
    train_clients(model, start, prepared.task.clients.batch(slice(None)), clients, prepared.setup.experiment.local)
    return flatten(dict(model.named_parameters()), architecture.shapes)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_plain_loop_trains_what_a_client_trains(name) -> None:
    workload = WORKLOADS[name].shortened()
    workload.config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    prepared = workload.prepared()
    flat = numpy_of(starting_flat(prepared))
    work = begin_round(prepared.setup, new_state(torch.from_numpy(flat)))
    first, other = work.jobs[:2]
    ours = trained_by_us(prepared, flat, other, work.context)
    plain = trained_by_the_plain_loop(prepared, flat, work.context, first, other)  # the second begins anew
    moved = (ours - torch.from_numpy(flat)).abs().max()
    assert moved > 5e-4
    # Adam's first steps are signs: where a gradient is next to nothing, rounding decides.
    assert ((ours - plain).abs() > 1e-5).float().mean() < 1e-3
    control = trained_by_the_plain_loop(prepared, flat, work.context, first)
    assert ((ours - control).abs() > 1e-5).float().mean() > 0.1


def test_a_client_that_does_nothing_is_added_up_alike_here_and_by_bare_ray(four_cores) -> None:
    prepared = synthetic(
        config=vit(8, 1, 1),
        kind="grey",
        clients=10,
        per_round=5,
        local=LOCAL,
        examples=1,
        strategy={"name": "full", "client_weight": "equal"},
    )
    start = starting_flat(prepared)
    rounds = Rounds(prepared.setup, InProcessPool(nothing_runner(prepared)), new_state(start))
    rounds.run()
    actors = adders(2)
    summed = torch.from_numpy(bare_round(actors, start.numpy(), 5))
    dismiss(actors)
    assert torch.allclose(rounds.state.parameters, start + summed / 5, rtol=1e-6)
    assert torch.allclose(rounds.state.parameters, start * (1 + CHANGE), rtol=1e-6)
    assert not torch.allclose(rounds.state.parameters, start, rtol=1e-6)


@pytest.mark.parametrize("name", ["ViT", "MiniLM"])
def test_fractions_are_of_the_encoder(name) -> None:
    setup = client_of(name, quick=True).prepared.setup
    inside = setup.costs(Plan()).layer_params
    for fraction in FRACTIONS:
        kept = setup.costs(plan_of_fraction(client_of(name, quick=True).prepared, fraction)).layer_params
        assert 0.75 * fraction * inside < kept <= fraction * inside


def test_memory_is_seen_at_its_peak_also_when_it_is_freed() -> None:
    def take() -> None:
        torch.ones(16_000_000)

    grown, method = peak_growth(take)
    if "VmHWM" not in method:
        pytest.skip("the peak cannot be reset here")
    assert 60e6 < grown < 80e6
    assert peak_growth(lambda: None)[0] < 10e6


def test_registering_clients_is_measured_in_a_process_of_its_own() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    seconds, grown = registered(20, 40)
    assert seconds > 0
    assert grown >= 0


def test_a_crew_keeps_its_memory_and_tells_its_errors() -> None:
    processes = WarmProcesses(2)
    try:
        assert processes.each(dict.setdefault, [("given", 1), ("given", 2)]) == [1, 2]
        assert processes.each(dict.setdefault, [("given", 3), ("given", 4)]) == [1, 2]
        with pytest.raises(RuntimeError, match="KeyError: 'missing'"):
            processes.each(dict.__getitem__, [("given",), ("missing",)])
    finally:
        processes.close()


def test_repetitions_alternate_which_comes_first() -> None:
    order = []
    bench = Bench(workers=1, repetitions=2, quick=True, progress=lambda *_: None, processes=WarmProcesses(1))
    given = interleaved(bench, 2, [lambda: order.append("a") or 1, lambda: order.append("b") or 2])
    assert order == ["a", "b", "b", "a"]
    assert given == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("row", "value", "met"),
    [
        (Row("", "s", (2.0, 6.0, 3.0), (1.0, 2.0, 2.0), 2.0), 2.0, True),
        (Row("", "s", (2.0, 6.0, 3.0), (1.0, 2.0, 2.0), 1.9), 2.0, False),
        (Row("", "s", (2.0, 6.0, 3.0), (1.0, 2.0, 2.0), 1.5, at_least=True), 2.0, True),
        (Row("", "s", (2.0, 6.0, 3.0), (1.0, 2.0, 2.0), 2.5, "ours"), 3.0, False),
        (Row("", "s", (2.0, 6.0, 3.0), (1.0, 2.0, 2.0), 1.0, "extra"), 1.0, True),
        (Row("", "s", (2.0,), (1.0,)), 2.0, None),
    ],
)
def test_a_target_bounds_the_median_of_what_it_is_about(row, value, met) -> None:
    assert row.value == value
    assert row.met is met


def test_quartiles_are_of_what_is_judged() -> None:
    assert Row("", "s", (1.0, 2.0, 3.0, 4.0, 5.0), (2.0,) * 5).quartiles == (1.0, 2.0)  # of the ratios


def test_the_suite_does_not_write_over_anything(out) -> None:
    out.mkdir()
    (out / "there").touch()
    with pytest.raises(UserError, match="nothing is overwritten"):
        run_suite(names=["start"], folder=out, console=Console(quiet=True), options=Options(workers=1, repetitions=1, quick=True))


def test_help_lists_the_cases(capsys) -> None:
    assert cli(["bench", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in CASES)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digit"], "bench: 'digit' is not one of them (did you mean 'digits'?"),
        (["digits", "--quik"], "bench: '--quik' is not one of them (did you mean '--quick'?"),
        (["digits", "--repetitions", "0"], "--repetitions: expected a whole number of at least 1, got '0'"),
        (["--workers", "two"], "--workers: expected a whole number of at least 1, got 'two'"),
    ],
)
def test_a_wrong_case_or_flag_is_one_line(words, told, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_runs_named_cases_and_says_where_they_are(four_cores, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["bench", "extract-aggregate", "--quick", "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert "the numbers mean nothing" in told
    assert "written to runs/bench-" in told
    (folder,) = (tmp_path / "runs").iterdir()
    assert list(json.loads((folder / "bench.json").read_text())["cases"]) == ["extract-aggregate"]
    assert np.isfinite(json.loads((folder / "bench.json").read_text())["cases"]["extract-aggregate"]["seconds"])
