"""One page of several finished runs: grouped by what differs between them, with error bands over their seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.basics.formatting import setting_text
from raffm_ray.data.metrics import METRICS
from raffm_ray.reports.comparisons.content import Summaries, comparison_content, rows_of_runs
from raffm_ray.reports.comparisons.page import comparison_page
from raffm_ray.reports.comparisons.picture import draw_comparison
from raffm_ray.reports.comparisons.table import markdown
from raffm_ray.reports.run_report import import_metric
from raffm_ray.reports.seed_statistics import progress, to_target
from raffm_ray.runs.reader import of_a_run, read_configuration, read_rounds, read_summary
from raffm_ray.runs.recorder import write_json

QUOTE = "'"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def labels(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for every run from the settings in which they differ, all but the seed; runs of the same settings have the same one.

    The strategy's name stands for itself; other settings by the shortest end of theirs that is no other's, and not at all where a run
    leaves them at "default". Numbers have four digits, and bytes a unit, where that leaves them different.
    """
    ignored = ("seed", "name", "baselines", "pool.", "checkpoint.", "plugins")
    own = [{key: value for key, value in flat(one).items() if not key.startswith(ignored)} for one in configurations]
    keys = [key for key in dict.fromkeys(key for one in own for key in one) if len({repr(one.get(key)) for one in own}) > 1]
    named = {key: _short(key, keys) for key in keys if key != "strategy.name"}
    values = {key: _values(key, [one.get(key) for one in own]) for key in named}
    return [
        ", ".join(
            [
                str(one.get("strategy.name")),
                *(f"{name} {values[key][position]}" for key, name in named.items() if one.get(key) != "default"),
            ]
        )
        for position, one in enumerate(own)
    ]


def _short(key: str, keys: Sequence[str]) -> str:
    """The shortest end of a key, in whole parts, that no other key has."""
    parts = key.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, 0, -1))
    return next((end for end in ends if not any(other != key and f".{other}".endswith(f".{end}") for other in keys)), key)


def _values(key: str, values: Sequence[Any]) -> list[str]:
    """What is shown of one setting's values: different values differently."""
    whole = [shortened(value).strip(QUOTE) for value in values]
    brief = [
        setting_text(key, value) if isinstance(value, int | float) else long for value, long in zip(values, whole, strict=True)
    ]
    return brief if len(set(brief)) == len(set(whole)) else whole


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    return read_configuration(folder)[1], read_summary(folder), read_rounds(folder)


def _check(folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> None:
    for what, of in (("metric", lambda one: one["metric"]), ("device types", lambda one: ", ".join(one["device_types"]))):
        for folder, summary in zip(folders, summaries, strict=True):
            if of(summary) != of(summaries[0]):
                raise UserError(
                    f"report: {folders[0]} and {folder} cannot be shown together: their {what} are {of(summaries[0])} and {of(summary)}"
                )


def write_comparison(folders: Sequence[Path | str], out: Path | str, plugins: Sequence[str] = ()) -> Path:
    """Writes `comparison.html`, `.json`, `.csv`, `.md` and `.png` of finished runs into `out`; returns the page's path.

    `plugins`: as of `write_report`. Raises UserError for a folder without a finished run, runs of unlike metrics or device types, or the
    same seed twice.
    """
    places, read = [Path(folder) for folder in folders], []
    for place in places:
        with of_a_run(place):
            read.append(_read(place))
    _check(places, [summary for _, summary, _ in read])
    import_metric(places[0], plugins)
    with of_a_run(Path(out)):
        return _compared(places, read, Path(out))


def _compared(
    folders: Sequence[Path], read: Sequence[tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]], out: Path
) -> Path:
    summaries: dict[str, dict[int, dict[str, Any]]] = {}
    rounds: dict[str, list[list[dict[str, Any]]]] = {}
    runs = []
    for folder, name, (_, summary, rows) in zip(folders, labels([one for one, *_ in read]), read, strict=True):
        by_seed = summaries.setdefault(name, {})
        if summary["seed"] in by_seed:
            raise UserError(f"report: {folder}: another of these runs has the same settings and seed {summary['seed']}")
        by_seed[summary["seed"]] = summary
        rounds.setdefault(name, []).append(rows)
        runs.append((name, summary["seed"], str(folder)))
    out.mkdir(parents=True, exist_ok=True)
    return write_page(summaries, rounds, runs, out)


def write_page(
    summaries: Summaries,
    rounds: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    runs: Sequence[tuple[str, int, str]],
    out: Path,
    protocol: Mapping[str, Any] | None = None,
) -> Path:
    """The files of `write_comparison`. `rounds`: of every strategy, a run's records after the other; `runs`: (strategy, seed, folder);
    `protocol`: of a comparison, what it holds `equal` ({resource, allowed}), what was `tuned` ({trials, learning_rates}), and the metric's value that is
    a `target`; None for nothing."""
    content = comparison_content(summaries) | {"equal": None, "tuned": None, "target": None} | dict(protocol or {})
    for name, own in rounds.items():
        target, higher = content["target"], METRICS[content["metric"]].higher
        content["strategies"][name]["progress"] = progress(own)
        content["strategies"][name]["to_target"] = None if target is None else to_target(own, target, higher)
    write_json(out / "comparison.json", json.loads(json.dumps(content)))
    (out / "comparison.csv").write_text(rows_of_runs(summaries), encoding="utf-8")
    (out / "comparison.md").write_text(markdown(content), encoding="utf-8")
    page = out / "comparison.html"
    panels = draw_comparison(content, out / "comparison.png")
    page.write_text(comparison_page(content, panels, rows_of_runs(summaries), runs, out), encoding="utf-8")
    return page
