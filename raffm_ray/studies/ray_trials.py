"""Several trials at a time on Ray: each is a task on one core, whose clients run in its own process."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.plugins import Plugin, use
from raffm_ray.pool.ray_start import connect
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.studies.trial import Outcome, TrialTask, run_trial

Reports = Callable[[int, int, float], bool]
"""(trial, round, value) -> whether the trial is to stop."""


class TrialReporter:
    """Where tasks ask whether to stop, and wait for the driver's answer: only the driver touches the study's storage."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[int, int, float]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[bool]] = {}

    async def report(self, number: int, round_number: int, value: float) -> bool:
        """Asks; a task's side."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        await self._asked.put((number, round_number, value))
        return await answer

    async def asked(self) -> tuple[int, int, float]:
        """Waits for a report; the driver's side."""
        return await self._asked.get()

    async def answer(self, number: int, stop: bool) -> None:
        """Answers a report; the driver's side."""
        self._answers.pop(number).set_result(stop)


def _run(work: TrialTask, desk: Any, plugins: Sequence[Plugin]) -> Outcome:
    use(plugins)

    def report(round_number: int, value: float) -> bool:
        stop: bool = ray.get(desk.report.remote(work.number, round_number, value))
        return stop

    return run_trial(work, report)


def check_capacity(parallel: int, settings: PoolSettings) -> None:
    """Starts or joins Ray. Raises UserError where it has less than every trial needs."""
    connect(settings)
    there, share = ray.cluster_resources(), float(settings.gpus_per_worker)
    if parallel > there.get("CPU", 0) or parallel * share > there.get("GPU", 0) + 1e-6:
        needed = f"{parallel} cores" + (f" and {parallel * share:g} GPUs" if share else "")
        raise UserError(
            f"parallel: {parallel} trials at a time need {needed}; Ray has {there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )


def run_trials_in_parallel(
    works: Iterator[TrialTask],
    parallel: int,
    settings: PoolSettings,
    report: Reports,
    watched: bool,
    plugins: Sequence[Plugin] = (),
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes of trials as they end, `parallel` of them at a time. The next work is asked for when there is room for it.

    A trial whose process is lost goes on from its checkpoint, `settings.attempts` times in all. `plugins`: what its process
    imports first.
    """
    task: Any = ray.remote(num_cpus=1, num_gpus=float(settings.gpus_per_worker), max_retries=0)(_run)
    desk: Any = ray.remote(num_cpus=0)(TrialReporter).remote() if watched else None
    question = desk.asked.remote() if desk else None
    running: dict[Any, tuple[TrialTask, int]] = {}
    try:
        while True:
            while len(running) < parallel and (work := next(works, None)) is not None:
                running[task.remote(work, desk, plugins)] = (work, 1)
            if not running:
                return
            (ready,), _ = ray.wait([*running, *([question] if question else [])])
            if desk and ready == question:
                number, round_number, value = ray.get(question)
                desk.answer.remote(number, report(number, round_number, value))
                question = desk.asked.remote()
                continue
            work, attempt = running.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                if attempt < settings.attempts:
                    running[task.remote(work, desk, plugins)] = (work, attempt + 1)
                    continue
                outcome = Outcome(reason=f"its process was lost {attempt} times: {type(error).__name__}")
            yield work.number, outcome
    finally:
        for promise in running:
            ray.cancel(promise, force=True)
        if desk:
            ray.kill(desk)
