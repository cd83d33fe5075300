"""What loggers are told: a round's numbers by name, settings as flat values, and who continues which of their own runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import without_secrets
from raffm_ray.basics.files import write_atomically
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.settings.experiment import Experiment

IDENTITIES = "loggers.json"
"""File of a run's folder: logger -> the name that its own run has."""
ARTIFACTS = ("report.html", "report.png", "summary.json")
"""Files of a finished run that are kept with it elsewhere, where they are."""


def numbers_of(row: RoundRow) -> dict[str, float]:
    """A round's numbers, without those that are None, and without real time: the same for every machine. Bytes, joules and FLOPs are of
    all its clients together, seconds of simulated devices."""
    named = {
        "metric": row.metric,
        "loss": row.loss,
        "validation": row.validation,
        "train_loss": row.train_loss,
        "bytes": row.bytes_down + row.bytes_up,
        "simulated_seconds": row.simulated_seconds,
        "energy_joules": row.energy_joules,
        "flops": row.flops,
        "learning_rate": row.learning_rate,
        "arrived": row.arrived,
        "refused": row.refused,
        **{f"device_type_metric/{device}": value for device, value in row.device_type_metrics.items()},
        **{f"device_type_validation/{device}": value for device, value in row.validation_device_type_metrics.items()},
    }
    return {name: value for name, value in named.items() if value is not None}


def final_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """What a run ends with: the metric of the full model and of every device type's subnetwork, and what all rounds cost."""
    found = {"final/start": summary["start"], "final/full_model": summary["full_model"]}
    found |= {f"final/{device}": one["metric"] for device, one in summary["device_types"].items()}
    return found | {f"final/{name}": summary[name] for name in ("bytes_down", "bytes_up", "energy_joules")}


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """All settings, nested, without the environment's secrets."""
    found: dict[str, Any] = _without_secrets(experiment.model_dump(mode="json"))
    return found


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return found


def _identities(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / IDENTITIES).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(one) for name, one in found.items()} if isinstance(found, dict) else {}


def identity(folder: Path, logger: str) -> str | None:
    """The name of a logger's own run, where one was remembered."""
    return _identities(folder).get(logger)


def remember(folder: Path, logger: str, name: str) -> None:
    """Keeps the name of a logger's own run, so that who goes on with this run goes on with that one."""
    write_atomically(folder / IDENTITIES, (json.dumps(_identities(folder) | {logger: name}) + "\n").encode())
