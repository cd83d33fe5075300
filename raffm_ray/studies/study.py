"""A study: Optuna chooses configurations, trials run them, and only the driver touches what Optuna remembers."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any

import optuna
import yaml
from optuna.study import StudyDirection
from optuna.trial import TrialState
from rich.console import Console

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import locked, write_atomically
from raffm_ray.basics.formatting import standard_output
from raffm_ray.reports.seed_statistics import statistic
from raffm_ray.runs.made_with import record_start
from raffm_ray.runs.recorder import check_output
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.plugins import plugins_of, wherever
from raffm_ray.studies.checked_study import CheckedStudy, check_study
from raffm_ray.studies.samplers import pruner_of, sampler_of
from raffm_ray.studies.search_space import changed
from raffm_ray.studies.storage import DRIVER, begin_again, begun, driver_of, folder_name, open_storage, open_study
from raffm_ray.studies.study_report import write_analysis
from raffm_ray.studies.study_settings import FREE, Study, dump_study, load_study, with_present_words
from raffm_ray.studies.study_text import notes, said, table
from raffm_ray.studies.trial import Outcome, TrialTask, run_trial

STUDY = "study.yaml"


def _check_same(folder: Path, wanted: str) -> None:
    """Raises UserError where a folder holds another study than the wanted one, but for what may change."""
    try:
        there, here = yaml.safe_load((folder / STUDY).read_text(encoding="utf-8")), yaml.safe_load(wanted)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder / STUDY}: cannot be read: {str(error).splitlines()[0]}") from None
    there = with_present_words(there) if isinstance(there, dict) else {}
    for key in here:
        if key not in FREE and wherever(there.get(key)) != wherever(here[key]):
            raise UserError(f"--out {folder}: holds another study: its {key} is not this one's; name another folder")


def _digest(text: str) -> str:
    """Of all in a study's file that its trials depend on."""
    values = yaml.safe_load(text)
    kept = {key: value for key, value in values.items() if key not in (*FREE, "storage")}
    return sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def _opened(search: CheckedStudy, folder: Path, configuration: str) -> tuple[optuna.Study, str | None]:
    """The study where Optuna keeps it, made or gone on with, and this driver's name where it may have company. Trials that were cut
    short are failed and come again, with what they had."""
    given = search.study.storage
    driver = None if given is None else driver_of(folder)
    kept = open_study(
        storage=open_storage(given, folder),
        name=search.study.name,
        directions=[StudyDirection.MAXIMIZE if goal.higher else StudyDirection.MINIMIZE for goal in search.goals],
        pruner=pruner_of(search.study.pruner),
        configuration=configuration if given else None,
    )
    known = {trial.user_attrs.get("enqueued") for trial in kept.trials}
    for position, parameters in enumerate(search.first):
        if position not in known:
            kept.enqueue_trial(dict(parameters), user_attrs={"enqueued": position})
    begin_again(kept, driver)
    return kept, driver


class _Driver:
    """Asks Optuna what to try, and tells it what became of it."""

    def __init__(self, search: CheckedStudy, kept: optuna.Study, driver: str | None, folder: Path, console: Console) -> None:
        self.search, self.kept, self.driver, self.folder, self.console = search, kept, driver, folder, console
        self.live: dict[int, tuple[optuna.Trial, float, set[int]]] = {}

    def works(self) -> Iterator[TrialTask]:
        """Trials until there are enough, each chosen when it is asked for."""
        study, space = self.search.study, self.search.space
        distributions = {key: dimension.distribution for key, dimension in space.items()}
        while (position := begun(self.kept)) < study.trials:
            self.kept.sampler = sampler_of(study.sampler, study.seed, position, self.driver)
            trial = self.kept.ask(distributions)
            if self.driver:
                trial.set_user_attr(DRIVER, self.driver)
            name = trial.user_attrs.get("folder", folder_name(trial.number))
            trial.set_user_attr("folder", name)
            before: Mapping[int, float] = {}
            if "continues" in trial.user_attrs:
                before = self.kept.trials[trial.user_attrs["continues"]].intermediate_values
                for round_number, value in before.items():
                    trial.report(value, round_number)
            self.live[trial.number] = (trial, time.perf_counter(), set(before))
            values = {key: space[key].value(shown) for key, shown in trial.params.items()}
            if study.parallel > 1:
                values["pool.backend"] = "in_process"
            try:
                experiments = [changed(self.search.base, {**values, "seed": seed}) for seed in study.seeds]
            except UserError as error:  # values that do not go together
                self.ended(trial.number, Outcome(reason=str(error)))
                continue
            yield TrialTask(trial.number, experiments, (self.folder / name).resolve(), self.search.metric, self.search.watched)

    def report(self, number: int, round_number: int, value: float) -> bool:
        """Whether a trial is to stop after a round."""
        trial, _, reported = self.live[number]
        if round_number not in reported and math.isfinite(value):
            trial.report(value, round_number)
            reported.add(round_number)
        return trial.should_prune()

    def ended(self, number: int, outcome: Outcome) -> None:
        """Tells Optuna, and the user in a line, what became of a trial."""
        trial, since, _ = self.live.pop(number)
        measures, held_out = (
            {name: statistic(values) for name, values in one.items()} for one in (outcome.measures, outcome.held_out)
        )
        needed = [*self.search.study.objectives, *(limit.measure for limit in self.search.limits)]
        means = {name: measures[name]["mean"] for name in needed if measures}
        bad = [f"{name} is {mean}" for name, mean in means.items() if mean is None or not math.isfinite(mean)]
        reason = outcome.reason or "; ".join(bad)
        if reason:
            trial.set_user_attr("reason", reason)
            self.kept.tell(trial, state=TrialState.FAIL)
            told = f"failed: {reason}"
        elif outcome.pruned:
            self.kept.tell(trial, state=TrialState.PRUNED)
            told = "pruned"
        else:
            trial.set_user_attr("measures", measures)
            trial.set_user_attr("held_out", held_out)
            trial.set_user_attr("hints", outcome.hints)
            for limit in self.search.limits:
                trial.set_constraint(limit.text, limit.excess(means[limit.measure]))
            self.kept.tell(trial, [means[goal.measure] for goal in self.search.goals])
            told = ", ".join(said(goal.measure, self.search.metric, measures[goal.measure]) for goal in self.search.goals)
        seconds, done = time.perf_counter() - since, begun(self.kept) - len(self.live)
        self.console.print(
            f"trial {number} ({done} of {self.search.study.trials}, {seconds:.0f} s): {told}", highlight=False, soft_wrap=True
        )


def run_study(study: Study, base: Experiment, folder: Path | str, console: Console | None = None) -> dict[str, Any]:
    """Runs a study in `folder`, or goes on with the one that is there; returns the content of `study.json`.

    Every trial's runs are in `folder`/trials/<number>/seed-<n>. With the same seed and one trial at a time a study is the same, however
    often it was interrupted. Raises UserError before any training where something cannot work, and where every trial failed.
    """
    console, folder = console or Console(stderr=True, quiet=True), Path(folder)
    with _quiet():
        search = check_study(study, base)
        for line in search.notes:
            console.print(f"note: {line}", highlight=False, soft_wrap=True)
        text = dump_study(study, search.base)
        if not (folder / STUDY).is_file():
            check_output(folder)
        with locked(folder):
            if (folder / STUDY).is_file():
                _check_same(folder, text)
            write_atomically(folder / STUDY, text.encode())
            kept, name = _opened(search, folder, _digest(text))
            record_start(folder, begun(kept), search.base.pool.device)
            if begun(kept):
                console.print(f"{folder}: goes on after {begun(kept)} trials", highlight=False, soft_wrap=True)
            driver = _Driver(search=search, kept=kept, driver=name, folder=folder, console=console)
            for number, outcome in _outcomes(driver, study, search):
                driver.ended(number, outcome)
            console.print("drawing the report", highlight=False)
            return write_analysis(kept, search, folder)


def _outcomes(driver: _Driver, study: Study, search: CheckedStudy) -> Iterator[tuple[int, Outcome]]:
    """Trials as they end. The next one is chosen only after what became of this one was told."""
    if study.parallel == 1:
        for work in driver.works():
            yield work.number, run_trial(work, partial(driver.report, work.number))
        return
    from raffm_ray.studies.ray_trials import check_capacity, run_trials_in_parallel

    plugins = plugins_of(search.base.plugins)
    check_capacity(study.parallel, search.base.pool)
    yield from run_trials_in_parallel(
        driver.works(), study.parallel, search.base.pool, driver.report, bool(search.watched), plugins
    )


def command(
    path: Path, flags: Sequence[str], out: str | None, fresh_folder: Callable[[str], Path], plugins: Sequence[str] = ()
) -> int:
    """Runs the study of a YAML file, or goes on with the one in a folder, and prints its best trials. `out`: the study's folder, a
    `fresh_folder` by its name where None; `flags`: keys of the file that are others; `plugins`: besides
    those of the experiment, or where they are now."""
    chosen = out or (str(path) if path.is_dir() else None)
    study, base = load_study(path / STUDY if path.is_dir() else path, flags, plugins, recorded=path.is_dir())
    folder = Path(chosen or fresh_folder(study.name))
    try:
        content = run_study(study, base, folder, Console(stderr=True))
    except KeyboardInterrupt:
        told = f"; raffm-ray study {quote(str(folder))} goes on" if (folder / STUDY).is_file() else ""
        raise KeyboardInterrupt(told) from None
    printer = standard_output()
    if content["front"]:
        printer.print(table(content), "")
    for note in notes(content):
        printer.print(note, style="dim", highlight=False)
    printer.print(
        f"report:  {folder / 'study.html'}\nbest:    {folder / 'best.yaml'}\nstudy:   {folder}", highlight=False, soft_wrap=True
    )
    return 0
