"""The result of a study: best trials, importances, configurations to run, `study.json`, its picture and its page."""

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import write_atomically
from raffm_ray.reports.comparisons.sentences import common_warnings
from raffm_ray.reports.seed_statistics import statistic
from raffm_ray.runs.recorder import write_json
from raffm_ray.settings.loading import dump
from raffm_ray.studies.best_trial import choose, front_of
from raffm_ray.studies.checked_study import CheckedStudy, Goal
from raffm_ray.studies.search_space import Space, changed
from raffm_ray.studies.study_page import study_page
from raffm_ray.studies.study_picture import draw_study
from raffm_ray.studies.study_settings import present_constraint, present_measure
from raffm_ray.studies.study_text import reasons_text, said

ENOUGH = 10
"""Finished trials below which importances say nothing."""


def importances_of(kept: optuna.Study) -> dict[str, float]:
    """Share of every setting in reaching the best trials (PED-ANOVA, Watanabe et al. 2023), largest first; with several objectives the
    best are those of the first fronts. At least five trials, or half of them, are the best. Empty below `ENOUGH` finished trials."""
    finished = sum(trial.state is TrialState.COMPLETE for trial in kept.trials)
    if finished < ENOUGH:
        return {}
    try:
        found = get_param_importances(
            kept, evaluator=PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, 5 / finished)))
        )
    except (RuntimeError, ValueError):  # all trials have the same values
        return {}
    return {key: float(value) for key, value in found.items()}


def _measures(trial: FrozenTrial, part: str) -> dict[str, Any]:
    """What was kept of a trial, by the names that measures have now."""
    return {present_measure(name): value for name, value in trial.user_attrs.get(part, {}).items()}


def _row(trial: FrozenTrial, space: Space, goals: Sequence[Goal]) -> dict[str, Any]:
    complete = trial.state is TrialState.COMPLETE
    values = {goal.measure: value for goal, value in zip(goals, trial.values, strict=True)} if complete else {}
    # A trial that somebody ran with Optuna alone has values, and nothing else.
    alone = {name: statistic([value]) for name, value in values.items()}
    return {
        "number": trial.number,
        "state": {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed"),
        "enqueued": "enqueued" in trial.user_attrs,
        "settings": {key: space[key].value(trial.params[key]) for key in space if key in trial.params},
        "values": values,
        "feasible": complete and all(excess <= 0 for excess in trial.constraints.values()),
        "excess": {present_constraint(text): excess for text, excess in trial.constraints.items()},
        "measures": _measures(trial, "measures") or alone,
        "held_out": {},
        "by_round": {str(round_number): value for round_number, value in trial.intermediate_values.items()},
        "reason": trial.user_attrs.get("reason", ""),
        "folder": trial.user_attrs.get("folder"),
        "file": "",
    }


def analysis(kept: optuna.Study, search: CheckedStudy) -> dict[str, Any]:
    """The content of `study.json`. Trials that were cut short and came again are left out."""
    study, space, goals = search.study, search.space, search.goals
    cut_short = {trial.user_attrs.get("continues") for trial in kept.trials}
    trials = [_row(trial, space, goals) for trial in kept.trials if trial.state.is_finished() and trial.number not in cut_short]
    higher = [goal.higher for goal in goals]
    values = {row["number"]: list(row["values"].values()) for row in trials if row["feasible"]}
    front = front_of(values, higher)
    choice = choose({number: values[number] for number in front}, goals, study.metric_share) if front else None
    chosen, kept_trials = front if len(goals) > 1 else front[:1], {trial.number: trial for trial in kept.trials}
    ordered = sorted(chosen, key=lambda number: values[number][0], reverse=higher[0])
    for row in trials:  # nobody looks at the held-out part of the others, which might be chosen by it
        if row["number"] in chosen:
            row["held_out"] = _measures(kept_trials[row["number"]], "held_out")
            row["file"] = f"front/{ordered.index(row['number']) + 1:03d}.yaml" if len(goals) > 1 else "best.yaml"
    return {
        "name": study.name,
        "metric": search.metric,
        "seeds": list(study.seeds),
        "examples": dict(search.examples),
        "objectives": {goal.measure: "maximize" if goal.higher else "minimize" for goal in goals},
        "constraints": [limit.text for limit in search.limits],
        "trials": trials,
        "front": chosen,
        "best": choice.best if choice else None,
        "rule": choice.rule if choice else "",
        "metric_share": study.metric_share,
        "enough": list(choice.enough) if choice else [],
        "importances": importances_of(kept),
        "hints": _shared_hints(kept, choice.best if choice else None),
    }


def _shared_hints(kept: optuna.Study, best: int | None) -> list[str]:
    """The warnings of every run of every complete trial, with the words of the best one, or else of the first."""
    complete = [trial for trial in kept.trials if trial.state is TrialState.COMPLETE]
    complete.sort(key=lambda trial: trial.number != best)
    hints = {f"trial {trial.number}": trial.user_attrs.get("hints", [[]]) for trial in complete}
    return common_warnings(hints)


def write_analysis(kept: optuna.Study, search: CheckedStudy, folder: Path) -> dict[str, Any]:
    """Writes `study.json`, `study.png`, `study.html`, `best.yaml` and, of several objectives, the configurations of the front; returns the content of
    the first. Raises UserError where every trial failed."""
    content, study = analysis(kept, search), search.study
    trials = {row["number"]: row for row in content["trials"]}
    write_json(folder / "study.json", content)
    if all(row["state"] == "failed" for row in trials.values()):
        raise UserError(
            f"{folder}: all {len(trials)} trials failed: {reasons_text(row['reason'] for row in trials.values())[:300]}"
        )

    def configuration(number: int) -> bytes:
        values = ", ".join(said(name, search.metric, trials[number]["measures"][name]) for name in content["objectives"])
        whole = dump(changed(search.base, {**trials[number]["settings"], "seed": study.seeds[0]}))
        return f"# Trial {number} of the study {study.name}: {values}, on the validation part.\n{whole}".encode()

    rmtree(folder / "front", ignore_errors=True)
    (folder / "best.yaml").unlink(missing_ok=True)
    if content["best"] is not None:
        write_atomically(folder / "best.yaml", configuration(content["best"]))
    if len(search.goals) > 1:
        (folder / "front").mkdir()
        for number in content["front"]:
            write_atomically(folder / trials[number]["file"], configuration(number))
    base = search.base
    shared = [
        ("Data", base.task.name),
        ("Clients", f"{base.clients.count:,}, {base.clients.per_round} a round"),
        ("Rounds", str(base.rounds)),
        ("Searched settings", ", ".join(search.space)),
    ]
    page = study_page(content, draw_study(content, folder / "study.png"), folder, shared)
    write_atomically(folder / "study.html", page.encode())
    return content
