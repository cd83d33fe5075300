"""Starts and resumes whole runs, with their baselines."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from rich.console import Console
from torch import Tensor

from raffm_ray.basics.files import locked
from raffm_ray.basics.machine import return_freed_memory
from raffm_ray.clients.local_training import one_thread
from raffm_ray.data.tasks import is_packed
from raffm_ray.pool.worker_pool import Pool, check_pool, open_pool
from raffm_ray.preparation.baselines import check_baselines, with_protocol, with_strategy
from raffm_ray.preparation.client_parts import data_lines
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.run_forecast import RunForecast, long_seconds
from raffm_ray.preparation.starting_parameters import pretraining_of, starting_parameters
from raffm_ray.runs import checkpoint, evaluation
from raffm_ray.runs.callbacks import Callback, Listeners, OnRound, Report, StartedRun, told_of_failures
from raffm_ray.runs.extending import check_longer, extend, is_extended
from raffm_ray.runs.hints import start_notes
from raffm_ray.runs.loggers.table import chosen_loggers
from raffm_ray.runs.loop import Environment, train
from raffm_ray.runs.made_with import record_start
from raffm_ray.runs.mirror import CONFIG, Mirror
from raffm_ray.runs.progress import Display, Notes
from raffm_ray.runs.reader import SUMMARY, of_a_run, read_summary
from raffm_ray.runs.recorder import Recorder, check_origin, check_output, write_json
from raffm_ray.runs.resuming import experiment_in, opened, origin_of, recorded_rounds
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.early_stopping import last_common_round
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.plugins import plugins_of


def completed(
    prepared: Prepared, start: Tensor, folder: Path, environment: Environment, recorder: Recorder | None = None
) -> dict[str, Any]:
    """The summary of one strategy's run in a folder that this process holds: begun, gone on with, or read where it is finished. Listeners of
    the environment are not told of its end; without any, the experiment's loggers are told of all."""
    if (folder / SUMMARY).is_file():
        _keep_one(folder, prepared.setup.experiment)
        return read_summary(folder)
    experiment, tell = prepared.setup.experiment, _teller(environment.console)
    if environment.listeners is None:
        listeners = Listeners((), chosen_loggers(experiment), told_of_failures(environment.console))
        with listeners.watching():
            summary = completed(prepared, start, folder, replace(environment, listeners=listeners), recorder)
            listeners.end(summary)
        return summary
    recorder = recorder or opened(folder, experiment, tell)
    record_start(folder, recorder.rounds[-1].round if recorder.rounds else 0, experiment.pool.device)
    environment.listeners.start(StartedRun(folder, experiment, tuple(recorder.rounds)))
    with recorder.writing.settled():
        return train(prepared, start, recorder, environment)


def _keep_one(folder: Path, experiment: Experiment) -> None:
    """Of a finished run's checkpoints, where it ended while they were removed."""
    checkpoint.keep_one(folder / "checkpoints", last_common_round(experiment))


def _teller(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)


def simulate(
    experiment: Experiment,
    folder: Path | str,
    console: Console | None = None,
    pool: Pool | None = None,
    on_round: OnRound | None = None,
    mirror: Mirror | None = None,
    callbacks: Sequence[Callback] = (),
    report: Report | None = None,
) -> dict[str, Any]:
    """Runs an experiment and its baselines; writes `folder` and returns the content of its `summary.json`.

    Raises UserError before any training when something cannot work. A given pool is used and left open. `callbacks`: they are told of the
    experiment's own strategy, not of baselines; `on_round`: the same as `Callback(round=on_round)`. `mirror`: where the folder is copied
    to after every round. `report`: writes the report into the folder, before loggers and callbacks are told of the end.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    with one_thread():
        check_output(folder)
        if mirror is not None:
            mirror.begin()
        ready = _ready(experiment, folder, console, {}, pool)
        with _using(pool, ready.prepared, console) as used, locked(folder):
            return _run_all(ready, folder, Environment(used, console), None, _Told(_all(callbacks, on_round), mirror, report))


def resume(
    folder: Path | str,
    flags: Sequence[str] = (),
    console: Console | None = None,
    pool: Pool | None = None,
    on_round: OnRound | None = None,
    mirror: Mirror | None = None,
    plugins: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    report: Report | None = None,
) -> dict[str, Any]:
    """Goes on with a run that was interrupted: its records and summary become, to the bit, what `simulate` would have left, but for real
    time and memory.

    `flags`, `plugins`: as for `resuming.experiment_in`; with more `--rounds` than the run has, it is extended, finished or not, and becomes what
    `simulate` of so many rounds would have left. `mirror`: where the folder was fetched from and is copied to. A run that is finished otherwise
    stays as it is. `callbacks`, `report`: as for `simulate`. Raises UserError before any training, and with nothing changed, where the run cannot go on, a longer one would have
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
                console.print(f"{folder}: all rounds are done, nothing is trained", highlight=False, soft_wrap=True)
                return summary
            with of_a_run(folder):
                origin = dict[str, str](summary["made_from"])
        else:
            recorder = opened(folder, experiment, _teller(console))
            origin = recorder.origin
        ready = _ready(experiment, folder, console, origin, pool)
        with _using(pool, ready.prepared, console) as used:
            told = _Told(_all(callbacks, on_round), mirror, report)
            return _run_all(ready, folder, Environment(used, console), recorder, told)


def _all(callbacks: Sequence[Callback], on_round: OnRound | None) -> tuple[Callback, ...]:
    return (*callbacks, *([Callback(round=on_round)] if on_round is not None else []))


class _Told(NamedTuple):
    """Whom a run is told of besides its loggers: callbacks, a copy of its folder, who writes its report."""

    callbacks: Sequence[Callback]
    mirror: Mirror | None
    report: Report | None


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
    check_loggers(experiment)
    if pool is None:
        check_pool(experiment.pool, plugins_of(experiment.plugins))
    setup, tell = prepared.setup, _teller(console)
    beside = {one.shown: with_strategy(prepared, one) for one in experiment.baselines}
    state, padded = with_ruled_pace(setup, plain_state(setup.architecture)), setup.architecture.positions.get("tokens")
    for line in data_lines(prepared.task, prepared.parts, experiment.task.max_length, padded, is_packed(experiment.task)):
        tell(line)
    for line in start_notes(prepared, list(beside.values()), state, folder):
        tell(f"note: {line}")
    return _Ready(prepared=prepared, baselines=beside)


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


def check_loggers(experiment: Experiment) -> None:
    """Raises UserError where an experiment's loggers are not known, or the library of one is not installed."""
    chosen_loggers(experiment)


def _run_all(ready: _Ready, folder: Path, environment: Environment, recorder: Recorder | None, told: _Told) -> dict[str, Any]:
    """The starting parameters, the experiment's own strategy, and then each baseline in a folder inside."""
    tell, experiment = _teller(environment.console), ready.prepared.setup.experiment
    if not environment.console.quiet:
        return_freed_memory()
        forecast = RunForecast(runs := [ready.prepared, *ready.baselines.values()], environment.pool)
        for line in forecast.memory_lines():
            tell(line)
        if recorder is None:
            tell("timing a few steps on each worker, which are not used")
            tell(forecast.rough_line(runs, evaluation.calls_of, environment.pool))
        environment = replace(environment, forecast=forecast)
    begun, start = monotonic(), starting(ready.prepared, environment.console)
    return_freed_memory()
    seconds = monotonic() - begun

    def save() -> None:
        if told.mirror is not None:
            told.mirror.save(folder)

    def copy(row: RoundRow) -> None:
        if told.mirror is not None:
            told.mirror.try_to_save(folder, tell)

    def listeners(one: Prepared, callbacks: Sequence[Callback]) -> Listeners:
        failed = told_of_failures(environment.console)
        return Listeners((Callback(round=copy), *callbacks), chosen_loggers(one.setup.experiment), failed)

    recorder = recorder or _extended(folder, experiment, tell, save)
    own = listeners(ready.prepared, (*_exporting(experiment, environment.pool), *told.callbacks))
    with own.watching(), told.mirror.watching(folder, tell) if told.mirror else nullcontext():
        summary = completed(
            ready.prepared, start, folder, replace(environment, listeners=own, pretraining_seconds=seconds), recorder
        )
        if ready.baselines:
            summary["baselines"] = {}
            for name, one in ready.baselines.items():
                place, beside = folder / "baselines" / name, listeners(one, ())
                with locked(place), beside.watching():
                    longer = _extended(place, one.setup.experiment, tell, save)
                    there = replace(environment, listeners=beside, label=name)
                    summary["baselines"][name] = completed(one, start, place, there, longer)
                    if beside.started:
                        beside.end(summary["baselines"][name])
            write_json(folder / SUMMARY, summary)
        if told.report is not None:
            tell("drawing the report")
            told.report(folder)
        if not own.started:  # it had ended before, and was interrupted beside a baseline
            own.start(StartedRun(folder, experiment, tuple(recorded_rounds(folder))))
        own.end(summary)
    save()
    return summary


def _exporting(experiment: Experiment, pool: Pool) -> list[Callback]:
    """What exports rounds as metrics, where that is wanted."""
    wanted = experiment.pool.metrics
    if wanted or (wanted is None and experiment.pool.backend == "ray" and os.environ.get("RAY_ADDRESS")):
        from raffm_ray.runs.loggers.telemetry import exporting

        return [exporting(experiment, pool)]
    return []


def starting(prepared: Prepared, console: Console, notes: Notes | None = None) -> Tensor:
    """The flat parameters before round 1, with a bar for the training that they may need. `notes`: where several runs tell theirs. Raises UserError as `trained`."""
    experiment = prepared.setup.experiment
    with Display(console, experiment.name, experiment.rounds) as display:
        described, times = pretraining_of(prepared).described(), list[float]()

        def progress(step: int, steps: int, loss: float) -> None:
            if not step:
                display.stage(described, 100)
                return
            times.append(monotonic())
            if len(times) == 3:  # the first takes longer
                seconds = (times[-1] - times[0]) / max(1, step - 1) * (steps - step)
                display.doing(f"pretraining: about {long_seconds(seconds)} more")
            display.advance(100 * step / steps, f"pretraining: step {step}/{steps}" + f"  loss {loss:.3f}" * isfinite(loss))

        return starting_parameters(prepared, progress, (notes or Notes(console)).tell)
