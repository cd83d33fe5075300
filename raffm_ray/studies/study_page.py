"""The page of a study: the best trial and why, the front, all trials, pictures with their data, and all settings."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import without_secrets
from raffm_ray.basics.formatting import setting_text
from raffm_ray.data.metrics import METRICS, shown, unit
from raffm_ray.reports.page import Cell, Page, Picture, Section, Table, csv_text, render
from raffm_ray.reports.run_story import made_with_facts
from raffm_ray.reports.seed_statistics import error_of_share
from raffm_ray.runs.made_with import read_starts
from raffm_ray.studies.study_picture import PANELS
from raffm_ray.studies.study_text import notes, said
from raffm_ray.studies.trial import HELD_OUT

CALLED = {"full_model": "full model", "worst_device_type": "worst device type", "curve_area": "mean over sizes"}
ON_VALIDATION = "Metrics are of the validation part where nothing else is said."


def _value(content: Mapping[str, Any], measure: str, value: Mapping[str, Any] | None) -> Cell:
    return Cell("") if not value else Cell(said(measure, content["metric"], value).split(" ", 1)[1], value["mean"])


def _called(measure: str) -> str:
    return CALLED.get(measure, measure.replace("_", " "))


def verdict(content: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Why a trial of the front is `best.yaml` or not."""
    if row["number"] == content["best"]:
        return "best.yaml"
    lead = next((name for name in content["objectives"] if name in HELD_OUT), None)
    if lead is None:
        return "further from the best values"
    others = ", ".join(_called(name) for name in content["objectives"] if name != lead)
    if row["number"] in content["enough"]:
        return f"keeps the {_called(lead)}; best.yaml is better in {others}"
    higher, share = METRICS[content["metric"]].higher, content["metric_share"]
    values = [one["values"][lead] for one in content["trials"] if one["number"] in content["front"]]
    best = max(values) if higher else min(values)
    kept = f"{row['values'][lead] / best:.1%}" if best else "not enough"
    return f"{kept} of the best {_called(lead)}, {'below' if higher else 'above'} {share if higher else 1 / share:.4g}"


def _with_error(content: Mapping[str, Any], measure: str, part: str, value: Mapping[str, Any]) -> str:
    """A value, with the standard error that the number of examples of its part gives it."""
    text, examples = f"{_called(measure)} {_value(content, measure, value).text}", content["examples"][part]
    error = error_of_share(content["metric"], value["mean"], examples) if measure in ("full_model", "worst_device_type") else None
    return (
        text if error is None else f"{text} (standard error from {examples:,} examples: {shown(content['metric'], error)} points)"
    )


def lead(content: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    rows, best = content["trials"], next((row for row in content["trials"] if row["number"] == content["best"]), None)
    done = sum(row["state"] == "complete" for row in rows)
    if best is None:
        return [
            f"{len(rows)} trials, {done} of them complete: none meets every constraint ({', '.join(content['constraints'])})."
        ]
    metric, seeds = content["metric"], content["seeds"]
    values = ", ".join(_with_error(content, name, "validation", best["measures"][name]) for name in content["objectives"])
    lines = [f"The best of {done} complete trials is trial {best['number']}: {values} ({metric} on the validation part)."]
    reported = [name for name in content["objectives"] if name in HELD_OUT and best["held_out"]]
    if reported:
        told = ", ".join(_with_error(content, name, "held_out", best["held_out"][name]) for name in reported)
        lines.append(f"On the held-out part, which decided nothing, it has {told}.")
    if len(content["objectives"]) > 1:
        count = len(content["front"])
        front = (
            f"{count} trials are on the front: no other trial beats one of them"
            if count > 1
            else "No other trial is on the front"
        )
        lines.append(f"It is `best.yaml` by this rule: {content['rule']}. {front}.")
    if len(seeds) > 1:
        lines.append(f"Values are means over seeds {', '.join(map(str, seeds))}, ± standard error.")
    else:
        lines.append(
            f"All trials have the one seed {seeds[0]}: how much values change with it cannot be told. `--seeds '[0, 1, 2]'` measures it."
        )
    return lines


def _front(content: Mapping[str, Any]) -> Table:
    rows = [row for row in content["trials"] if row["number"] in content["front"]]
    rows.sort(key=lambda row: row["file"])
    reported = [name for name in content["objectives"] if name in HELD_OUT]
    headings = ["trial", "file", *(_called(name) for name in content["objectives"])]
    headings += [*(f"{_called(name)}, held out" for name in reported), "why"]
    cells = [
        [
            Cell(str(row["number"]), row["number"]),
            Cell(row["file"]),
            *(_value(content, name, row["measures"].get(name)) for name in content["objectives"]),
            *(_value(content, name, row["held_out"].get(name)) for name in reported),
            Cell(verdict(content, row)),
        ]
        for row in rows
    ]
    chosen = frozenset(at for at, row in enumerate(rows) if row["number"] == content["best"])
    caption = f"The front: trials that no other beats, best {_called(next(iter(content['objectives'])))} first. {ON_VALIDATION}"
    return Table(caption, headings, cells, text=frozenset({len(headings) - 1}), chosen=chosen)


def _trials(content: Mapping[str, Any]) -> Table:
    keys = list(dict.fromkeys(key for row in content["trials"] for key in row["settings"]))

    def setting(key: str, value: Any) -> Cell:
        return Cell(
            setting_text(key, value), float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        )

    def state(row: Mapping[str, Any]) -> str:
        missed = [text for text, excess in row["excess"].items() if excess > 0]
        return f"{row['state']}, misses {', '.join(missed)}" if missed else row["reason"] or str(row["state"])

    rows = [
        [
            Cell(str(row["number"]), row["number"]),
            *(_value(content, name, row["measures"].get(name)) for name in content["objectives"]),
            *(setting(key, row["settings"][key]) if key in row["settings"] else Cell("") for key in keys),
            Cell(state(row)),
        ]
        for row in content["trials"]
    ]
    headings = ["trial", *(_called(name) for name in content["objectives"]), *keys, "state"]
    chosen = frozenset(at for at, row in enumerate(content["trials"]) if row["number"] == content["best"])
    return Table(f"All trials. {ON_VALIDATION}", headings, rows, text=frozenset({len(headings) - 1}), chosen=chosen)


def _pictures(content: Mapping[str, Any], panels: Mapping[str, bytes]) -> list[Picture]:
    goals = list(content["objectives"])
    rows = [
        [row["number"], row["state"], row["number"] in content["front"], *(row["values"].get(name) for name in goals)]
        for row in content["trials"]
    ]
    data = csv_text(["trial", "state", "on_front", *goals], rows)
    pairs = {f"pair {at + 1}": pair for at, pair in enumerate(combinations(goals, 2))}
    best = f" The best trial is trial {content['best']}." if content["best"] is not None else ""
    importances = ", ".join(f"{key} {100 * share:.0f}%" for key, share in content["importances"].items())
    found = []
    for name in (name for name in PANELS if name in panels):
        if name == "importances":
            caption = (
                "Which settings mattered: share of each in being among the best trials (PED-ANOVA). A hint below fifty trials."
            )
            alt, own = (
                f"Bar chart of the importances of settings: {importances}.",
                csv_text(["setting", "importance"], list(content["importances"].items())),
            )
        elif name == "history":
            caption = f"The {_called(goals[0])} trial by trial, and the best so far."
            alt, own = f"Chart of the {_called(goals[0])} of {len(rows)} trials.{best}", data
        else:
            first, second = (_called(one) for one in pairs[name])
            caption = f"Trials by {first} and {second}; those on the front have their numbers."
            alt, own = (
                f"Scatter chart of {len(rows)} trials by {first} and {second}; {len(content['front'])} are on the front.{best}",
                data,
            )
        found.append(Picture(name.replace(" ", "_"), panels[name], alt, caption, own))
    return found


def study_page(content: Mapping[str, Any], panels: Mapping[str, bytes], folder: Path, base: Sequence[tuple[str, str]]) -> str:
    """The page as HTML. `content`: of `study.json`; `panels`: as `draw_study` returns them; `folder`: of the study; `base`: facts of what all
    trials share."""
    several = len(content["objectives"]) > 1
    objectives = ", ".join(f"{direction} {name}" for name, direction in content["objectives"].items())
    facts = [*made_with_facts(read_starts(folder), "trials"), ("Objectives", objectives)]
    if content["constraints"]:
        facts.append(("Constraints", ", ".join(content["constraints"])))
    facts += [("Seeds", ", ".join(map(str, content["seeds"]))), *base]
    text = (folder / "study.yaml").read_text(encoding="utf-8") if (folder / "study.yaml").is_file() else ""
    sections = [
        *([Section("The front", tables=[_front(content)])] if several and content["front"] else []),
        *([Section("Pictures", pictures=_pictures(content, panels))] if panels else []),
        Section(
            "Trials", tables=[_trials(content)], notes=[f"{line[:1].upper()}{line[1:]}." for line in notes(content, marks=False)]
        ),
        Section("What was run", facts=facts),
        Section("Settings", folded=[("All settings: `study.yaml`", without_secrets(text))]),
    ]
    sign = f" in {unit(content['metric'])}" if unit(content["metric"]) else ""
    title = f"{content['name']}: {len(content['trials'])} trials by {', '.join(map(_called, content['objectives']))} ({content['metric']}{sign})"
    return render(Page("Report of a study", title, lead(content), sections, ["Made with raffm_ray."]))
