"""The progress of a run: a line for each evaluation, and below them a bar where there is a terminal or a notebook."""

from collections.abc import Mapping
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raffm_ray.basics.formatting import without_numbers
from raffm_ray.data.metrics import shown, unit, worst


def has_bar(console: Console) -> bool:
    """Whether a bar can be shown. A notebook without ipywidgets has none: rich would warn of it with every step."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class Notes:
    """Where several runs tell lines to one console: a note or a warning once, by whichever run has it first, whatever its numbers."""

    def __init__(self, console: Console) -> None:
        self.console, self._told = console, set[str]()

    def tell(self, line: str) -> None:
        """Prints a line, unless it is a note or a warning that was told already."""
        said = without_numbers(line)
        if said not in self._told:
            self.console.print(line, highlight=False, soft_wrap=True)
        if line.startswith(("note: ", "warning: ")):
            self._told.add(said)


class Display:
    """The progress of one run. Without a terminal or a notebook it prints plain lines only."""

    def __init__(self, console: Console, title: str, rounds: int) -> None:
        self.console, self.title, self.rounds = console, title, rounds
        self._has_bar = has_bar(console)
        columns = (TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
        eta = (TextColumn("left"), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, *eta, console=console, disable=not self._has_bar, transient=True)
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
        if not self._has_bar:
            self.console.print(f"{self.title}: {description}", highlight=False, soft_wrap=True)

    def doing(self, what: str) -> None:
        """Says what goes on beside the stage, until it advances again."""
        if not self._has_bar:
            self.console.print(f"{self.title}: {what}", highlight=False, soft_wrap=True)
        elif self._task is not None:
            self._progress.update(self._task, detail=what)

    def advance(self, done: float, detail: str = "") -> None:
        """Sets how much of the stage is done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, detail=f"{detail}  {self._metric}".strip())

    def evaluated(self, round_number: int, name: str, metric: float, device_type_metrics: Mapping[str, float]) -> None:
        """Shows an evaluation."""
        lowest = shown(name, worst(name, list(device_type_metrics.values()) or [metric]))
        self._metric = f"{name} {shown(name, metric)}{unit(name)}"
        line = f"{self.title}: round {round_number}/{self.rounds}  {self._metric}  worst device type {lowest}{unit(name)}"
        self.console.print(line, highlight=False)
