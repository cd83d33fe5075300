"""Reads a run's folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import yaml

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import check_path, read_whole
from raffm_ray.data.metrics import worst_name
from raffm_ray.runs.records.record_files import record_files, record_name
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.runs.records.totals import totals_upto
from raffm_ray.runs.rounds.client_totals import DeviceTotals
from raffm_ray.settings.former_values import with_present_values

SUMMARY = "summary.json"
"""Written last: whoever has it is finished."""
START = "start.json"
"""Written when a run begins: what is said of it before it is finished."""
FORMER_KEYS = {"full_model": "global", "device_types": "tiers", "worst_device_type": "worst_class"}
"""A key of a summary -> what earlier versions called it."""


def how_to_resume(folder: Path) -> str:
    """How to go on with the run in a folder that is not finished, as the end of an error; nothing where there is none."""
    there = (folder / "config.yaml").is_file() and not (folder / SUMMARY).is_file()
    return f"; raffm-ray resume {quote(str(folder))} goes on with the run that is not finished" if there else ""


@contextmanager
def of_a_run(folder: Path) -> Iterator[None]:
    """Around what is made of a run's records and summary. Raises UserError where they are not what a run leaves: something in them is
    missing, or of another kind."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, pa.ArrowException) as error:
        told = f"{type(error).__name__}: {in_short(error)}"
        raise UserError(f"{folder}: its records or summary are damaged, or not those of a run of this version: {told}") from error


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """A run's round records, in order. Raises UserError when there are none or one is damaged."""
    return _records(folder, "rounds")


def read_clients(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's clients, in the order of rounds and clients. Raises UserError when there are none or one is damaged."""
    return _records(folder, "clients")


def read_evaluations(folder: Path, number: int | None = None) -> list[dict[str, Any]]:
    """What was measured of clients on their own held-out examples after a round, or after all rounds, in their order. Raises UserError where it is
    missing or damaged."""
    found = list(tables(folder, "evaluations", after=-1 if number is None else number - 1, upto=number))
    if number is not None and not found:
        raise UserError(f"{folder / record_name('evaluations', number)}: missing")
    return [row for table in found for row in table.to_pylist()]


def _records(folder: Path, part: str) -> list[dict[str, Any]]:
    if not record_files(folder, part):
        raise UserError(f"{folder}: no finished run here ({part}/ holds no records){how_to_resume(folder)}")
    return [row for table in tables(folder, part) for row in table.to_pylist()]


def with_present_keys(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary, whatever is wrong with it, in which keys that earlier versions called otherwise are there as they are called now: its own,
    and those of its validation part and its baselines."""
    found = summary | {now: summary[before] for now, before in FORMER_KEYS.items() if before in summary and now not in summary}
    if isinstance(part := found.get("validation"), dict):
        found["validation"] = with_present_keys(part)
    if isinstance(baselines := found.get("baselines"), dict):
        found["baselines"] = {name: with_present_keys(one) if isinstance(one, dict) else one for name, one in baselines.items()}
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary, also of an earlier version. Raises UserError when it is missing or unreadable."""
    check_path(folder)
    path = folder / SUMMARY
    if not path.is_file():
        raise UserError(f"{folder}: no finished run here (summary.json is missing){how_to_resume(folder)}")
    try:
        summary: dict[str, Any] = json.loads(read_whole(path))
        if isinstance(summary, dict):
            summary = with_present_keys(summary)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {in_short(error)}") from None
    if not isinstance(summary, dict) or not {"name", "strategy", "device_types", "full_model", "bytes_full_size"} <= set(summary):
        raise UserError(f"{path}: not the summary of a run")
    if not all(isinstance(summary.get(key, {}), dict) for key in ("baselines", "made_from", "device_types")):
        raise UserError(f"{path}: not the summary of a run")
    return summary


def is_unfinished(folder: Path) -> bool:
    """Whether a run began here that has not ended. Raises UserError as `check_path`."""
    check_path(folder)
    return (folder / "config.yaml").is_file() and not (folder / SUMMARY).is_file()


def metric_of(folder: Path) -> str | None:
    """The metric of a run, finished or not; None where its beginning does not say. Raises UserError as `read_summary`."""
    if is_unfinished(folder):
        return str(read_start(folder)["metric"])
    return read_summary(folder).get("metric")


def read_start(folder: Path) -> dict[str, Any]:
    """What a run said when it began. Raises UserError where it did not, or that is damaged."""
    try:
        start: dict[str, Any] = json.loads(read_whole(folder / START))
        if not {"metric", "held_out_examples", "params", "bytes_of_full_round"} <= set(start):
            raise ValueError("keys are missing")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        told = f"not finished, and {START} cannot be read, which is written when a run begins: {in_short(error)}"
        raise UserError(f"{folder}: {told}{how_to_resume(folder)}") from None
    return start


def read_so_far(folder: Path) -> dict[str, Any]:
    """What the summary of a run that is not finished would say now, as far as its records go: `unfinished` is how many rounds it is to have;
    nothing is said of sizes between the device types, of baselines and of what was in vain. Raises UserError where nothing was measured yet."""
    settings, start = read_configuration(folder)[1], read_start(folder)
    with of_a_run(folder):
        rounds = read_rounds(folder) if record_files(folder, "rounds") else []
        measured = [row for row in rounds if row["metric"] is not None]
        if not measured:
            raise UserError(f"{folder}: nothing was measured yet{how_to_resume(folder)}")
        return _so_far(folder, settings, start, measured)


def _so_far(
    folder: Path, settings: Mapping[str, Any], start: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    first, last, metric = measured[0], measured[-1], start["metric"]
    rounds = [row for row in read_rounds(folder) if row["round"] <= last["round"]]
    clients = totals_upto(folder, last["round"], with_seen=False)
    now, params = dict(last["device_type_metrics"]), dict(last["device_type_params"])
    device_types = {}
    for device, value in now.items():
        did = clients.device_types.get(device) or DeviceTotals()
        device_types[device] = {
            "params": params[device],
            "params_fraction": params[device] / start["params"],
            "start": dict(first["device_type_metrics"])[device],
            "metric": value,
            "bytes_down": did.mean("bytes_down", 4 * params[device]),
            "bytes_up": did.mean("bytes_up", 4 * params[device]),
            "peak_memory_bytes": did.peak_memory_bytes or 0,
            "round_seconds": did.mean("round_seconds", None),
            "energy_joules": did.mean("energy_joules", None),
        }
    weakest = worst_name(metric, now)
    return {
        "name": settings["name"],
        "strategy": settings["strategy"]["name"],
        "seed": settings["seed"],
        "unfinished": settings["rounds"],
        "rounds": last["round"],
        "clients": settings["clients"]["count"],
        "held_out_examples": start["held_out_examples"],
        "metric": metric,
        "params": start["params"],
        "start": first["metric"],
        "full_model": last["metric"],
        "device_types": device_types,
        "worst_device_type": {"name": weakest, "metric": now[weakest]},
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_full_size": start["bytes_of_full_round"] * sum(row["drawn"] for row in rounds),
        "simulated_seconds": last["simulated_seconds"],
        "wasted_bytes": 0,
        "wasted_joules": 0.0,
    }


def read_configuration(folder: Path) -> tuple[str, dict[str, Any]]:
    """A run's settings, as the text of `config.yaml` and its content, values as they are called now. Raises UserError where it is missing or damaged."""
    path = folder / "config.yaml"
    try:
        text = read_whole(path).decode()
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {in_short(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a configuration")
    return text, with_present_values(content)
