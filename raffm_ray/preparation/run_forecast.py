"""What a run is expected to take of memory and time, and at its end what it took, in lines and in the summary."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

from raffm_ray.basics.formatting import counted, human_bytes, human_seconds, time_unit
from raffm_ray.basics.machine import memory_bytes, peak_rss_bytes, resident_bytes
from raffm_ray.clients.messages import Call
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.preparation.memory_forecast import MemoryForecast, memory_forecast
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.preparation.time_forecast import Evaluation, forecast_seconds, rough_seconds
from raffm_ray.server.state import ServerState


def long_seconds(seconds: float) -> str:
    """150 -> `2.5 minutes`; shorter ones in seconds."""
    if seconds < 120:
        return human_seconds(seconds)
    size, name = time_unit(seconds)
    return f"{seconds / size:.1f} {name}"


class RunForecast:
    """Of one process' runs over one pool: memory before anything is trained, and the time of each strategy's rounds before its round 1.

    `runs`: the experiment's own strategy and its baselines, which run one after the other: what suffices for each is expected.
    """

    def __init__(self, runs: Sequence[Prepared], pool: Pool) -> None:
        now, workers = resident_bytes(), [held for held, _ in pool.memory()]
        found = [memory_forecast(prepared, now, workers) for prepared in runs]
        self.memory: MemoryForecast = found[0]
        for one in found[1:]:
            self.memory = self.memory.at_least(one)
        self.seconds: float | None = None
        self._since = monotonic()

    def memory_lines(self) -> list[str]:
        """Of the driver and a worker; and where they take more than this machine has, if all of them are on it."""
        memory, there = self.memory, memory_bytes()[0]
        workers = f"; {counted(memory.workers, 'worker')}: {human_bytes(memory.worker_bytes)} each" if memory.workers else ""
        lines = [f"expected peak of memory: driver {human_bytes(memory.driver_bytes)}{workers}"]
        if memory.together_bytes > there:
            lines.append(
                f"note: together {human_bytes(memory.together_bytes)}, and this machine has {human_bytes(there)}: fewer pool.workers, or a "
                "smaller local.batch_size or evaluation.batch_size, take less"
            )
        return lines

    def rough_line(self, runs: Sequence[Prepared], evaluation: Evaluation, pool: Pool) -> str:
        """Of the rounds of all strategies, before anything is trained."""
        seconds, others = rough_seconds(runs, evaluation, pool), len(runs) - 1
        told = f", those of {counted(others, 'baseline')} too" if others else ""
        return f"expected time of all rounds{told}: roughly {long_seconds(seconds)}; before round 1 it is measured more closely"

    def time_line(self, prepared: Prepared, state: ServerState, evaluation: Sequence[Call], pool: Pool) -> str:
        """Of the rounds after `state`, whose clock starts now; `evaluation`: the calls of one evaluation."""
        phases = pool.profile.taken()
        self.seconds = forecast_seconds(prepared, state, evaluation, pool)
        spent = sum(pool.profile.taken().values())
        for phase, seconds in (phases | {"forecast": phases.get("forecast", 0.0) + spent}).items():
            pool.profile.spent(phase, seconds)
        self._since = monotonic()
        left = prepared.setup.experiment.rounds - state.round
        evaluated = "its evaluation" if left == 1 else "their evaluations"
        return f"expected time of {counted(left, 'round')} with {evaluated}: {long_seconds(self.seconds)}"

    def content(self, pool: Pool) -> dict[str, Any]:
        """The forecasts, and under `measured` what was measured so far in their place, which is called at the rounds' end."""
        memory = self.memory
        return {
            "driver_bytes": memory.driver_bytes,
            "worker_bytes": memory.worker_bytes or None,
            "workers": memory.workers,
            "seconds": self.seconds,
            "measured": {
                "driver_bytes": peak_rss_bytes(),
                "worker_bytes": max((peak for _, peak in pool.memory()), default=None),
                "seconds": monotonic() - self._since,
            },
        }


def held_line(content: dict[str, Any]) -> str:
    """The `content` of a forecast in a line: what was expected and what was measured."""
    measured = content["measured"]
    parts = [
        f"{name} {human(content[key])} -> {human(measured[key])}"
        for name, key, human in (
            ("driver", "driver_bytes", human_bytes),
            ("worker", "worker_bytes", human_bytes),
            ("rounds", "seconds", long_seconds),
        )
        if content[key] is not None and measured[key] is not None
    ]
    return f"expected -> measured: {', '.join(parts)}"
