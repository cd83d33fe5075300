"""A run as events for TensorBoard, in the folder `tensorboard` of the run's folder."""

import json
import shutil

import yaml

from raffm_ray.runs.callbacks import Callback, StartedRun
from raffm_ray.runs.loggers.content import numbers_of, settings_of
from raffm_ray.runs.rounds.rows import RoundRow


def write_events(run: StartedRun) -> Callback:
    """Numbers of rounds as scalars; settings and summary as texts."""
    from torch.utils.tensorboard import SummaryWriter

    # Drawn anew from the records: TensorBoard reads event files in the order of their names, which hold whole seconds and a counter,
    # so that what one of them takes back (purge_step) could follow what a later one shows.
    folder = run.folder / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    events = SummaryWriter(str(folder))

    def add(row: RoundRow) -> None:
        for tag, value in numbers_of(row).items():
            events.add_scalar(tag, value, row.round)

    def show(row: RoundRow) -> None:
        add(row)
        events.flush()

    def end(summary: dict[str, object]) -> None:
        events.add_text("summary", f"```json\n{json.dumps(summary, indent=2)}\n```")
        events.close()

    events.add_text("settings", f"```yaml\n{yaml.safe_dump(settings_of(run.experiment), sort_keys=False)}\n```")
    for row in run.rounds:
        add(row)
    events.flush()
    return Callback(round=show, end=end, interrupted=lambda _: events.close())
