"""What is said of one run: its result with its uncertainty, what was run on what, and the table at its end. Pure."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raffm_ray.basics.formatting import counted, human_bytes, human_joules, human_seconds
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.metrics import shown, unit, worst_name
from raffm_ray.reports.seed_statistics import error_of_share

Start = Mapping[str, Any]
"""An entry of `made_with.json`."""


def named(device: str) -> str:
    """A device type as it is read."""
    return device.replace("_", " ")


def value_text(metric: str, value: float) -> str:
    """`92.4% accuracy`, `a perplexity of 12.3`."""
    return f"{shown(metric, value)}% {metric}" if unit(metric) else f"a {metric} of {shown(metric, value)}"


def _full_model(summary: Mapping[str, Any]) -> str:
    metric, end, start, examples = (summary[key] for key in ("metric", "full_model", "start", "held_out_examples"))
    sign = unit(metric)
    line = f"After {counted(summary['rounds'], 'round')} with {counted(summary['clients'], 'client')}, the full model has {value_text(metric, end)}"
    line += f" on {examples:,} held-out examples" if examples else " on the held-out examples"
    error, before = (error_of_share(metric, value, examples) for value in (end, start))
    if error is None or before is None:
        return f"{line}. Before training it had {shown(metric, start)}{sign}."
    line += f", with a standard error of {shown(metric, error)} points. Before training it had {shown(metric, start)}%."
    most = 2 * sqrt(error**2 + before**2)
    if abs(end - start) < most:
        change = shown(metric, abs(end - start))
        line += f" The change is {change} points; up to {shown(metric, most)} points could be chance (two standard errors)."
    return line


def _sizes(summary: Mapping[str, Any]) -> str:
    metric, device_types = summary["metric"], summary["device_types"]
    sign, now = unit(metric), {name: device_type["metric"] for name, device_type in device_types.items()}
    worst, before = worst_name(metric, now), worst_name(metric, {name: one["start"] for name, one in device_types.items()})
    line = f"Of the subnetworks of {len(device_types)} device types, the worst has {value_text(metric, now[worst])}"
    error = error_of_share(metric, now[worst], summary["held_out_examples"])
    line += f" (standard error {shown(metric, error)} points)" if error is not None else ""
    line += f": that of {named(worst)}, with {100 * device_types[worst]['params_fraction']:.0f}% of the parameters."
    return f"{line} Before training the worst had {shown(metric, device_types[before]['start'])}{sign} ({named(before)})."


def _beside(summary: Mapping[str, Any]) -> list[str]:
    metric, others = summary["metric"], summary.get("baselines", {})
    if not others:
        return []
    sign = unit(metric)
    told = ", ".join(
        f"{name} {shown(metric, one['full_model'])}{sign} (its worst device type {shown(metric, one['worst_device_type']['metric'])}{sign})"
        for name, one in others.items()
    )
    return [f"On the same data and clients: {told}."]


def unfinished(summary: Mapping[str, Any]) -> list[str]:
    """What has to be known first of a run that is not finished."""
    if "unfinished" not in summary:
        return []
    told = f"This run is not finished: what follows is how it was after round {summary['rounds']} of {summary['unfinished']}."
    return [f"{told} Sizes between the device types and baselines are measured at the end."]


def lead(summary: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    moved = summary["bytes_down"] + summary["bytes_up"]
    share = moved / max(1, summary["bytes_full_size"])
    costs = (
        f"All clients together moved {human_bytes(moved)}, {100 * share:.0f}% of what full-size FedAvg would have moved in the same rounds. "
        f"On the simulated devices* the run took {human_seconds(summary['simulated_seconds'])}."
    )
    if summary["wasted_bytes"] or summary["wasted_joules"]:
        wasted = f"{human_bytes(summary['wasted_bytes'])} and {human_joules(summary['wasted_joules'])}*"
        costs += f" {wasted} went into updates that were never used."
    seed = (
        f"This is one run with seed {summary['seed']}. Another seed divides the data and draws the clients differently; how much the result "
        "changes with it cannot be told from one run. `raffm-ray compare --seeds 0,1,2` measures it."
    )
    return [*unfinished(summary), _full_model(summary), _sizes(summary), *_beside(summary), costs, seed]


def _each(starts: Sequence[Start], text: Any) -> str:
    """What is said of all starts: once where it is the same of all."""
    return "; then ".join(dict.fromkeys(found for one in starts if (found := text(one))))


def _began(start: Start, what: str) -> str:
    when = str(start["started"]).replace("T", " ").replace("+00:00", " UTC")
    return f"{when}, after {start['done']} {what}" if start["done"] else when


def _hardware(start: Start) -> str:
    return ", ".join([f"{start['processor']}, {start['cores']} cores", *map(str, start["gpus"])])


def made_with_facts(starts: Sequence[Start], what: str = "rounds") -> list[tuple[str, str]]:
    """Command, versions, hardware and dates; `what` is counted between starts. Says so where nothing was recorded."""
    if not starts:
        return [("Command, versions and hardware", "not recorded: an earlier version made this")]
    return [
        ("Command", _each(starts, lambda one: f"`{one['command']}`" if one["command"] else "started from Python")),
        ("Version", _each(starts, lambda one: one["version"])),
        ("Started", "; then ".join(_began(one, what) for one in starts[-4:])),
        ("Processor", _each(starts, _hardware)),
        ("Python and libraries", _each(starts, _libraries)),
    ]


def _libraries(start: Start) -> str:
    return ", ".join([f"Python {start['python']}", *(f"{name} {number}" for name, number in start["libraries"].items())])


def _part(configuration: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = configuration.get(key)
    return found if isinstance(found, Mapping) else {}


def _last(name: Any) -> str:
    """A name of the hub, or the last part of a path of this machine."""
    return str(name or "").rstrip("/").rsplit("/", 1)[-1] if str(name).startswith(("/", "~")) else str(name or "")


def setting_facts(configuration: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Data, model, clients and training, of a run's settings."""
    task, clients, local = (_part(configuration, key) for key in ("task", "clients", "local"))
    model, examples = _part(configuration, "model"), summary["held_out_examples"]
    data = f"{task.get('name')}" + (f" from {_last(task['data'])}" if task.get("data") else "")
    kind = _last(model.get("pretrained")) or _part(model, "config").get("model_type") or "model"
    alpha = f" with alpha {clients.get('alpha')}" if str(clients.get("partition", "")).startswith("dirichlet") else ""
    length = f"{local['steps']} steps" if local.get("steps") else f"{local.get('epochs')} epochs"
    own = f"{local.get('optimizer')}, learning rate {local.get('learning_rate')}, batches of {local.get('batch_size')}, {length}"
    return [
        ("Data", f"{data}, {examples:,} held-out examples" if examples else data),
        ("Model", f"{kind}, {summary['params']:,} parameters"),
        (
            "Clients",
            f"{summary['clients']:,}, {clients.get('per_round')} a round, of {len(summary['device_types'])} device types",
        ),
        ("Partition", f"{clients.get('partition')}{alpha}"),
        ("Local training", own),
    ]


def told_of_lacks(what: str, runs: Sequence[str]) -> list[str]:
    """A line about what is not in the records of some runs; none where there are no such runs."""
    return [f"{what} are not in the records of {', '.join(runs)}: an earlier version made them"] if runs else []


def extended(summary: Mapping[str, Any]) -> str:
    """`extended from 40 to 80 rounds`, of a run that was; otherwise nothing."""
    steps = summary.get("extensions") or []
    return (
        f"extended from {steps[0]['from_rounds']} to {' and to '.join(str(one['to_rounds']) for one in steps)} rounds"
        if steps
        else ""
    )


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The table at a run's end: the full model and every device type, this strategy and its baselines. It fits 80 columns."""
    baselines, metric = summary.get("baselines", {}), summary["metric"]
    title = f"{summary['name']}: {metric}{' in %' if unit(metric) else ''} after {counted(summary['rounds'], 'round')}, {counted(summary['clients'], 'client')}"
    table = WordTable(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("params", "start", summary["strategy"], *baselines, "bytes", "time*", "energy*", "peak*"):
        table.add_column(heading, justify="right", no_wrap=True)
    full = [f"{summary['params']:,}", shown(metric, summary["start"]), shown(metric, summary["full_model"])]
    full += [shown(metric, other["full_model"]) for other in baselines.values()]
    table.add_row("full model", *full, "", "", "", "", end_section=True)
    for name, device_type in summary["device_types"].items():
        row = [
            f"{100 * device_type['params_fraction']:.0f}%",
            shown(metric, device_type["start"]),
            shown(metric, device_type["metric"]),
        ]
        row += [shown(metric, other["device_types"][name]["metric"]) for other in baselines.values()]
        row += [human_bytes(device_type["bytes_down"] + device_type["bytes_up"]), human_seconds(device_type["round_seconds"])]
        row += [human_joules(device_type["energy_joules"]), human_bytes(device_type["peak_memory_bytes"])]
        table.add_row(name, *row)
    runs = {summary["strategy"]: summary, **baselines}
    moved = ", ".join(f"{name} {human_bytes(one['bytes_down'] + one['bytes_up'])}" for name, one in runs.items())
    worst_device_type = ", ".join(f"{name} {shown(metric, one['worst_device_type']['metric'])}" for name, one in runs.items())
    over_sizes = ", ".join(f"{name} {shown(metric, one['curve_area'])}" for name, one in runs.items() if one["curve"])
    never = [name for name, one in summary["device_types"].items() if one["round_seconds"] is None]
    unchosen = f"-: no client with a {' or a '.join(never)} was ever chosen\n" if never else ""
    longer = f"{told}\n" if (told := extended(summary)) else ""
    table.caption = (
        f"worst device type: {worst_device_type}" + (f"; mean over sizes: {over_sizes}" if over_sizes else "") + "\n"
        f"{longer}{unchosen}"
        "bytes, time, energy: of one client in one round, down and up; peak: of memory\n"
        "* simulated device, estimated from data sheets\n"
        f"moved in the whole run: {moved}"
    )
    return table
