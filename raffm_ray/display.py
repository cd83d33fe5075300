"""What a person sees while a run works: a bar on a terminal, a line an evaluation elsewhere, a table at the end."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from raffm_ray.metrics import shown, unit, worst


class Display:
    """The progress of one run. Without a terminal it prints a plain line for every evaluation instead of a bar."""

    def __init__(self, console: Console, title: str, rounds: int) -> None:
        self.console, self.title, self.rounds = console, title, rounds
        columns = (TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
        eta = (TextColumn("left"), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, *eta, console=console, disable=not console.is_terminal, transient=True)
        self._task: TaskID | None = None
        self._metric = ""

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, description: str, total: int) -> None:
        """Starts a bar for one stage: pretraining, or the rounds."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(self.title, total=total, detail=description)
        if not self.console.is_terminal:
            self.console.print(f"{self.title}: {description}", highlight=False)

    def advance(self, done: float, detail: str = "") -> None:
        """Sets how much of the stage is done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, detail=f"{detail}  {self._metric}".strip())

    def evaluated(self, round_number: int, name: str, metric: float, class_metrics: Mapping[str, float]) -> None:
        """Shows an evaluation."""
        lowest = shown(name, worst(name, list(class_metrics.values()) or [metric]))
        self._metric = f"{name} {shown(name, metric)}{unit(name)}"
        if not self.console.is_terminal:
            line = f"{self.title}: round {round_number}/{self.rounds}  {self._metric}  worst class {lowest}{unit(name)}"
            self.console.print(line, highlight=False)


def magnitude(largest: float, symbol: str) -> tuple[float, str]:
    """The unit that suits a scale up to `largest`, and how much it is: (1e6, "MB") for 5e6 and "B"."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if largest >= scale:
            return scale, f"{prefix}{symbol}"
    return (1e-3, f"m{symbol}") if largest > 0 else (1.0, symbol)


def standard_output() -> Console:
    """Standard output, 100 columns wide where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=100)


def human_bytes(count: float) -> str:
    """1536 -> `1.5 kB` (powers of 1000)."""
    for name in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or name == "TB":
            return f"{count:.0f} {name}" if name == "B" else f"{count:.1f} {name}"
        count /= 1000
    raise AssertionError


def human_joules(joules: float | None) -> str:
    """0.0123 -> `12.3 mJ`; None, of a class that never trained, -> `-`."""
    if joules is None:
        return "-"
    return f"{1000 * joules:.3g} mJ" if joules < 1 else f"{joules:.3g} J"


def human_seconds(seconds: float | None) -> str:
    """0.01234 -> `12.3 ms`; None -> `-`."""
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def time_unit(seconds: float) -> tuple[float, str]:
    """(how many seconds it has, its name) of the unit in which a time is read best: 7200 -> (3600, `hours`)."""
    units = ((172800.0, 86400.0, "days"), (7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (1.0, 1.0, "seconds"))
    return next(((size, name) for least, size, name in units if seconds >= least), (1e-3, "milliseconds"))


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The table at a run's end: the full model and every class, this strategy and its baselines. It fits 80 columns."""
    baselines, metric = summary.get("baselines", {}), summary["metric"]
    title = f"{summary['name']}: {metric}{' in %' if unit(metric) else ''} after {summary['rounds']} rounds, {summary['clients']} clients"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("params", "start", summary["strategy"], *baselines, "bytes", "time*", "energy*", "peak*"):
        table.add_column(heading, justify="right", no_wrap=True)
    full = [f"{summary['params']:,}", shown(metric, summary["start"]), shown(metric, summary["global"])]
    full += [shown(metric, other["global"]) for other in baselines.values()]
    table.add_row("full model", *full, "", "", "", "", end_section=True)
    for name, tier in summary["tiers"].items():
        row = [f"{100 * tier['params_fraction']:.0f}%", shown(metric, tier["start"]), shown(metric, tier["metric"])]
        row += [shown(metric, other["tiers"][name]["metric"]) for other in baselines.values()]
        row += [human_bytes(tier["bytes_down"] + tier["bytes_up"]), human_seconds(tier["round_seconds"])]
        row += [human_joules(tier["energy_joules"]), human_bytes(tier["peak_memory_bytes"])]
        table.add_row(name, *row)
    runs = {summary["strategy"]: summary, **baselines}
    moved = ", ".join(f"{name} {human_bytes(one['bytes_down'] + one['bytes_up'])}" for name, one in runs.items())
    worst_class = ", ".join(f"{name} {shown(metric, one['worst_class']['metric'])}" for name, one in runs.items())
    over_sizes = ", ".join(f"{name} {shown(metric, one['curve_area'])}" for name, one in runs.items() if one["curve"])
    table.caption = (
        f"worst class: {worst_class}" + (f"; mean over sizes: {over_sizes}" if over_sizes else "") + "\n"
        "bytes, time, energy: of one client in one round, down and up; peak: of memory\n"
        "* simulated device, estimated from data sheets\n"
        f"moved in the whole run: {moved}"
    )
    return table
