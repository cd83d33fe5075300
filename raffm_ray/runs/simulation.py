"""Starts and resumes whole runs, with their baselines."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor

from raffm_ray.basics.files import locked
from raffm_ray.clients.local_training import one_thread
from raffm_ray.pool.worker_pool import Pool, check_pool, open_pool
from raffm_ray.preparation.baselines import check_baselines, with_strategy
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs import checkpoint
from raffm_ray.runs.loop import Environment, OnRound, no_callback, train
from raffm_ray.runs.made_with import record_start
from raffm_ray.runs.mirror import Mirror
from raffm_ray.runs.progress import Display
from raffm_ray.runs.reader import SUMMARY, of_a_run, read_summary
from raffm_ray.runs.recorder import Recorder, RoundRow, check_origin, check_output, write_json
from raffm_ray.runs.resuming import experiment_in, opened, origin_of
from raffm_ray.settings.experiment import Experiment


def completed(
    prepared: Prepared, start: Tensor, folder: Path, environment: Environment, recorder: Recorder | None = None
) -> dict[str, Any]:
    """The summary of one strategy's run in a folder that this process holds: begun, gone on with, or read where it is finished."""
    if (folder / SUMMARY).is_file():
        checkpoint.remove(folder / "checkpoints")  # where it ended in between
        return read_summary(folder)
    recorder = recorder or opened(folder, prepared.setup.experiment, _teller(environment.console))
    experiment = prepared.setup.experiment
    record_start(folder, recorder.rounds[-1].round if recorder.rounds else 0, experiment.pool.device)
    return train(prepared, start, recorder, environment)


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, soft_wrap=True)


def simulate(
    experiment: Experiment,
    folder: Path | str,
    console: Console | None = None,
    pool: Pool | None = None,
    on_round: OnRound = no_callback,
    mirror: Mirror | None = None,
) -> dict[str, Any]:
    """Runs an experiment and its baselines; writes `folder` and returns the content of its `summary.json`.

    Raises UserError before any training when something cannot work. A given pool is used and left open. `on_round`: see `loop.OnRound`;
    it is told of the experiment's own strategy, not of baselines. `mirror`: where the folder is copied to after every round.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    with one_thread():
        check_output(folder)
        if mirror is not None:
            mirror.begin()
        ready = _ready(experiment, folder, console, {}, pool)
        with _using(pool, ready.prepared, console) as used, locked(folder):
            return _run_all(ready, folder, Environment(used, console, on_round), None, mirror)


def resume(
    folder: Path | str,
    flags: Sequence[str] = (),
    console: Console | None = None,
    pool: Pool | None = None,
    on_round: OnRound = no_callback,
    mirror: Mirror | None = None,
) -> dict[str, Any]:
    """Goes on with a run that was interrupted: its records and summary become, to the bit, what `simulate` would have left, but for real
    time and memory.

    `flags`: as for `resuming.experiment_in`; `mirror`: where the folder was fetched from and is copied to. A run that is finished stays as it is. Raises UserError before any training where the run
    cannot go on, what it is made from has changed, or another process is at it.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    experiment, recorder = experiment_in(folder, flags), None
    with one_thread(), locked(folder):
        if (folder / SUMMARY).is_file():
            summary = read_summary(folder)
            if {one.shown for one in experiment.baselines} <= set(summary.get("baselines", {})):
                checkpoint.remove(folder / "checkpoints")  # where it ended in between
                console.print(f"{folder}: the run is finished, nothing is left to do", highlight=False, soft_wrap=True)
                return summary
            with of_a_run(folder):
                origin = dict[str, str](summary["made_from"])
        else:
            recorder = opened(folder, experiment, _teller(console))
            origin = recorder.origin
        ready = _ready(experiment, folder, console, origin, pool)
        with _using(pool, ready.prepared, console) as used:
            return _run_all(ready, folder, Environment(used, console, on_round), recorder, mirror)


class _Ready(NamedTuple):
    """The experiment and its baselines, checked, and the flat parameters that all start from."""

    prepared: Prepared
    baselines: Mapping[str, Prepared]
    start: Tensor


def _ready(experiment: Experiment, folder: Path, console: Console, origin: Mapping[str, str], pool: Pool | None) -> _Ready:
    """Raises UserError where the experiment or a baseline cannot work, or is not the run that `origin` is of."""
    check_baselines(experiment)
    prepared = prepare(experiment)
    check_origin(folder, origin, origin_of(prepared))
    if pool is None:
        check_pool(experiment.pool)
    beside = {one.shown: with_strategy(prepared, one) for one in experiment.baselines}
    for line in prepared.task.notes:
        console.print(f"note: {line}", highlight=False)
    for name in sorted(set(experiment.fleet.budgets) - set(prepared.setup.budgets)):
        console.print(f"note: fleet.budgets.{name} is not used: no client of this fleet has that device", highlight=False)
    return _Ready(prepared, beside, starting(prepared, console))


@contextmanager
def _using(pool: Pool | None, prepared: Prepared, console: Console) -> Iterator[Pool]:
    """The given pool, which is left open, or one that is closed at the end."""
    setup = prepared.setup
    used = pool or open_pool(prepared.runner(), setup.experiment.pool, _teller(console), setup.classes)
    try:
        yield used
    finally:
        if pool is None:
            used.close()


def _run_all(
    ready: _Ready, folder: Path, environment: Environment, recorder: Recorder | None, mirror: Mirror | None
) -> dict[str, Any]:
    """The experiment's own strategy, and then each baseline in a folder inside."""

    def copied(row: RoundRow) -> None:
        if mirror is not None:
            mirror.try_to_save(folder, _teller(environment.console))

    def copied_and_told(row: RoundRow) -> None:
        copied(row)
        on_round(row)

    on_round = _exporting(ready.prepared.setup.experiment, environment.pool, environment.on_round)
    summary = completed(ready.prepared, ready.start, folder, replace(environment, on_round=copied_and_told), recorder)
    if ready.baselines:
        summary["baselines"] = {}
        for name, one in ready.baselines.items():
            place = folder / "baselines" / name
            with locked(place):
                summary["baselines"][name] = completed(one, ready.start, place, replace(environment, on_round=copied))
        write_json(folder / SUMMARY, summary)
    if mirror is not None:
        mirror.save(folder)
    return summary


def _exporting(experiment: Experiment, pool: Pool, on_round: OnRound) -> OnRound:
    """What is told of rounds, which exports them besides where that is wanted."""
    wanted = experiment.pool.metrics
    if wanted or (wanted is None and experiment.pool.backend == "ray" and os.environ.get("RAY_ADDRESS")):
        from raffm_ray.runs.telemetry import exporting

        return exporting(experiment, pool, on_round)
    return on_round


def starting(prepared: Prepared, console: Console) -> Tensor:
    """The flat parameters before round 1, with a bar for the training that they may need. Raises UserError as `trained`."""
    experiment = prepared.setup.experiment
    with Display(console, experiment.name, experiment.rounds) as display:
        display.stage(f"pretraining on {len(prepared.task.public)} public examples (cached)", 100)
        return starting_parameters(
            prepared, lambda step, steps: display.advance(100 * step / steps), lambda line: console.print(line, highlight=False)
        )
