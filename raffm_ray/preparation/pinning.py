"""Data and models from the hub at one commit: whoever repeats a run gets the same ones, whatever was uploaded since."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from raffm_ray.basics.errors import UserError
from raffm_ray.data.sources import expand
from raffm_ray.data.tasks import hub_name
from raffm_ray.models.foundation import PACKAGED
from raffm_ray.settings.experiment import Experiment

COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(experiment: Experiment) -> Experiment:
    """The experiment with the commits that its model's and its data's revisions are of now; the same where both are local, or where the hub
    cannot be asked and nothing of it is stored here. Raises UserError for a revision of what is not on the hub."""
    model, task = experiment.model, experiment.task
    name = model.pretrained and expand(model.pretrained, "model.pretrained")
    local = name is None or name in PACKAGED or Path(name).exists()
    if local and model.revision:
        raise UserError(f"model.revision: {model.revision}: {name or 'a new model'} is not on the hub, and has no revisions")
    data = hub_name(task)
    here = data is None or Path(expand(data)).exists()
    if here and task.revision:
        raise UserError(f"task.revision: {task.revision}: {task.data or task.name} is not on the hub, and has no revisions")
    if name is not None and not local and (commit := commit_of(name, model.revision, "model")):
        model = model.model_copy(update={"revision": commit})
    if data is not None and not here and (commit := commit_of(data, task.revision, "dataset")):
        task = task.model_copy(update={"revision": commit})
    return experiment.model_copy(update={"model": model, "task": task})


def commit_of(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> str | None:
    """The commit that a revision (a branch, a tag; None for the main branch) of a name on the hub is at: as the hub says, else as what is
    stored here was; None where neither knows."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    import huggingface_hub

    api = huggingface_hub.HfApi()
    asked: Callable[..., Any] = api.model_info if kind == "model" else api.dataset_info
    try:
        return str(asked(name, revision=revision).sha)
    except Exception:  # whatever the library raises without a network, or for names that are not there: loading them says so
        file = "config.json" if kind == "model" else "README.md"
        try:
            stored = huggingface_hub.try_to_load_from_cache(name, file, revision=revision, repo_type=kind)
        except ValueError:  # no name of the hub
            return None
        return Path(stored).parent.name if isinstance(stored, str) and COMMIT.fullmatch(Path(stored).parent.name) else None
