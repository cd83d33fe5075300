"""A run as one of MLflow: in a SQLite file of the run's folder, or where MLFLOW_TRACKING_URI says."""

import logging
import os
import re
from time import time
from typing import Any

from raffm_ray.runs.callbacks import Callback, StartedRun
from raffm_ray.runs.loggers.content import ARTIFACTS, final_numbers, flat, identity, numbers_of, remember, settings_of
from raffm_ray.runs.rounds.rows import RoundRow

PARAMS_AT_ONCE, LONGEST = 100, 6000
"""What a call of MLflow takes: how many parameters, and the letters of a value."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
"""Of the environment, where it says nothing else: nothing is sent to anybody but the named server, nor waited for long."""
ALWAYS = "simulated_seconds"
"""A number that every round has."""


def log_to_mlflow(run: StartedRun) -> Callback:
    """Settings are its parameters, numbers of rounds its metrics with the round as the step. A run that goes on is gone on with: what is
    there of it already is not told again."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    here = run.folder / "mlflow"
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        here.mkdir(exist_ok=True)
    client = MlflowClient(tracking_uri=address or f"sqlite:///{here.resolve() / 'mlflow.db'}")
    known = identity(run.folder, "mlflow")
    try:
        run_id = client.get_run(known).info.run_id if known else None
    except MlflowException:  # it is of another server, or was removed
        run_id = None
    if run_id is None:
        run_id = _created(client, run, None if address else (here.resolve() / "artifacts").as_uri())
        remember(run.folder, "mlflow", run_id)
        params = [Param(_name(key), str(value)[:LONGEST]) for key, value in flat(settings_of(run.experiment)).items()]
        for begin in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(run_id, params=params[begin : begin + PARAMS_AT_ONCE])
    else:
        client.update_run(run_id, status="RUNNING")
    there = {one.step for one in client.get_metric_history(run_id, ALWAYS)}

    def log(numbers: dict[str, float], step: int) -> None:
        client.log_batch(run_id, metrics=[Metric(_name(key), float(value), _now(), step) for key, value in numbers.items()])

    def add(row: RoundRow) -> None:
        if row.round not in there:
            log(numbers_of(row), row.round)

    def end(summary: dict[str, Any]) -> None:
        log(final_numbers(summary), summary["rounds"])
        client.set_tag(run_id, "params_sha256", summary["params_sha256"])
        for name in ARTIFACTS:
            if (run.folder / name).is_file():
                client.log_artifact(run_id, str(run.folder / name))
        client.set_terminated(run_id)

    for row in run.rounds:
        add(row)
    return Callback(round=add, end=end, interrupted=lambda _: client.set_terminated(run_id, "KILLED"))


def _created(client: Any, run: StartedRun, artifacts: str | None) -> str:
    """The id of a new run, in the experiment MLFLOW_EXPERIMENT_NAME or that of this name. `artifacts`: where its files are kept."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.experiment.name
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=artifacts)
    place = run.folder.resolve()
    return str(client.create_run(experiment, run_name=f"{place.parent.name}/{place.name}").info.run_id)


def _name(key: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", key)[:250]


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time() * 1000)
