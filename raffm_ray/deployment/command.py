"""`raffm-ray deploy`: checks what is asked for, and prints its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import human_bytes, rounded, standard_output
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.metrics import shown
from raffm_ray.deployment.client_model import client_model
from raffm_ray.deployment.deploy import LATENCY, budget_for, check_forms, fitted, hollow_note, plan_for, write_models
from raffm_ray.deployment.model_card import at_once
from raffm_ray.deployment.model_folder import ExportFormats
from raffm_ray.deployment.options import DeployOptions
from raffm_ray.deployment.supernet import DESCRIBED, FILE, check_supernet, usual_budget
from raffm_ray.deployment.trained_model import find_trained_model
from raffm_ray.runs.recorder import check_output

SHORT = {"torch": "PyTorch", "onnx": "ONNX", "int8": "int8"}
SIZES = "1,0.75,0.5,0.35,0.25"
"""Of `deploy compare`, where it is told no others: parts of the parameters in layers."""


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{what}: expected a positive number, got {text!r}")
    return value


def parse_budget(text: str) -> tuple[str, float]:
    """`params=0.5` -> ("params", 0.5). Raises UserError for anything else."""
    kind, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--budget: expected KIND=VALUE, such as layer_params=0.5 or {LATENCY}=20, got {text!r}")
    return kind, _number(value, f"--budget {kind}")


def parse_sizes(text: str) -> list[float]:
    """`0.75,0.5` -> [0.75, 0.5]. Raises UserError for what is no fraction, or there twice."""
    sizes = [_number(word, "--sizes") for word in text.split(",")]
    if max(sizes) > 1 or len(set(sizes)) < len(sizes):
        raise UserError(f"--sizes: expected fractions of the parameters in layers, up to 1 and each once, got {text!r}")
    return sizes


def _count(number: int) -> str:
    """202186 -> `202.2 k`."""
    return human_bytes(number).removesuffix("B").strip()


def table_of(told: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a model and form."""
    metric = next(iter(told.values()))["metric_name"]
    table = WordTable(box=SIMPLE_HEAD)
    names = ["size"] * any(told)
    for column in (*names, "form", "parameters", "in layers", metric, "file", "MACs", "memory*", "median ms", "95% ms"):
        table.add_column(column, justify="left" if column in ("size", "form") else "right", no_wrap=True)
    for name, one in told.items():
        for form, values in one["forms"].items():
            table.add_row(
                *[name.removeprefix("size-")] * len(names),
                SHORT[form],
                f"{_count(one['params'])} ({100 * one['params_fraction']:.0f}%)",
                f"{100 * one['layer_fraction']:.0f}%",
                shown(metric, values["metric"]),
                human_bytes(values["bytes"]),
                _count(one["macs"]),
                human_bytes(one["inference_bytes"]),
                rounded(values["median_ms"]),
                rounded(values["p95_ms"]),
            )
    table.caption = f"times of {at_once(next(iter(told.values())))} with one thread; * estimated, in 32 bit floats"
    table.caption += "\nin layers: what is left of the parameters without embeddings and head"
    if least := max(one.get("least_trained", 0) for one in told.values()):
        table.caption += f"\nbelow {least:,} parameters no device type was trained: accuracy may fall fast there"
    return table


def deploy(
    source: str,
    flags: Sequence[str],
    options: DeployOptions,
    folder: Path,
    comparing: bool = False,
    plugins: Sequence[str] = (),
) -> int:
    """Writes what is asked for of a run or checkpoint into a new folder, and prints a table. Raises UserError.

    `flags`: settings of the task, for a checkpoint; `comparing`: all forms of several sizes, and a picture of them; `plugins`: where
    those of the run are now, or of a checkpoint.
    """
    budgets, sizes = dict[str, float](), options.sizes
    for text in options.budget:
        kind, value = parse_budget(text)
        if kind in budgets:
            raise UserError(f"--budget {kind}: given twice, as {budgets[kind]:g} and {value:g}")
        budgets[kind] = value
    if options.tune and options.distill:
        raise UserError("--tune and --distill: on labels, or on what the full model answers; not both")
    formats = ExportFormats(
        onnx=options.onnx or comparing,
        int8=options.int8 or comparing,
        torch_export=options.torch_export,
        tune=options.tune or options.distill or 0,
        elastic=options.elastic,
        examples=options.examples,
        distill=options.distill is not None,
        adapter=options.adapter,
    )
    if options.client is not None and (comparing or sizes or budgets or options.device or options.elastic):
        raise UserError("--client: says how small by itself; leave out --budget, --device, --sizes and --elastic")
    if comparing and (budgets or options.device):
        raise UserError("deploy compare: over --sizes; leave out --budget and --device")
    if sizes and (budgets or options.device):
        raise UserError("--sizes: says how small by itself; leave out --budget and --device")
    if comparing:
        sizes = sizes or SIZES
    check_forms(formats, sizes=bool(sizes or budgets or options.device or options.client is not None))
    asked = parse_sizes(sizes) if sizes else []
    check_output(folder)
    console = Console(stderr=True)
    with console.status(f"reading {source}"):
        trained = find_trained_model(source, flags, plugins)
    if options.elastic:
        check_supernet(trained)
    plans = {f"size-{size:g}": plan_for(trained, {"layer_params": size}) for size in asked}
    if budgets or options.device:
        trained = fitted(trained, budgets, options.device)
        plans = {"": plan_for(trained, budgets, options.device, formats)}
        if note := hollow_note(trained, plans[""], budget_for(trained, budgets, options.device)):
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if options.client is not None:
        trained, plan = client_model(trained, Path(source), options.client)
        plans = {"": plan}
    told = write_models(trained, plans, folder, formats, console)
    if told:
        standard_output().print(table_of(told))
    if options.elastic:
        kind = usual_budget(trained.prepared.setup.architecture)
        print(
            f"all sizes: {folder / FILE} and {folder / DESCRIBED}: raffm_ray.open_supernet({str(folder)!r}).read({{{kind!r}: 0.5}})"
        )
    if comparing:
        from raffm_ray.deployment.picture import write_picture

        write_picture(told, trained.origin, folder)
        print(f"picture: {folder / 'compare.png'}\ntable:   {folder / 'compare.md'}")
    print(f"models:  {folder}" if asked else f"model:   {folder}")
    return 0
