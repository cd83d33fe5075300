"""Cuts the subnetwork that fits a device out of a trained model, with no further training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.basics.files import atomic_folder
from raffm_ray.clients.local_training import one_thread
from raffm_ray.deployment.adapter_folder import check_adapter_folder
from raffm_ray.deployment.client_model import client_model
from raffm_ray.deployment.exports import check_onnx
from raffm_ray.deployment.inference import latencies, typical_inputs
from raffm_ray.deployment.latency_search import within_latency
from raffm_ray.deployment.model_card import supernet_card
from raffm_ray.deployment.model_folder import ExportFormats, answers_of, save_inputs, write_card, write_model
from raffm_ray.deployment.supernet import check_supernet, open_supernet, write_supernet
from raffm_ray.deployment.trained_model import TrainedModel, find_trained_model
from raffm_ray.runs.recorder import check_output, write_json
from raffm_ray.subnetworks.budgets import HOLLOW, Budget, balance, budget_from, hollow_in_words, positive
from raffm_ray.subnetworks.costs import costs_of

LATENCY = "latency_ms"


def budget_for(trained: TrainedModel, budgets: Mapping[str, float], device: str | None = None) -> Budget:
    """What all budgets but `latency_ms`, and a device, allow. Raises UserError for an unknown kind or device."""
    setup = trained.prepared.setup
    limits = {kind: value for kind, value in budgets.items() if kind != LATENCY}
    budget = budget_from(limits, costs_of(setup.architecture, Plan()), [LATENCY])
    if device is not None:
        profile = look_up(setup.devices, device, "--device")
        memory = profile.memory_bytes * setup.experiment.fleet.memory_fraction
        budget = budget.both(setup.budgets.get(device, Budget(memory_bytes=memory)))
    return budget


def fitted(trained: TrainedModel, budgets: Mapping[str, float], device: str | None = None) -> TrainedModel:
    """The model with the ranked list that answers the budgets best; a device type of a run has the run's own. Raises UserError, TooSmallError."""
    if not set(budgets) - {LATENCY} and (device is None or device in trained.prepared.setup.budgets):
        return trained
    return trained.paced_for(budget_for(trained, budgets, device))


def plan_for(
    trained: TrainedModel, budgets: Mapping[str, float], device: str | None = None, formats: ExportFormats | None = None
) -> Plan:
    """The subnetwork that all budgets, and a device, allow; `latency_ms` is that of the last of `formats`. Raises UserError for an unknown kind or device, TooSmallError for too little."""
    setup = trained.prepared.setup
    limit_ms = positive(LATENCY, budgets[LATENCY]) if LATENCY in budgets else None
    plan = trained.plan(budget_for(trained, budgets, device))
    if limit_ms is not None:
        fast = within_latency(trained, limit_ms, formats or ExportFormats())
        plan = min(plan, fast, key=lambda one: costs_of(setup.architecture, one).params)
    return plan


def hollow_note(trained: TrainedModel, plan: Plan, budget: Budget) -> str | None:
    """A line about a budget's subnetwork whose layers are hollow."""
    costs, full = (costs_of(trained.prepared.setup.architecture, one) for one in (plan, Plan()))
    return hollow_in_words(budget, costs, full) if balance(budget, costs, full) < HOLLOW else None


def check_forms(formats: ExportFormats, sizes: bool) -> None:
    """Raises UserError where forms cannot be made here, or are asked for without a size."""
    if formats.onnx or formats.int8:
        check_onnx()
    if sizes:
        return
    if not formats.elastic:
        raise UserError(
            "deploy: how small? --budget KIND=VALUE, --device NAME, --sizes 0.75,0.5, or --elastic for all in one file"
        )
    if formats.onnx or formats.int8 or formats.torch_export or formats.examples > 1:
        raise UserError(
            "--elastic alone is one file of all sizes: --onnx, --int8, --torch-export and --examples need a --budget, --device or --sizes beside it"
        )


def write_models(
    trained: TrainedModel, plans: Mapping[str, Plan], folder: Path, formats: ExportFormats, console: Console
) -> dict[str, dict[str, Any]]:
    """Writes every plan's model into `folder`/name, or into `folder` itself where the name is empty; returns what was measured by name.

    Times of all are taken in turns, in one go.
    """
    check_output(folder)
    task = trained.prepared.task
    if formats.examples > (most := len(task.held_out)):
        raise UserError(
            f"--examples: times are taken of held-out examples, of which there are {most:,}, got {formats.examples:,}"
        )
    if formats.adapter:
        check_adapter_folder(trained, plans.values())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_name(f".{folder.name}.tmp").mkdir(exist_ok=True)  # as `atomic_folder` does
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from None
    with one_thread(), atomic_folder(folder) as place:
        told: dict[str, dict[str, Any]] = {}
        for name, plan in plans.items():
            console.print(
                f"cutting and measuring {name or 'the subnetwork'} ({costs_of(trained.prepared.setup.architecture, plan).params:,} parameters)",
                highlight=False,
            )
            (place / name).mkdir(exist_ok=True)
            told[name] = write_model(trained, plan, place / name, formats)
        if told:
            _take_times(trained, told, place, formats, console)
            if set(plans) != {""}:
                write_json(place / "sizes.json", told)
        if formats.elastic:
            write_supernet(trained, place)
            save_inputs(trained, place)
            with (place / "README.md").open("a", encoding="utf-8") as file:  # after the card of a size that lies beside it
                file.write("\n" * (file.tell() > 0) + supernet_card(trained.origin, open_supernet(place)))
    return told


def _take_times(
    trained: TrainedModel, told: dict[str, dict[str, Any]], place: Path, formats: ExportFormats, console: Console
) -> None:
    """Takes the times of all that was written, and writes the cards."""
    console.print("taking times", highlight=False)
    task = trained.prepared.task
    answers = {(name, form): answer for name in told for form, answer in answers_of(place / name, task.head).items()}
    named = {f"{name}\n{form}": answer for (name, form), answer in answers.items()}
    for key, (median, late) in latencies(named, typical_inputs(task, formats.examples)).items():
        name, form = key.split("\n")
        told[name]["forms"][form] |= {"median_ms": median, "p95_ms": late}
    for name, one in told.items():
        write_card(trained, one, place / name)


def deploy(
    source: Path | str,
    folder: Path | str,
    budgets: Mapping[str, float] | None = None,
    device: str | None = None,
    flags: Sequence[str] = (),
    formats: ExportFormats | None = None,
    plugins: Sequence[str] = (),
    client: int | None = None,
) -> dict[str, Any]:
    """Writes the subnetwork of a finished run, or of a checkpoint, that fits; returns what was measured of it.

    `budgets`: such as {"params": 0.5}, by the kinds of `costs.budget_from` or `latency_ms`; `device`: a device type or profile; `flags`:
    settings for a checkpoint, as on the command line; `formats`: what is written beside the weights, such as `ExportFormats(onnx=True)`;
    `plugins`: where those of the run are now; `client`: a client of the run, whose own model is written, in place of budgets and device. With
    `ExportFormats(elastic=True)` neither need be said, and then nothing is measured. Raises UserError for whatever cannot work.
    """
    formats, console = formats or ExportFormats(), Console(stderr=True, quiet=True)
    if budgets is not None and not isinstance(budgets, Mapping):
        raise UserError(f"budgets: expected a mapping such as {{'params': 0.5}}, got {budgets!r}")
    if client is not None and (budgets or device or formats.elastic):
        raise UserError("client: says how small by itself; leave out budgets, device and elastic")
    check_forms(formats, sizes=bool(budgets or device or client is not None))
    check_output(Path(folder))
    trained = find_trained_model(str(source), flags, plugins)
    if formats.elastic:
        check_supernet(trained)
    trained = fitted(trained, budgets or {}, device)
    plans = {"": plan_for(trained, budgets or {}, device, formats)} if budgets or device else {}
    if client is not None:
        trained, plans[""] = client_model(trained, Path(source), client)
    return write_models(trained, plans, Path(folder), formats, console).get("", {})
