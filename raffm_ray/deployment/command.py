"""`raffm-ray deploy`: reads its arguments and prints its table."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.flags import take_flag
from raffm_ray.basics.formatting import human_bytes, standard_output
from raffm_ray.data.metrics import shown
from raffm_ray.deployment.deploy import LATENCY, budget_for, check_forms, fitted, hollow_note, plan_for, write_models
from raffm_ray.deployment.model_card import at_once
from raffm_ray.deployment.model_folder import ExportFormats
from raffm_ray.deployment.supernet import DESCRIBED, FILE, check_supernet
from raffm_ray.deployment.trained_model import find_trained_model
from raffm_ray.runs.recorder import check_output

SHORT = {"torch": "PyTorch", "onnx": "ONNX", "int8": "int8"}
HELP = """\
raffm-ray deploy RUN|CHECKPOINT --budget KIND=VALUE ... | --device NAME | --sizes 0.75,0.5 | --elastic  [--out DIR] [flags]
raffm-ray deploy compare RUN|CHECKPOINT [--sizes 1,0.75,0.5,0.35,0.25] [--out DIR]      torch, ONNX and int8: a table and a picture

The part of a finished run's model, or of a plain checkpoint, that fits, as a folder that transformers loads after `import raffm_ray`.

  --budget KIND=VALUE  params, layer_params, bytes, macs, inference_bytes, training_flops, memory_bytes: up to 1 a fraction of the full
                       model's; latency_ms: of an answer on this machine, by real timings of the last form asked for (torch, ONNX, int8)
  --device NAME        what a device class of the run gets, or a profile's memory allows
  --sizes LIST         several, by fractions of the parameters in layers
  --elastic            one file of which every beginning is a subnetwork
  --onnx, --int8       ONNX in 32 bit floats; in 8 bit integers too (pip install 'raffm-ray[onnx]')
  --torch-export       torch's exported program
  --tune STEPS         further training on the public part's labels; --distill STEPS: on the full model's answers
  --examples N         how many are answered at once where times are taken (1)
  --task.*, --salience.*, --extraction.*   settings, for a checkpoint: the data that ranks and measures it is named by --task.name

docs/how_to/deploy.md has the rest."""
SIZES = "1,0.75,0.5,0.35,0.25"
"""Of `deploy compare`, where it is told no others: parts of the parameters in layers."""
FLAGS = (
    "--budget",
    "--device",
    "--sizes",
    "--out",
    "--examples",
    "--tune",
    "--distill",
    "--onnx",
    "--int8",
    "--torch-export",
    "--elastic",
)


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
    table = Table(box=SIMPLE_HEAD)
    names = ["size"] * any(told)
    for column in (*names, "form", "parameters", metric, "file", "MACs", "memory*", "median ms", "95% ms"):
        table.add_column(column, justify="left" if column in ("size", "form") else "right", no_wrap=True)
    for name, one in told.items():
        for form, values in one["forms"].items():
            table.add_row(
                *[name.removeprefix("size-")] * len(names),
                SHORT[form],
                f"{_count(one['params'])} ({100 * one['params_fraction']:.0f}%)",
                shown(metric, values["metric"]),
                human_bytes(values["bytes"]),
                _count(one["macs"]),
                human_bytes(one["inference_bytes"]),
                f"{values['median_ms']:.3g}",
                f"{values['p95_ms']:.3g}",
            )
    table.caption = f"times of {at_once(next(iter(told.values())))} with one thread; * estimated, in 32 bit floats"
    if least := max(one.get("least_trained", 0) for one in told.values()):
        table.caption += f"\nbelow {least:,} parameters no device class was trained: accuracy may fall fast there"
    return table


def _take_switch(words: list[str], name: str) -> bool:
    if name in words:
        words.remove(name)
        return True
    return False


def command(words: Sequence[str], fresh: Any) -> int:
    """`raffm-ray deploy SOURCE --budget KIND=VALUE ... --out DIR`, `raffm-ray deploy compare SOURCE`. Raises UserError."""
    rest = list(words)
    if {"-h", "--help"} & set(rest):
        print(HELP)
        return 0
    comparing = bool(rest) and rest[0] == "compare"
    rest = rest[comparing:]
    if not rest or rest[0].startswith("-"):
        raise UserError(
            "deploy: expected first the folder of a finished run, or of a checkpoint: raffm-ray deploy runs/mine --budget layer_params=0.5 --out small"
        )
    source, budgets = rest.pop(0), dict[str, float]()
    while (text := take_flag(rest, "--budget")) is not None:
        kind, value = parse_budget(text)
        if kind in budgets:
            raise UserError(f"--budget {kind}: given twice, as {budgets[kind]:g} and {value:g}")
        budgets[kind] = value
    device, sizes, out, many = (take_flag(rest, name) for name in ("--device", "--sizes", "--out", "--examples"))
    steps = {name: _whole(name, take_flag(rest, name), 0) for name in ("--tune", "--distill")}
    if all(steps.values()):
        raise UserError("--tune and --distill: on labels, or on what the full model answers; not both")
    onnx, int8, exported, elastic = (_take_switch(rest, name) for name in ("--onnx", "--int8", "--torch-export", "--elastic"))
    for word in rest:
        if close := get_close_matches(word, FLAGS, 1, 0.8):
            raise UserError(f"{word}: unknown flag (did you mean {close[0]!r}?)")
    formats = ExportFormats(
        onnx=onnx or comparing,
        int8=int8 or comparing,
        torch_export=exported,
        tune=sum(steps.values()),
        elastic=elastic,
        examples=_whole("--examples", many, 1),
        distill=steps["--distill"] > 0,
    )
    if comparing and (budgets or device):
        raise UserError("deploy compare: over --sizes; leave out --budget and --device")
    if sizes and (budgets or device):
        raise UserError("--sizes: says how small by itself; leave out --budget and --device")
    if comparing:
        sizes = sizes or SIZES
    check_forms(formats, sizes=bool(sizes or budgets or device))
    asked = parse_sizes(sizes) if sizes else []
    folder = Path(out) if out else fresh(f"deployed-{Path(source).name}")
    check_output(folder)
    console = Console(stderr=True)
    with console.status(f"reading {source}"):
        trained = find_trained_model(source, rest)
    if elastic:
        check_supernet(trained)
    plans = {f"size-{size:g}": plan_for(trained, {"layer_params": size}) for size in asked}
    if budgets or device:
        trained = fitted(trained, budgets, device)
        plans = {"": plan_for(trained, budgets, device, formats)}
        if note := hollow_note(trained, plans[""], budget_for(trained, budgets, device)):
            console.print(f"note: {note}", highlight=False, soft_wrap=True)
    told = write_models(trained, plans, folder, formats, console)
    if told:
        standard_output().print(table_of(told))
    if elastic:
        print(
            f"all sizes: {folder / FILE} and {folder / DESCRIBED}: raffm_ray.open_supernet({str(folder)!r}).read({{'layer_params': 0.5}})"
        )
    if comparing:
        from raffm_ray.deployment.picture import write_picture

        write_picture(told, trained.origin, folder)
        print(f"picture: {folder / 'compare.png'}\ntable:   {folder / 'compare.md'}")
    print(f"models:  {folder}" if asked else f"model:   {folder}")
    return 0


def _whole(flag: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or not int(text):
        raise UserError(f"{flag}: expected a whole number from 1, got {text!r}")
    return int(text)
