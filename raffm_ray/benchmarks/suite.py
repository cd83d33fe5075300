"""The speed suite: `CASES`, run one after the other, one table and one JSON file."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from textwrap import wrap
from time import perf_counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.basics.machine import memory_bytes, processor, usable_cores
from raffm_ray.basics.tables import WordTable
from raffm_ray.basics.version import __version__
from raffm_ray.benchmarks.cases.large import large
from raffm_ray.benchmarks.cases.lengths import lengths
from raffm_ray.benchmarks.cases.records import records
from raffm_ray.benchmarks.cases.startup import start
from raffm_ray.benchmarks.empty_rounds import noop_large, noop_small
from raffm_ray.benchmarks.gpu import gpu, why_no_gpu
from raffm_ray.benchmarks.measurement import Backend, Bench, Row
from raffm_ray.benchmarks.scale import scale
from raffm_ray.benchmarks.subnetworks import extract_aggregate, subnet
from raffm_ray.benchmarks.training import training
from raffm_ray.benchmarks.warm_processes import WarmProcesses
from raffm_ray.clients.local_training import one_thread
from raffm_ray.runs.progress import Display
from raffm_ray.runs.recorder import check_output, write_json


@dataclass(frozen=True)
class Case:
    """`run` gives the case's rows; `says`: ours and the limit, in a line; `why_not`: why it cannot run here, None where it can."""

    run: Callable[[Bench], list[Row]]
    says: str
    why_not: Callable[[], str | None] = lambda: None


CASES: dict[str, Case] = {
    "noop-small": Case(noop_small, "500 clients of 10 kB that do nothing / bare Ray: one put, one sum a worker"),
    "noop-large": Case(noop_large, "50 clients of 45 MB that do nothing / bare Ray"),
    "digits": Case(training("digits"), "ViT of 39 thousand parameters, 100 clients of 2 steps / a plain PyTorch loop"),
    "cifar": Case(training("cifar"), "ViT of 2.7 million, 10 clients of 3 steps / a plain PyTorch loop"),
    "sst2": Case(training("sst2"), "MiniLM of 22.7 million, 10 clients of 4 steps / a plain PyTorch loop"),
    "subnet": Case(subnet, "a training step's time and memory at 75, 50, 35% of the encoder / at 100%"),
    "extract-aggregate": Case(extract_aggregate, "bytes cut and added a second / copied"),
    "scale": Case(scale, "registered clients, clients a round, workers: the most / the fewest"),
    "lengths": Case(lengths, "MiniLM on texts of 4 to 128 tokens, those of like length in a step / shuffled"),
    "large": Case(
        large, "a LLaMA of 1.0 billion, frozen in bfloat16: bytes and memory of a round of 4 clients / of what is trained"
    ),
    "records": Case(records, "10,000 rounds of 1,000 clients: written, gone on from, read / by pyarrow alone"),
    "start": Case(start, "raffm-ray run to the end of round 1 / libraries and Ray alone"),
    "gpu": Case(gpu, "BERT-base and ViT-B/16 in bfloat16, 10 clients of 4 steps / a plain loop on the same GPU", why_no_gpu),
}


OTHERS, FLAGS = ("attention", "compare", "extraction"), ("--workers", "--repetitions", "--quick", "--json", "--out")
"""What may also follow `raffm-ray bench`."""


def machine(workers: int) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes()[0],
        "workers": workers,
        "threads_a_worker": 1,
        "system": platform.platform(),
        "python": platform.python_version(),
        "raffm_ray": __version__,
        "load_before": os.getloadavg(),
        **{name: version(name) for name in ("torch", "transformers", "ray", "numpy")},
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    sign = "≥" if row.at_least else "≤"
    return f"{sign} {'+' if row.judged == 'extra' else ''}{row.target:g}{' x' if row.judged == 'ratio' else f' {row.unit}'}"


def table_of(results: Mapping[str, Sequence[Row]], title: str) -> Table:
    """A line a row: medians, and the quartiles of what the target is about."""
    table = WordTable(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("case", no_wrap=True)
    for heading in ("", "ours", "limit"):
        table.add_column(heading, no_wrap=True, justify="right" if heading else "left")
    for heading in ("ratio", "spread", "target", "met"):
        table.add_column(heading, no_wrap=True, justify="right")
    for case, rows in results.items():
        if not rows:
            table.add_row(case, CASES[case].why_not())
        for row in rows:
            low, high = row.quartiles
            met = {None: "", True: "yes", False: "[red]no[/]"}[row.met]
            table.add_row(
                case,
                row.what,
                f"{_short(median(row.ours))} {row.unit}",
                f"{_short(median(row.limit))} {row.unit}",
                f"{row.ratio:.3f}",
                f"{_short(low)}..{_short(high)}",
                _target(row),
                met,
            )
    table.caption = (
        "medians of repetitions that alternate; spread: quartiles of what the target bounds (the ratio, where there is none)"
    )
    return table


@dataclass(frozen=True)
class Options:
    """How cases are run: on so many workers, each side measured so often; `quick`: in small, whose numbers mean nothing."""

    workers: int
    repetitions: int
    quick: bool = False
    backend: Backend = "ray"


def run_suite(
    names: Sequence[str],
    folder: Path,
    console: Console,
    options: Options,
) -> dict[str, Any]:
    """Runs cases and writes `bench.json` into the folder; returns its content with the rows by case as `rows`.

    Raises UserError when the folder is taken. An error of a case is raised when all that came before is written.
    """
    check_output(folder)
    content: dict[str, Any] = {
        "machine": machine(options.workers),
        "repetitions": options.repetitions,
        "quick": options.quick,
        "backend": options.backend,
        "cases": {},
    }
    rows: dict[str, list[Row]] = {}
    processes = WarmProcesses(options.workers, 0) if options.quick else WarmProcesses(options.workers)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with one_thread(), Display(console, "bench", len(names)) as display:
            for name in names:
                display.stage(f"{name}: {CASES[name].says}", 1)
                began = perf_counter()
                reason = CASES[name].why_not()
                bench = Bench(
                    workers=options.workers,
                    repetitions=options.repetitions,
                    quick=options.quick,
                    progress=display.advance,
                    processes=processes,
                    backend=options.backend,
                )
                rows[name] = [] if reason else CASES[name].run(bench)
                case = {"says": CASES[name].says, "seconds": perf_counter() - began, "why_not": reason}
                content["cases"][name] = {**case, "rows": [row.content() for row in rows[name]]}
                write_json(folder / "bench.json", content)
    finally:
        processes.close()
    return {**content, "rows": rows}


def cases_text(width: int) -> str:
    """The cases as the help lists them, in lines of at most `width` characters."""
    edge = max(map(len, CASES)) + 4
    lines = [
        line
        for name, case in CASES.items()
        for line in wrap(case.says, width, initial_indent=f"  {name}".ljust(edge), subsequent_indent=" " * edge)
    ]
    return "\n".join(["Cases (ours / the limit that is measured beside it):", *lines])


def check_case(name: str) -> None:
    """Raises UserError for what is no case and no flag."""
    if name not in CASES:
        raise UserError(f"bench: {name!r} is not one of them{near_miss(name, [*CASES, *OTHERS, *FLAGS], listed=True)}")


def bench(names: Sequence[str], options: Options, folder: Path, as_json: bool = False) -> int:
    """Runs the named cases, or all of them, and prints a table, or what is in the JSON file."""
    began = perf_counter()
    content = run_suite(
        names=list(dict.fromkeys(names)) or list(CASES), folder=folder, console=Console(stderr=True), options=options
    )
    if as_json:
        print(json.dumps({key: value for key, value in content.items() if key != "rows"}, indent=2))
        return 0
    console = Console()
    console = console if console.is_terminal else Console(width=130)
    title = f"{options.workers} workers on {content['machine']['processor']}, {perf_counter() - began:.0f} s"
    console.print(table_of(content["rows"], f"shortened, the numbers mean nothing: {title}" if options.quick else title))
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    return 0
