"""A run from Python: started by one call, and then an object with its records as tables, its report, and its model in any size."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import nn

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.deployment.deploy import fitted, plan_for
from raffm_ray.deployment.trained_model import of_run
from raffm_ray.reports.page import Table
from raffm_ray.reports.run_report import report_of, result_table, write_report
from raffm_ray.reports.run_story import lead
from raffm_ray.runs.callbacks import Callback, OnRound
from raffm_ray.runs.locations import fresh_folder
from raffm_ray.runs.reader import read_clients, read_evaluations, read_rounds, read_summary
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import load, resolved
from raffm_ray.subnetworks.standalone import load_standalone, save_standalone

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A finished run in a folder. Raises UserError where there is none.

    `folder`: where it is; `summary`: the content of its `summary.json`.

    >>> import raffm_ray
    >>> run = raffm_ray.Run("runs/example")
    >>> run.summary["metric"]
    'accuracy'
    >>> int(run.clients["bytes_up"].sum()) == run.summary["bytes_up"]
    True
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.summary: dict[str, Any] = read_summary(self.folder)

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """The rounds in order, a row each: docs/reference/run_folder.md has the columns. What a column has of every device type is in columns such
        as `device_type_metrics.laptop`."""
        return _frame(read_rounds(self.folder))

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """A row for every client in every round, in order."""
        return _frame(read_clients(self.folder))

    @cached_property
    def evaluations(self) -> "pd.DataFrame":
        """A row for every measured client and model in every evaluated round, in order; empty without `evaluation.clients`."""
        return _frame(read_evaluations(self.folder))

    @cached_property
    def baselines(self) -> dict[str, "Run"]:
        """The runs of the experiment's baselines, by what they are called."""
        return {name: Run(self.folder / "baselines" / name) for name in self.summary.get("baselines", {})}

    def model(
        self, budget: Mapping[str, float] | None = None, device: str | None = None, plugins: Sequence[str] = ()
    ) -> nn.Module:
        """The trained model, or its subnetwork that fits, as a model of transformers that stands alone.

        `budget`: such as {"params": 0.5}, by the kinds that `raffm_ray.deploy` takes; `device`: a device type or profile; `plugins`: where
        those of the run are now. Neither: the full model. Raises UserError for an unknown kind or device, TooSmallError for too little.
        """
        if budget is not None and not isinstance(budget, Mapping):
            raise UserError(f"budget: expected a mapping such as {{'params': 0.5}}, got {budget!r}")
        trained = fitted(of_run(self.folder, (), plugins), budget or {}, device)
        plan = plan_for(trained, budget or {}, device) if budget or device else Plan()
        setup = trained.prepared.setup
        with TemporaryDirectory() as place:
            save_standalone(Path(place), setup.architecture, plan, trained.cut(plan))
            return load_standalone(Path(place), trained.prepared.task.head)

    def report(self) -> Path:
        """The page of the run, which is written where it is not there yet."""
        return report_of(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}): {lead(self.summary)[0]}"

    def _repr_html_(self) -> str:
        return _html(result_table(self.summary), lead(self.summary)[0])


def _html(table: Table, lead: str) -> str:
    """A sentence and a table for a notebook; all texts are shown as texts."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = row(table.headings, "th")
    body = "".join(row([cell.text for cell in one], "td") for one in (*table.rows, *table.footer))
    return f"<p>{escape(lead)}</p><table><thead>{head}</thead><tbody>{body}</tbody></table><p>{escape(table.caption)}</p>"


def _frame(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a table; a column of mappings becomes one for each of their keys."""
    import pandas as pd

    def spread(row: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in row.items():
            pairs = value if isinstance(value, list) else [(None, value)]
            found |= {name if key is None else f"{name}.{key}": one for key, one in pairs}
        return found

    return pd.DataFrame([spread(row) for row in rows])


def run(
    experiment: Experiment | Path | str,
    folder: Path | str | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    on_round: OnRound | None = None,
    quiet: bool = False,
) -> Run:
    """Runs an experiment, or what a YAML file says, with its baselines and its report, as the command `raffm-ray run` does.

    `folder`: new or empty; default: a new one in `runs`. `callbacks`: they are told of the experiment's own strategy, and what they raise
    ends the run, with which `raffm_ray.resume(folder)` goes on; `on_round`: the same as `Callback(round=on_round)`. `quiet`: without a
    progress bar. Raises UserError before any training when something cannot work.

    >>> import raffm_ray
    >>> experiment = raffm_ray.Experiment(
    ...     rounds=2,
    ...     model=raffm_ray.ModelSettings(
    ...         config={
    ...             "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1,
    ...             "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
    ...         },
    ...         pretrain=raffm_ray.PretrainSettings(epochs=3),
    ...     ),
    ...     clients=raffm_ray.ClientSettings(count=12, per_round=4),
    ...     pool=raffm_ray.PoolSettings(backend="in_process"),
    ... )
    >>> run = raffm_ray.run(experiment, "runs/example", quiet=True)
    >>> [int(number) for number in run.rounds["round"]]
    [0, 1, 2]
    >>> small, full = run.model(budget={"layer_params": 0.5}), run.model()
    >>> sum(one.numel() for one in small.parameters()) < sum(one.numel() for one in full.parameters())
    True
    >>> run.report().name
    'report.html'
    """
    given = resolved(experiment if isinstance(experiment, Experiment) else load(experiment))
    place = Path(folder) if folder is not None else fresh_folder(given.name)
    console = Console(stderr=True, quiet=quiet)
    simulate(given, place, console, callbacks=callbacks, on_round=on_round, report=write_report)
    return Run(place)
