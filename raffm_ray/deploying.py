"""`raffm-ray deploy`: the part of a trained model that fits a device, at once, with no further training."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raffm_ray.axes import Plan
from raffm_ray.costs import Budget, budget_from, costs_of
from raffm_ray.deployment import Forms, answers_of, save_inputs, within_latency, write_card, write_model
from raffm_ray.elastic import DESCRIBED, FILE, check_supernet, open_supernet, write_supernet
from raffm_ray.errors import UserError, look_up
from raffm_ray.exports import check_onnx
from raffm_ray.files import whole_folder
from raffm_ray.flags import take_flag
from raffm_ray.inference import latencies, typical_inputs
from raffm_ray.metrics import shown
from raffm_ray.model_card import NAMES, at_once, supernet_card
from raffm_ray.record import check_output, write_json
from raffm_ray.trained import Trained, find
from raffm_ray.training import one_thread

SIZES = "1,0.75,0.5,0.35,0.25"
"""Of `deploy compare`, where it is told no others: parts of the parameters in layers."""
LATENCY = "latency_ms"
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
        raise UserError(f"--budget: expected KIND=VALUE, such as params=0.5 or {LATENCY}=20, got {text!r}")
    return kind, _number(value, f"--budget {kind}")


def parse_sizes(text: str) -> list[float]:
    """`0.75,0.5` -> [0.75, 0.5]. Raises UserError for what is no fraction, or there twice."""
    sizes = [_number(word, "--sizes") for word in text.split(",")]
    if max(sizes) > 1 or len(set(sizes)) < len(sizes):
        raise UserError(f"--sizes: expected fractions of the parameters in layers, up to 1 and each once, got {text!r}")
    return sizes


def plan_for(trained: Trained, budgets: Mapping[str, float], device: str | None = None, examples: int = 1) -> Plan:
    """The subnetwork that all budgets, and a device, allow; `latency_ms` is that of so many `examples` at once. Raises UserError for an unknown kind or device, TooSmallError for too little."""
    setup = trained.prepared.setup
    limits = {kind: value for kind, value in budgets.items() if kind != LATENCY}
    budget = budget_from(limits, costs_of(setup.architecture, Plan()))
    if device is not None:
        profile = look_up(setup.devices, device, "--device")
        memory = profile.memory_bytes * setup.experiment.fleet.memory_fraction
        budget = budget.both(setup.budgets.get(device, Budget(memory_bytes=memory)))
    plan = trained.plan(budget)
    if LATENCY in budgets:
        fast = within_latency(trained, budgets[LATENCY], examples)
        plan = min(plan, fast, key=lambda one: costs_of(setup.architecture, one).params)
    return plan


def write_models(
    trained: Trained, plans: Mapping[str, Plan], folder: Path, forms: Forms, console: Console
) -> dict[str, dict[str, Any]]:
    """Writes every plan's model into `folder`/name, or into `folder` itself where the name is empty; returns what was measured by name.

    Times of all are taken in turns, in one go.
    """
    check_output(folder)
    task = trained.prepared.task
    if forms.examples > (most := len(task.held_out)):
        raise UserError(f"--examples: times are taken of held-out examples, of which there are {most:,}, got {forms.examples:,}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made: {error.strerror}") from None
    with one_thread(), whole_folder(folder) as place:
        told: dict[str, dict[str, Any]] = {}
        for name, plan in plans.items():
            console.print(
                f"cutting and measuring {name or 'the subnetwork'} ({costs_of(trained.prepared.setup.architecture, plan).params:,} parameters)",
                highlight=False,
            )
            (place / name).mkdir(exist_ok=True)
            told[name] = write_model(trained, plan, place / name, forms)
        if told:
            _take_times(trained, told, place, forms, console)
            if set(plans) != {""}:
                write_json(place / "sizes.json", told)
        if forms.elastic:
            write_supernet(trained, place)
            save_inputs(trained, place)
            with (place / "README.md").open("a", encoding="utf-8") as file:  # after the card of a size that lies beside it
                file.write("\n" * (file.tell() > 0) + supernet_card(trained.origin, open_supernet(place)))
    return told


def _take_times(trained: Trained, told: dict[str, dict[str, Any]], place: Path, forms: Forms, console: Console) -> None:
    """Takes the times of all that was written, and writes the cards."""
    console.print("taking times", highlight=False)
    task = trained.prepared.task
    answers = {(name, form): answer for name in told for form, answer in answers_of(place / name, task.head).items()}
    named = {f"{name}\n{form}": answer for (name, form), answer in answers.items()}
    for key, (median, late) in latencies(named, typical_inputs(task, forms.examples)).items():
        name, form = key.split("\n")
        told[name]["forms"][form] |= {"median_ms": median, "p95_ms": late}
    for name, one in told.items():
        write_card(trained, one, place / name)


def deploy(
    source: Path | str, folder: Path | str, budgets: Mapping[str, float] | None = None, device: str | None = None,
    flags: Sequence[str] = (), forms: Forms | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the subnetwork of a finished run, or of a checkpoint, that fits; returns what was measured of it.

    `budgets`: such as {"params": 0.5}, by the kinds of `costs.budget_from` or `latency_ms`; `device`: a device class or profile; `flags`:
    settings for a checkpoint, as on the command line. Raises UserError for whatever cannot work.
    """
    forms, console = forms or Forms(), Console(stderr=True, quiet=True)
    if forms.onnx or forms.int8:
        check_onnx()
    check_output(Path(folder))
    trained = find(str(source), flags)
    return write_models(trained, {"": plan_for(trained, budgets or {}, device, forms.examples)}, Path(folder), forms, console)[""]


def table_of(told: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row a model and form."""
    metric = next(iter(told.values()))["metric_name"]
    table = Table(box=SIMPLE_HEAD)
    columns = ("", "form", "parameters", metric, "bytes", "MACs", "memory*", "median ms", "95% ms")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    for name, one in told.items():
        for form, values in one["forms"].items():
            table.add_row(
                name, NAMES[form], f"{one['params']:,} ({100 * one['params_fraction']:.0f}%)", shown(metric, values["metric"]), f"{values['bytes']:,}",
                f"{one['macs']:,}", f"{one['inference_bytes']:,}", f"{values['median_ms']:.3g}", f"{values['p95_ms']:.3g}",
            )  # fmt: skip
    table.caption = f"times of {at_once(next(iter(told.values())))} with one thread; * estimated"
    return table


def _take_switch(words: list[str], name: str) -> bool:
    if name in words:
        words.remove(name)
        return True
    return False


def command(words: Sequence[str], fresh: Any) -> int:
    """`raffm-ray deploy SOURCE --budget KIND=VALUE ... --out DIR`, `raffm-ray deploy compare SOURCE`. Raises UserError."""
    from raffm_ray.display import standard_output

    rest = list(words)
    comparing = bool(rest) and rest[0] == "compare"
    rest = rest[comparing:]
    if not rest or rest[0].startswith("-"):
        raise UserError(
            "deploy: expected the folder of a finished run, or of a checkpoint: raffm-ray deploy runs/mine --budget params=0.5 --out small"
        )
    source, budgets = rest.pop(0), dict[str, float]()
    while (text := take_flag(rest, "--budget")) is not None:
        kind, value = parse_budget(text)
        budgets[kind] = value
    device, sizes, out, many = (take_flag(rest, name) for name in ("--device", "--sizes", "--out", "--examples"))
    steps = {name: _whole(name, take_flag(rest, name), 0) for name in ("--tune", "--distill")}
    if all(steps.values()):
        raise UserError("--tune and --distill: on labels, or on what the full model answers; not both")
    onnx, int8, exported, elastic = (_take_switch(rest, name) for name in ("--onnx", "--int8", "--torch-export", "--elastic"))
    for word in rest:
        if close := get_close_matches(word, FLAGS, 1, 0.8):
            raise UserError(f"{word}: unknown flag (did you mean {close[0]!r}?)")
    forms = Forms(
        onnx or comparing, int8 or comparing, exported, sum(steps.values()), elastic, _whole("--examples", many, 1), steps["--distill"] > 0,
    )  # fmt: skip
    if comparing:
        sizes = sizes or SIZES
    if forms.onnx or forms.int8:
        check_onnx()
    if not (budgets or device or sizes or elastic):
        raise UserError(
            "deploy: how small? --budget KIND=VALUE, --device NAME, --sizes 0.75,0.5, or --elastic for all in one file"
        )
    if sizes and (budgets or device):
        raise UserError("--sizes: says how small by itself; leave out --budget and --device")
    asked = parse_sizes(sizes) if sizes else []
    folder = Path(out) if out else fresh(f"deployed-{Path(source).name}")
    check_output(folder)
    console = Console(stderr=True)
    with console.status(f"reading {source}"):
        trained = find(source, rest)
    if elastic:
        check_supernet(trained)
    plans = {f"size-{size:g}": plan_for(trained, {"layer_params": size}) for size in asked}
    if budgets or device:
        plans = {"": plan_for(trained, budgets, device, forms.examples)}
    told = write_models(trained, plans, folder, forms, console)
    if told:
        standard_output().print(table_of(told))
    if elastic:
        print(
            f"all sizes: {folder / FILE} and {folder / DESCRIBED}: raffm_ray.open_supernet({str(folder)!r}).read({{'params': 0.5}})"
        )
    if comparing:
        from raffm_ray.deploy_picture import write_picture

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
