"""A strategy and its rivals over seeds: the same data, fleet, budgets and rounds, every run in a folder of its own."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.basics.files import check_no_links, check_path, locked
from raffm_ray.basics.formatting import counted
from raffm_ray.clients.local_training import one_thread
from raffm_ray.pool.worker_pool import open_pool
from raffm_ray.preparation.baselines import alone, check_baselines, with_strategy
from raffm_ray.preparation.equal_resources import Equalized, equalized, with_equal_budgets
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.comparisons.report import flat, write_page
from raffm_ray.reports.run_report import write_report
from raffm_ray.reports.seed_statistics import check_target
from raffm_ray.runs import checkpoint
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.progress import Notes
from raffm_ray.runs.reader import of_a_run, read_rounds, read_summary
from raffm_ray.runs.recorder import check_output
from raffm_ray.runs.simulation import check_loggers, completed, starting
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.former_values import with_present_values
from raffm_ray.settings.loading import dump
from raffm_ray.settings.plugins import wherever
from raffm_ray.settings.strategy import BaselineSettings
from raffm_ray.studies.published.markdown_page import PageRequest, check_origin, check_place, page_text, write_published
from raffm_ray.studies.published.origin import Origin, origin_of
from raffm_ray.studies.tuning import tuned


@dataclass(frozen=True)
class Run:
    """One strategy on one seed; its experiment repeats it alone. `strategy`: what it is called; `baseline`: None for the experiment's own."""

    strategy: str
    baseline: BaselineSettings | None
    seed: int
    experiment: Experiment
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its summary is there, which is written last."""
        return (self.folder / "summary.json").is_file()


def runs_of(experiment: Experiment, seeds: Sequence[int], folder: Path) -> list[Run]:
    """Every strategy on every seed, a seed after the other."""
    entries = [None, *experiment.baselines]
    names = [one.shown if one else experiment.strategy.name for one in entries]
    return [
        Run(
            strategy=name,
            baseline=one,
            seed=seed,
            experiment=alone(experiment, one).model_copy(update={"seed": seed}),
            folder=folder / name.replace(" ", "-") / f"seed-{seed}",
        )
        for seed in seeds
        for name, one in zip(names, entries, strict=True)
    ]


def check_folder(run: Run) -> None:
    """Raises UserError when the run's folder holds anything but this run, finished or not, or cannot be made."""
    check_path(run.folder)
    check_no_links(run.folder)
    kept, wanted = run.folder / "config.yaml", dump(run.experiment)
    if not kept.is_file():
        check_output(run.folder)
        return
    try:
        text = kept.read_text(encoding="utf-8")
        found = {} if text == wanted else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{kept}: cannot be read: {str(error).splitlines()[0]}") from None
    if text == wanted:
        return
    there = flat(wherever(with_present_values(found)) if isinstance(found, dict) else {})
    here = flat(wherever(yaml.safe_load(wanted)))
    keys = [key for key in {**here, **there} if key not in there or key not in here or there[key] != here[key]]
    if keys:
        first, second = (shortened(side[keys[0]]) if keys[0] in side else "not set" for side in (there, here))
        told = f"{keys[0]} is {first} there and {second} here"
        raise UserError(f"--out: {run.folder} holds a run of another configuration: {told}; name another folder")


def _left(seconds: Sequence[float], waiting: int) -> str:
    """How long the waiting runs will take, judged by those that ended."""
    if not seconds:
        return ""
    minutes = sum(seconds) / len(seconds) * waiting / 60
    return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def _run_all(runs: Sequence[Run], experiment: Experiment, console: Console) -> None:
    """Runs what is not finished; one pool a seed, since a seed divides the data anew."""
    seconds: list[float] = []
    waiting, notes = sum(not run.finished for run in runs), Notes(console)
    for seed in dict.fromkeys(run.seed for run in runs):
        own = [run for run in runs if run.seed == seed]
        for run in own:
            if run.finished:
                console.print(f"compare: {run.strategy}, seed {seed}: reused", highlight=False)
        missing = [run for run in own if not run.finished]
        if not missing:
            continue
        prepared = prepare(experiment.model_copy(update={"seed": seed}))
        start = starting(prepared, console, notes)
        tell = partial(console.print, highlight=False)
        pool = open_pool(prepared.runner(), experiment.pool, tell, prepared.setup.device_types)
        try:
            for run in missing:
                number = 1 + runs.index(run)
                place = f"compare: run {number} of {len(runs)}: {run.strategy}, seed {seed}"
                console.print(f"{place}{_left(seconds, waiting)}", highlight=False)
                began = time.perf_counter()
                with locked(run.folder):
                    environment = Environment(pool, console, label=run.strategy, notes=notes)
                    completed(with_strategy(prepared, run.baseline), start, run.folder, environment)
                    checkpoint.remove(run.folder / "checkpoints")  # of many runs, each too large to keep
                seconds.append(time.perf_counter() - began)
                waiting -= 1
        finally:
            pool.close()


def _origin(runs: Sequence[Run]) -> Origin:
    return origin_of([run.experiment for run in runs], [run.folder for run in runs])


def _equal(experiment: Experiment, seeds: Sequence[int], resource: str, console: Console) -> Equalized:
    """The experiment with budgets and rounds that hold a resource equal. Raises UserError as `equalized`."""
    prepared = prepare(experiment)
    converted = with_equal_budgets(prepared, resource)
    found = equalized([prepare(converted.model_copy(update={"seed": seed})) for seed in seeds], resource)
    counts = {one.shown: one.rounds for one in found.experiment.baselines}
    told = ", ".join(f"{name} {count}" for name, count in {experiment.strategy.name: found.experiment.rounds, **counts}.items())
    console.print(f"compare: equal {resource}: rounds of {told}", highlight=False)
    return found._replace(experiment=found.experiment.model_copy(update={"seed": experiment.seed}))


def compare(
    experiment: Experiment,
    seeds: Sequence[int],
    folder: Path | str,
    console: Console | None = None,
    equal: str | None = None,
    tune: int | None = None,
    page: Path | str | None = None,
    renew: bool = False,
    target: float | None = None,
) -> dict[str, Any]:
    """Runs the experiment's strategy and each of its baselines on every seed, in `folder`/<strategy>/seed-<n>; returns the content of
    `comparison.json`, which is written beside `.html`, `.csv`, `.md` and `.png`.

    `equal`: a resource of `RESOURCES`: budgets are converted to its unit, and every strategy has as many rounds as spend what they allow.
    `tune`: trials of a study of the learning rate that every strategy has before, on the validation part, with the first seed.
    `page`: a file that ends in `.md`, for the same table with what its numbers come from, and the picture beside it; it only replaces numbers
    of another commit or of other settings with `renew`.
    `target`: a value of the metric: what every strategy spent until its full model was first seen at it or better.
    A run that is there already, finished and of the same configuration, is reused; one that was interrupted goes on after its last checkpoint. Raises
    UserError before any training when a run cannot work, its folder holds something else, or the page may not be written.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    request = PageRequest(Path(page), renew) if page is not None else None
    if request:
        check_place(request)
    check_baselines(experiment)
    check_loggers(experiment)
    ready = prepare(experiment.model_copy(update={"seed": seeds[0]}))
    seen, metric = ready.setup.experiment, ready.task.metric  # with what it leaves open chosen
    del ready  # every seed divides the data anew
    experiment, allowed = seen.model_copy(update={"seed": experiment.seed}), None
    if target is not None:
        check_target(metric, target)
    if equal is not None:
        experiment, allowed = _equal(experiment, seeds, equal, console)
    rates: dict[str, float] = {}
    if tune is not None:
        first = experiment.model_copy(update={"seed": seeds[0]})
        found, rates = tuned(first, tune, folder / "tuning", console)
        experiment = found.model_copy(update={"seed": experiment.seed})
    runs = runs_of(experiment, seeds, folder)
    for run in runs:
        check_folder(run)
    if request:
        check_origin(request, _origin(runs))
    with one_thread():
        for seed in dict.fromkeys(run.seed for run in runs if not run.finished):
            prepared = prepare(experiment.model_copy(update={"seed": seed}))
            for one in experiment.baselines:
                with_strategy(prepared, one)
        _run_all(runs, experiment, console)
    summaries: dict[str, dict[int, dict[str, Any]]] = {}
    rounds: dict[str, list[list[dict[str, Any]]]] = {}
    console.print(f"compare: drawing the reports of {counted(len(runs), 'run')} and the comparison", highlight=False)
    for run in runs:
        if not (run.folder / "report.html").is_file():
            write_report(run.folder)
        summaries.setdefault(run.strategy, {})[run.seed] = read_summary(run.folder)
        rounds.setdefault(run.strategy, []).append(read_rounds(run.folder))
    with of_a_run(folder):
        protocol = {
            "equal": {"resource": equal, "allowed": allowed} if equal else None,
            "tuned": {"trials": tune, "learning_rates": rates} if rates else None,
            "target": target,
        }
        write_page(summaries, rounds, [(run.strategy, run.seed, str(run.folder)) for run in runs], folder, protocol)
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    if request:
        told = [(run.strategy, run.seed, run.folder) for run in runs]
        write_published(request, page_text(content, _origin(runs), told, request.picture.name), folder / "comparison.png")
    return content
