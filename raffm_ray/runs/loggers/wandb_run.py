"""A run as one of Weights & Biases: offline, in the folder `wandb` of the run's folder, unless WANDB_MODE says otherwise."""

import os
import shutil
from secrets import token_hex
from typing import Any

from raffm_ray.runs.callbacks import Callback, StartedRun
from raffm_ray.runs.loggers.content import ARTIFACTS, final_numbers, identity, numbers_of, remember, settings_of
from raffm_ray.runs.rounds.rows import RoundRow

OFFLINE = "offline"


def log_to_wandb(run: StartedRun) -> Callback:
    """Settings are its configuration, numbers of rounds its history with the round as the step. `wandb sync` sends it afterwards."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", OFFLINE)
    if mode == OFFLINE:  # drawn anew from the records
        shutil.rmtree(run.folder / "wandb", ignore_errors=True)
    known = identity(run.folder, "wandb") or token_hex(8)
    remember(run.folder, "wandb", known)
    place = run.folder.resolve()
    begun = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or run.experiment.name,
        name=f"{place.parent.name}/{place.name}",
        id=known,
        dir=str(place),
        mode=mode,
        config=settings_of(run.experiment),
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            symlink=False,
            x_disable_stats=True,
            x_disable_meta=True,  # names of machine and user
            x_save_requirements=False,
        ),
    )

    for path in (place / "wandb").rglob("*"):  # to a log in the home folder: no run goes on whose folder holds links
        if path.is_symlink():
            path.unlink()

    def add(row: RoundRow) -> None:
        if row.round >= begun.starting_step:
            begun.log(numbers_of(row), step=row.round)

    def end(summary: dict[str, Any]) -> None:
        begun.summary.update({**final_numbers(summary), "params_sha256": summary["params_sha256"]})
        files = [run.folder / name for name in ARTIFACTS if (run.folder / name).is_file()]
        if files:
            artifact = wandb.Artifact(f"report-{known}", type="report")
            for file in files:
                artifact.add_file(str(file), policy="immutable")  # which copies nothing into the home folder
            begun.log_artifact(artifact)
        begun.finish()

    for row in run.rounds:
        add(row)
    return Callback(round=add, end=end, interrupted=lambda _: begun.finish(exit_code=1))
