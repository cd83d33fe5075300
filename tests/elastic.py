"""A run on a cluster that stops where it is told to, so that nodes can join and be lost meanwhile: `elastic.py CONFIG OUT FOLDER`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from raffm_ray.pool.call_scheduler import CallScheduler
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import load


def main(config: str, out: str, place: str) -> None:
    """Waits after every round, and within round 4 once its first block has come, for a file of the moment's name and `.done`."""
    lost: list[int] = []
    finish, real = CallScheduler.finish_call, CallScheduler.actor_lost

    def wait(moment: str) -> None:
        (Path(place) / moment).touch()
        while not (Path(place) / f"{moment}.done").exists():
            time.sleep(0.05)

    def finishing(scheduler: CallScheduler, slot: Any) -> None:
        finish(scheduler, slot)
        if scheduler.calls[0].context.round == 4 and not (Path(place) / "within-4").exists():
            wait("within-4")

    def losing(scheduler: CallScheduler, slot: Any, error: Exception) -> None:
        lost.append(slot.in_flight[0].call)
        real(scheduler, slot, error)

    CallScheduler.finish_call, CallScheduler.actor_lost = finishing, losing
    summary = simulate(load(config), out, on_round=lambda row: wait(f"after-{row.round}"))
    (Path(place) / "told").write_text(json.dumps({"sha256": summary["params_sha256"], "lost": len(lost)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
