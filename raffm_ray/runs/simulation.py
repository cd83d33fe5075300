"""Starts and resumes whole runs, with their baselines."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor

from raffm_ray.basics.files import locked
from raffm_ray.basics.machine import fast_bfloat16, return_freed_memory
from raffm_ray.clients.local_training import one_thread
from raffm_ray.data.data_summary import data_summary
from raffm_ray.pool.worker_pool import Pool, check_pool, device_of, open_pool
from raffm_ray.preparation.baselines import check_baselines, with_protocol, with_strategy
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.run_forecast import RunForecast
from raffm_ray.preparation.starting_parameters import pretraining_of, starting_parameters
from raffm_ray.runs import checkpoint
from raffm_ray.runs.extending import check_longer, extend, is_extended
from raffm_ray.runs.loop import Environment, OnRound, no_callback, train
from raffm_ray.runs.made_with import record_start
from raffm_ray.runs.mirror import CONFIG, Mirror
from raffm_ray.runs.progress import Display
from raffm_ray.runs.reader import SUMMARY, of_a_run, read_summary
from raffm_ray.runs.recorder import Recorder, RoundRow, check_origin, check_output, write_json
from raffm_ray.runs.resuming import experiment_in, opened, origin_of
from raffm_ray.server.early_stopping import last_common_round
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.residual_pace import hollow_notes, with_ruled_pace
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.plugins import plugins_of


def completed(
    prepared: Prepared, start: Tensor, folder: Path, environment: Environment, recorder: Recorder | None = None
) -> dict[str, Any]:
    """The summary of one strategy's run in a folder that this process holds: begun, gone on with, or read where it is finished."""
    if (folder / SUMMARY).is_file():
        _keep_one(folder, prepared.setup.experiment)
        return read_summary(folder)
    recorder = recorder or opened(folder, prepared.setup.experiment, _teller(environment.console))
    experiment = prepared.setup.experiment
    record_start(folder, recorder.rounds[-1].round if recorder.rounds else 0, experiment.pool.device)
    return train(prepared, start, recorder, environment)


def _keep_one(folder: Path, experiment: Experiment) -> None:
    """Of a finished run's checkpoints, where it ended while they were removed."""
    checkpoint.keep_one(folder / "checkpoints", last_common_round(experiment))


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
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """Goes on with a run that was interrupted: its records and summary become, to the bit, what `simulate` would have left, but for real
    time and memory.

    `flags`, `plugins`: as for `resuming.experiment_in`; with more `--rounds` than the run has, it is extended, finished or not, and becomes what
    `simulate` of so many rounds would have left. `mirror`: where the folder was fetched from and is copied to. A run that is finished otherwise
    stays as it is. Raises UserError before any training, and with nothing changed, where the run cannot go on, a longer one would have
    come another way, what it is made from has changed, or another process is at it.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    begun, experiment, recorder = experiment_in(folder, (), plugins), experiment_in(folder, flags, plugins), None
    with one_thread(), locked(folder):
        if is_extended(begun, experiment):
            origin = _origin_of_longer(folder, begun, experiment)
        elif (folder / SUMMARY).is_file():
            summary = read_summary(folder)
            if {one.shown for one in experiment.baselines} <= set(summary.get("baselines", {})):
                _keep_one(folder, experiment)
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


def _origin_of_longer(folder: Path, begun: Experiment, experiment: Experiment) -> Mapping[str, str]:
    """What a run that is to be extended is made from. Raises UserError where it cannot be, or one of its baselines cannot."""
    check_longer(begun, experiment, folder)
    for one in experiment.baselines:
        place, own = folder / "baselines" / one.shown, with_protocol(experiment, one)
        if (place / CONFIG).is_file() and is_extended(there := experiment_in(place), own):
            check_longer(there, own, place)
            opened(place, own, lambda _: None, there)
    return opened(folder, experiment, lambda _: None, begun).origin


def _extended(folder: Path, experiment: Experiment, tell: Callable[[str], None], save: Callable[[], None]) -> Recorder | None:
    """A recorder for a longer run than the folder holds, which is one of the longer run from now on; None where it is that already, or
    holds none. `save`: as for `extend`."""
    if not (folder / CONFIG).is_file() or not is_extended(begun := experiment_in(folder), experiment):
        return None
    check_longer(begun, experiment, folder)
    recorder = opened(folder, experiment, tell, begun)
    extend(folder, begun, experiment, recorder.rounds[-1].round if recorder.rounds else -1, save)
    return recorder


class _Ready(NamedTuple):
    """The experiment and its baselines, checked."""

    prepared: Prepared
    baselines: Mapping[str, Prepared]


def _ready(experiment: Experiment, folder: Path, console: Console, origin: Mapping[str, str], pool: Pool | None) -> _Ready:
    """Raises UserError where the experiment or a baseline cannot work, or is not the run that `origin` is of."""
    check_baselines(experiment)
    prepared = prepare(experiment)
    check_origin(folder, origin, origin_of(prepared))
    if pool is None:
        check_pool(experiment.pool, plugins_of(experiment.plugins))
    setup = prepared.setup
    beside = {one.shown: with_strategy(prepared, one) for one in experiment.baselines}
    for line in data_summary(prepared.task, prepared.shares, experiment.task.max_length):
        console.print(line, highlight=False, soft_wrap=True)
    for line in prepared.task.notes:
        console.print(f"note: {line}", highlight=False)
    for name in sorted(set(experiment.fleet.budgets) - set(prepared.setup.budgets)):
        console.print(f"note: fleet.budgets.{name} is not used: no client of this fleet has that device", highlight=False)
    for line in hollow_notes(setup, with_ruled_pace(setup, plain_state(setup.architecture))):
        console.print(f"note: {line}", highlight=False, soft_wrap=True)
    if slow := slow_precision(experiment):
        console.print(f"note: {slow}", highlight=False, soft_wrap=True)
    return _Ready(prepared=prepared, baselines=beside)


def slow_precision(experiment: Experiment) -> str | None:
    """What to tell of a precision that does not pay on this processor, which is taken for the workers'; None of others.

    It is no mistake: the same run may go on elsewhere, and a small part of it be tried here.
    """
    if experiment.local.precision == "float32" or device_of(experiment.pool) != "cpu" or fast_bfloat16():
        return None
    return f"local.precision: {experiment.local.precision} pays on processors with AMX; on this one float32 is faster, as far as was measured"


@contextmanager
def _using(pool: Pool | None, prepared: Prepared, console: Console) -> Iterator[Pool]:
    """The given pool, which is left open, or one that is closed at the end."""
    setup = prepared.setup
    used = pool or open_pool(prepared.runner(), setup.experiment.pool, _teller(console), setup.device_types)
    try:
        yield used
    finally:
        if pool is None:
            used.close()


def _run_all(
    ready: _Ready, folder: Path, environment: Environment, recorder: Recorder | None, mirror: Mirror | None
) -> dict[str, Any]:
    """The starting parameters, the experiment's own strategy, and then each baseline in a folder inside."""
    tell = _teller(environment.console)
    if not environment.console.quiet:
        return_freed_memory()
        forecast = RunForecast([ready.prepared, *ready.baselines.values()], environment.pool)
        for line in forecast.memory_lines():
            tell(line)
        environment = replace(environment, forecast=forecast)
    begun = monotonic()
    start = starting(ready.prepared, environment.console)
    return_freed_memory()
    seconds = monotonic() - begun

    def save() -> None:
        if mirror is not None:
            mirror.save(folder)

    def copied(row: RoundRow) -> None:
        if mirror is not None:
            mirror.try_to_save(folder, tell)

    def copied_and_told(row: RoundRow) -> None:
        copied(row)
        on_round(row)

    on_round = _exporting(ready.prepared.setup.experiment, environment.pool, environment.on_round)
    recorder = recorder or _extended(folder, ready.prepared.setup.experiment, tell, save)
    own = replace(environment, on_round=copied_and_told, pretraining_seconds=seconds)
    summary = completed(ready.prepared, start, folder, own, recorder)
    if ready.baselines:
        summary["baselines"] = {}
        for name, one in ready.baselines.items():
            place = folder / "baselines" / name
            with locked(place):
                longer = _extended(place, one.setup.experiment, tell, save)
                summary["baselines"][name] = completed(
                    one, start, place, replace(environment, on_round=copied, label=name), longer
                )
        write_json(folder / SUMMARY, summary)
    save()
    return summary


def _exporting(experiment: Experiment, pool: Pool, on_round: OnRound) -> OnRound:
    """What is told of rounds, which exports them besides where that is wanted."""
    wanted = experiment.pool.metrics
    if wanted or (wanted is None and experiment.pool.backend == "ray" and os.environ.get("RAY_ADDRESS")):
        from raffm_ray.runs.telemetry import exporting

        return exporting(experiment, pool, on_round)
    return on_round


FORECAST_STEPS = 3
"""Steps of pretraining after which is said how long it will take."""


def starting(prepared: Prepared, console: Console) -> Tensor:
    """The flat parameters before round 1, with a bar for the training that they may need. Raises UserError as `trained`."""
    experiment = prepared.setup.experiment
    with Display(console, experiment.name, experiment.rounds) as display:
        described, times = pretraining_of(prepared).described(), list[float]()

        def progress(step: int, steps: int, loss: float) -> None:
            times.append(monotonic())
            if step == FORECAST_STEPS:
                seconds = (times[-1] - times[0]) / (step - 1) * (steps - step)
                display.stage(f"{described}, about {seconds:.0f} s more", 100)
            display.advance(100 * step / steps, f"pretraining: step {step}/{steps}  loss {loss:.3f}")

        return starting_parameters(prepared, progress, lambda line: console.print(line, highlight=False, soft_wrap=True))
