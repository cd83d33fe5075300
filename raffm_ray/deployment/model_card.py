"""The model card of a deployed model: what it is, what it was cut from, what it keeps, and its measured quality."""

from collections.abc import Mapping
from typing import Any

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.formatting import rounded
from raffm_ray.basics.version import __version__
from raffm_ray.data.metrics import shown, unit
from raffm_ray.deployment.supernet import FILE, Supernet, usual_budget
from raffm_ray.models.architecture import HEADS, Architecture
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import kind_of

NAMES = {"torch": "PyTorch", "onnx": "onnxruntime", "int8": "onnxruntime, 8 bit integers"}


def at_once(told: Mapping[str, Any]) -> str:
    """How many examples were answered at once where times were taken."""
    return "one example" if told["timed_examples"] == 1 else f"{told['timed_examples']} examples at once"


def widths_table(architecture: Architecture, widths: Mapping[str, int]) -> list[str]:
    """Markdown lines: what every layer keeps of what it had, by kind of axis; empty where nothing is cut."""
    axes, counted = architecture.layout.axes, architecture.layout.layer_axes
    layers = [name.rpartition("/")[0] for name in axes if name in widths and "/" in name and name not in counted]
    rows, kinds = (
        list(dict.fromkeys(layers)),
        list(dict.fromkeys(kind_of(name) for name in axes if name in widths and "/" in name and name not in counted)),
    )
    lines = [
        f"{name}: {widths[name]} of {axes[name].size}" for name in axes if name in widths and (name in counted or "/" not in name)
    ]
    lines += [""] * bool(lines)
    if rows:
        lines += [f"| layer | {' | '.join(kinds)} |", f"| --- |{' --- |' * len(kinds)}"]
    for row in rows:
        cells = [
            f"{widths.get(name, axes[name].size)} / {axes[name].size}" if (name := f"{row}/{kind}") in axes else ""
            for kind in kinds
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def _exported(told: Mapping[str, Any]) -> list[str]:
    """How exported files are used."""
    names, program, lines = list(told["inputs"]), told.get("program"), list[str]()
    if "onnx" not in told["forms"] and not program:
        return lines
    lines += [
        "## Exported files",
        "",
        "Their inputs, these alone (a tokenizer may put out more):",
        "",
        "| input | type | shape |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{name}` | {one['dtype']} | {', '.join(map(str, one['shape']))} |" for name, one in told["inputs"].items()]
    lines += ["", f"Outputs: {', '.join(f'`{name}`' for name in told['outputs'])}.", "", "```python"]
    if "onnx" in told["forms"]:
        file = told["forms"]["int8" if "int8" in told["forms"] else "onnx"]["file"]
        fed = ", ".join(f'"{name}": {name}' for name in names)
        lines += [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("DIR/{file}", providers=["CPUExecutionProvider"])',
        ]
        lines += [f"outputs = session.run(None, {{{fed}}})  # NumPy arrays"]
    if program:
        lines += [""] * ("onnx" in told["forms"]) + ["import torch", "", f'program = torch.export.load("DIR/{program}").module()']
        lines += [f"outputs = program({', '.join(names)})  # tensors, in this order"]
    return [*lines, "```", ""]


def _needed() -> list[str]:
    """What loads a folder that transformers alone does not."""
    return [
        f"**transformers alone cannot load this folder.** It needs the Python package raffm-ray ({__version__} or newer), or only the part of it that loads models:",
        "",
        "```bash",
        'pip install "raffm-ray-load @ git+URL#subdirectory=loader"   # URL: the git repository of raffm_ray',
        "```",
        "",
        "`import raffm_ray` tells transformers of such models. This folder holds no code, so there is none to run or to trust.",
    ]


def card(origin: str, architecture: Architecture, told: Mapping[str, Any]) -> str:
    """The card's text. `told`: what was measured."""
    auto, metric = HEADS[architecture.head].__name__, told["metric_name"]
    use = ["import raffm_ray"] * (not told["plain"]) + [
        f"from transformers import {auto}",
        "",
        f'model = {auto}.from_pretrained("DIR")',
    ]
    further = (
        f"and then tuned for {told['tuning_steps']} steps on {told['tuned_on']}"
        if "tuning_steps" in told
        else "without further training"
    )
    lines = [
        "---",
        f"library_name: {'transformers' if told['plain'] else 'raffm_ray'}",
        "tags: [raffm_ray, subnetwork]",
        "---",
        "",
        f"# A subnetwork of a {architecture.config.model_type} model: {100 * told['params_fraction']:.0f}% of its parameters, {100 * told['layer_fraction']:.0f}% of those in layers",
        "",
        *(["It is a plain checkpoint: transformers loads it without raffm_ray."] if told["plain"] else _needed()),
        "",
        "```python",
        *use,
        "```",
        "",
        f"Cut out of {origin}, {further}.",
        "",
        f"{told['params']:,} parameters, {told['macs']:,} multiply-accumulates an example, about {told['inference_bytes']:,} bytes of memory to answer one (estimated, in 32 bit floats).",
        "",
        f"| form | file | bytes | {metric} (held out){', ' + unit(metric) if unit(metric) else ''} | median ms | 95th percentile |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, form in told["forms"].items():
        times = f"{rounded(form['median_ms'])} | {rounded(form['p95_ms'])}" if "median_ms" in form else " | "
        lines.append(f"| {NAMES[name]} | {form['file']} | {form['bytes']:,} | {shown(metric, form['metric'])} | {times} |")
    if "before_tuning" in told:
        lines += ["", f"Before tuning: {shown(metric, told['before_tuning'])}."]
    lines += ["", f"Times are of {at_once(told)} of middling length, with one thread, on the machine that made this folder.", ""]
    if least := told.get("least_trained"):
        lines += [f"Smaller than whatever was trained: the smallest device type had {least:,} parameters.", ""]
    lines += _exported(told)
    if table := widths_table(architecture, told["widths"]):
        lines += ["## What it keeps", "", *table, ""]
    return "\n".join(lines)


def supernet_card(origin: str, supernet: Supernet) -> str:
    """The text about a sorted supernet: how to read a size of it, and what five sizes take."""
    architecture, units = supernet.architecture, len(supernet.units)
    full = costs_of(architecture, Plan()).params
    lines = [
        f"# All sizes of a {architecture.config.model_type} model in one file",
        "",
        f"Made of {origin}, without further training. Every beginning of the parameters in `{FILE}` is a subnetwork; bytes behind it are not read.",
        "",
        "```python",
        "import raffm_ray",
        "",
        f'module, bytes_read = raffm_ray.open_supernet("DIR").read({{"{usual_budget(architecture)}": 0.5}})',
        "```",
        "",
        "| parameters | bytes of parameters read | multiply-accumulates an example | bytes of memory to answer one (estimated) |",
        "| --- | --- | --- | --- |",
    ]
    for length in dict.fromkeys(units * part // 4 for part in range(5)):
        costs = costs_of(architecture, supernet.plan_at(length))
        lines.append(
            f"| {costs.params:,} ({100 * costs.params / full:.0f}%) | {4 * costs.params:,} | {costs.macs:,} | {costs.inference_bytes:,} |"
        )
    return "\n".join([*lines, "", f"There are {units + 1:,} sizes: these are the smallest, the largest and three between.", ""])
