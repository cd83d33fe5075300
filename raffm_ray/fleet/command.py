"""`raffm-ray fleet`: what every device type can train and what that costs it, and what this machine is as a device."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import counted, human_bytes, human_joules, human_seconds, rounded
from raffm_ray.basics.tables import WordTable
from raffm_ray.devices.profiles import Device
from raffm_ray.devices.round_costs import compute_seconds, training_work
from raffm_ray.fleet.cluster_description import load_cluster
from raffm_ray.fleet.cluster_placement import notes, placed, placement_table, predicted
from raffm_ray.fleet.device_calibration import Progress, measure, profile_text, step_seconds
from raffm_ray.fleet.device_plans import DeviceTypeRow, device_type_rows, provisional_metric, provisional_ranking, widths
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.runs.client_states.disk_forecast import disk_notes
from raffm_ray.runs.progress import Display
from raffm_ray.server.device_type_plans import idle_budgets, memory_notes, view_of
from raffm_ray.server.ranking import NotCalibratedError
from raffm_ray.server.residual_pace import hollow_notes
from raffm_ray.server.state import Setup
from raffm_ray.server.strategies import ranked
from raffm_ray.settings.loading import load
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import FLOAT_BYTES


def cost_table(setup: Setup, rows: Sequence[DeviceTypeRow], examples: int) -> Group:
    """What every device type may use and trains, and what it pays in a round: two tables of at most 80 columns."""
    local, full = setup.experiment.local, setup.costs(Plan())
    frozen = bool(setup.architecture.frozen_shapes)
    plans = _table(f"{setup.experiment.name}: budgets and plans, strategy {setup.experiment.strategy.name}")
    costs = _table("a client's round")
    for table in (plans, costs):
        table.add_column("device", no_wrap=True)
    plans.add_column("budget")
    for table, headings in (
        (plans, ("clients", "params", "kept", *(["trained"] if frozen else []))),
        (costs, ("peak*", "moved*", "train*", "move*", "energy*")),
    ):
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        clients = f"{row.clients} ({row.clients / len(setup.device_types):.0%})"
        if row.costs is None or row.cost is None:
            plans.add_row(row.name, row.budget, clients, "takes no part")
            continue
        cost = row.cost
        trained = [f"{row.costs.bytes_up // FLOAT_BYTES:,}"] if frozen else []
        plans.add_row(row.name, row.budget, clients, f"{row.costs.params:,}", f"{row.costs.params / full.params:.0%}", *trained)
        costs.add_row(
            row.name,
            human_bytes(row.costs.memory_bytes),
            human_bytes(cost.bytes_down + cost.bytes_up),
            human_seconds(cost.compute_seconds),
            human_seconds(cost.transfer_seconds),
            human_joules(cost.energy_joules),
        )
    amount = counted(local.steps, "step") if local.steps else counted(local.epochs, "epoch")
    told = _with_note(
        costs,
        f"a client with {counted(examples, 'example')} (the median), {amount} in batches of {local.batch_size}, {local.optimizer}\n"
        "peak: of memory; moved: down and up; train, move: seconds of computing, of moving bytes\n"
        "* simulated device, estimated from its profile",
    )
    note = "params, kept: with what is frozen; trained: the rest, which is sent back"
    return Group(_with_note(plans, note) if frozen else plans, "", told)


def width_table(setup: Setup, rows: Sequence[DeviceTypeRow]) -> Group:
    """What every device type's plan keeps in every layer."""
    experiment, full = setup.experiment, widths(setup.architecture, Plan())
    table = _table("what is kept, by layer")
    table.add_column("device", no_wrap=True)
    for kind in full:
        table.add_column(kind)
    table.add_row("full model", *full.values(), end_section=True)
    for row in rows:
        if row.plan is not None:
            own = widths(setup.architecture, row.plan)
            table.add_row(row.name, *(own.get(kind, "-") for kind in full))
    note = "4x3 2: four in three layers one after the other, two in the next"
    metric, chosen = provisional_metric(experiment), experiment.salience.metric
    if setup.strategy.salience:
        note += f"\nranked by {metric!r} of the weights before any training"
        note += f"; the run's {chosen!r} picks other units and widths in the same budget" if chosen != metric else ""
    return _with_note(table, note)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _with_note(table: Table, note: str) -> Group:
    return Group(table, Text(note, style="italic"))


def _table(title: str) -> Table:
    return WordTable(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)


def show(path: Path, flags: Sequence[str], described: Path | None, plugins: Sequence[str] = ()) -> int:
    """Prints what every device type may use, trains and pays. Nothing is trained or written.

    `flags`: settings that differ from those of the file at `path`; `described`: a cluster's YAML file.
    """
    cluster = load_cluster(described) if described else None
    experiment, lacking = load(path, flags, plugins), ""
    try:
        prepared = prepare(experiment)
    except NotCalibratedError as error:  # a run would end here; what each device type can train does not depend on it
        lacking, salience = str(error), experiment.salience.model_copy(update={"source": "public"})
        prepared = prepare(experiment.model_copy(update={"salience": salience}))
    setup = prepared.setup
    placement = placed(prepared, cluster) if cluster else None
    examples = int(np.median([count for count in setup.examples if count]))
    state = provisional_ranking(prepared)
    rows = device_type_rows(setup, state, examples)
    console = _console()
    console.print(cost_table(setup, rows, examples))
    console.print()
    console.print(width_table(setup, rows))
    if lacking:
        console.print(f"warning: this experiment cannot run as it is: {lacking}", highlight=False, soft_wrap=True)
    for line in (*idle_budgets(setup), *hollow_notes(setup, state), *memory_notes(setup, state), *disk_notes(setup, state)):
        console.print(f"note: {line}", highlight=False, soft_wrap=True)
    if placement is not None:
        rounds = predicted(prepared, state, placement)
        title = f"{setup.experiment.name} on {described.name if described else ''}: {len(placement.slots)} workers"
        console.print()
        console.print(
            placement_table(placement, rounds, _table(title)), notes(placement, rounds, setup.experiment.rounds), sep="\n"
        )
    return 0


SIZES = (1.0, 0.5, 0.25)
"""Fractions of the full model's parameters at which estimate and measurement are compared."""
STEP_SECONDS = 4.0
"""How long steps of one size are repeated."""


def compare(prepared: Prepared, device: Device, seconds: float, progress: Progress) -> Group:
    """The estimated and the measured time of a training step on this machine, `seconds` a size; `device` is its profile."""
    setup, state = prepared.setup, provisional_ranking(prepared)
    view, full, local = view_of(setup, state, 1), setup.costs(Plan()), setup.experiment.local
    table = _table(f"{setup.experiment.name}: a training step on this machine")
    for heading in ("params", "kept", "estimated", "measured", "measured / estimated"):
        table.add_column(heading, justify="right", no_wrap=True)
    for size in SIZES:
        progress(f"training steps at {size:.0%}")
        plan = ranked(view, Budget(params=size * full.params), -1)
        costs = setup.costs(plan)
        estimated = compute_seconds(device, training_work(costs, local.batch_size, local.batch_size))
        measured = step_seconds(
            architecture=setup.architecture,
            parameters=state.parameters,
            plan=plan,
            examples=prepared.task.clients,
            local=local,
            seconds=seconds,
        )
        table.add_row(
            f"{costs.params:,}",
            f"{costs.params / full.params:.0%}",
            human_seconds(estimated),
            human_seconds(measured),
            f"{measured / estimated:.2f}",
        )
    return _with_note(
        table,
        f"batches of {local.batch_size}; one thread; {rounded(device.flops_per_second / 1e9)} GFLOP/s, memory {rounded(device.memory_bytes_per_second / 1e9)} GB/s, "
        f"{human_seconds(device.dispatch_seconds)} a parameter tensor and step\n"
        "measured: the median of repetitions, in CPU time; other work on this machine may still slow one more than the other",
    )


def calibrate(
    flags: Sequence[str], path: Path | None, out: str | None, name: str, watts: str | None, plugins: Sequence[str] = ()
) -> int:
    """Measures this machine; the profile is printed, or written where `out` says. With the configuration at `path`, a table of estimates and
    measurements follows. `watts`: this machine's power, as given. Raises UserError."""
    power, place = _watts(watts), Path(out) if out else None
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name: expected letters, digits, '.', '_' and '-', got {name!r}")
    if place is not None and (place.exists() or not place.parent.is_dir()):
        raise UserError(f"--out {place}: {'is there already' if place.exists() else 'its folder is not there'}")
    prepared = prepare(load(path, flags, plugins)) if path else None
    stages = 2 + (len(SIZES) if prepared else 0)
    with Display(Console(stderr=True), "calibrate", 1) as display:
        display.stage("measuring this machine, some seconds", stages)
        begun = iter(range(stages))

        def progress(what: str) -> None:
            display.advance(next(begun), what)

        device = measure(power, progress)
        table = compare(prepared, device, STEP_SECONDS, progress) if prepared else None
    text = profile_text(name, device)
    if place is None:
        print(text)
    else:
        try:
            place.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {place}: cannot be written: {error.strerror}") from None
        print(f"written to {place}: name it in fleet.profiles, and {name} in fleet.shares")
    if table is not None:
        _console().print(table)
    return 0


def _watts(given: str | None) -> float | None:
    try:
        watts = None if given is None else float(given)
    except ValueError:
        watts = 0.0
    if watts is not None and not 0 < watts < float("inf"):
        raise UserError(f"--watts: expected a positive number, got {given!r}")
    return watts
