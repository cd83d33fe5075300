"""A run's rounds as one CSV file, `rounds.csv` in the run's folder."""

import csv

from raffm_ray.runs.callbacks import Callback, StartedRun
from raffm_ray.runs.loggers.content import numbers_of
from raffm_ray.runs.rounds.rows import RoundRow


def write_csv(run: StartedRun) -> Callback:
    """A line a round; what a round lacks is empty. Round 0, which is evaluated, has the names of all device types."""
    path, columns = run.folder / "rounds.csv", list[str]()

    def add(row: RoundRow) -> None:
        values = {"round": row.round, **numbers_of(row)}
        if not columns:
            columns.extend(dict.fromkeys((*values, "train_loss")))
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(values)

    path.unlink(missing_ok=True)
    for row in run.rounds:
        add(row)
    return Callback(round=add)
