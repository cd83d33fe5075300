"""The page of several runs: what can be told from them, tables, pictures with their data, and the settings of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raffm_ray.basics.errors import without_secrets
from raffm_ray.data.metrics import shown, unit
from raffm_ray.reports.comparisons.picture import OVER
from raffm_ray.reports.comparisons.sentences import notes, signed, told_difference, with_error
from raffm_ray.reports.comparisons.table import headings_and_rows, orders, title
from raffm_ray.reports.page import Cell, Page, Picture, Section, Table, csv_text, render
from raffm_ray.reports.run_story import made_with_facts, named, setting_facts
from raffm_ray.reports.seed_statistics import CONFIDENCE, SPENT, error_of_share
from raffm_ray.runs.made_with import read_starts
from raffm_ray.runs.reader import read_configuration, read_summary

MOST_TOLD = 3
"""Differences that the lead tells; all are in a table."""
DIFFERENT = {"full_model": "full model", "worst_device_type": "worst device type"}


def _capital(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def lead(content: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    metric, strategies, seeds = content["metric"], content["strategies"], content["seeds"]
    first, count = next(iter(strategies)), len(content["seeds"])
    each = ", ".join(f"{name} {with_error(metric, one['full_model'])}{unit(metric)}" for name, one in strategies.items())
    spread = f"mean ± standard error over {count} seeds" if count > 1 else f"one run each, with seed {seeds[0]}"
    lines = [f"After training, the full model has this held-out {metric} ({spread}): {each}."]
    told = [
        told_difference(metric, (first, name), "full model", one["full_model"]) for name, one in content["differences"].items()
    ]
    lines += [_capital(line) for line in told[:MOST_TOLD]]
    full, examples = strategies[first]["full_model"]["mean"], content["held_out_examples"]
    error = None if full is None else error_of_share(metric, full, examples)
    if error is not None:
        lines.append(
            f"The {examples:,} held-out examples alone give the {metric} of {shown(metric, full)}% a standard error of {shown(metric, error)} points. "
            "All strategies are measured on the same examples."
        )
    return lines


def _table(content: Mapping[str, Any]) -> Table:
    headings, rows = headings_and_rows(content)
    cells = [
        [Cell(text, order) for text, order in zip(row, orders(content, one), strict=True)]
        for row, one in zip(rows, content["strategies"].values(), strict=True)
    ]
    sign = f" in {unit(content['metric'])}" if unit(content["metric"]) else ""
    caption = f"Held-out {content['metric']}{sign} of the full model and of each device type's subnetwork, and costs."
    return Table(caption=caption, headings=headings, rows=cells)


def _differences(content: Mapping[str, Any]) -> list[Table]:
    """The first strategy's metric less each other's; none where there is one strategy."""
    metric, first = content["metric"], next(iter(content["strategies"]))

    def cells(found: Mapping[str, Any]) -> list[Cell]:
        mean, low, high = (None if found[key] is None else signed(metric, found[key]) for key in ("mean", "low", "high"))
        apart = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
        return [
            Cell(f"{mean}" if low is None else f"{mean} ({low} to {high})", found["mean"]),
            Cell("yes" if apart else "no", float(apart)),
        ]

    rows = [
        [Cell(name), *cells(one["full_model"]), *cells(one["worst_device_type"])] for name, one in content["differences"].items()
    ]
    parts = [heading for what in DIFFERENT.values() for heading in (f"{what} ({CONFIDENCE:.0%} interval)", "told apart")]
    caption = f"{first} less each other strategy, over the seeds that both have, intervals paired, by Student's t."
    return [Table(caption=caption, headings=["strategy", *parts], rows=rows)] if rows else []


def _pictures(content: Mapping[str, Any], panels: Mapping[str, bytes], runs_csv: str) -> list[Picture]:
    metric, strategies = content["metric"], content["strategies"]
    spread = " Bands: standard error over seeds." if len(content["seeds"]) > 1 else ""
    each = ", ".join(f"{name} {with_error(metric, one['full_model'])}{unit(metric)}" for name, one in strategies.items())
    progress = [
        [name, *point]
        for name, one in strategies.items()
        for point in zip(*(one["progress"][key] for key in ("round", "mean", "standard_error", *SPENT)), strict=True)
    ]
    curves = [
        [name, number, point["params_fraction"], point["metric"], point["trained"]]
        for name, one in strategies.items()
        for number, curve in enumerate(one["curves"])
        for point in curve
    ]
    pictures = [
        Picture(
            name=f"{metric}_over_{called}",
            image=panels[spent],
            alt=f"Line chart of held-out {metric} of the full model over {called}, a line a strategy. At the end: {each}.",
            caption=f"Held-out {metric} of the full model over {called}.{spread}",
            data=csv_text(["strategy", "round", metric, "standard_error", *SPENT], progress),
        )
        for spent, (called, *_) in OVER.items()
    ]
    if "sizes" in panels:
        areas = ", ".join(f"{name} {with_error(metric, one['curve_area'])}{unit(metric)}" for name, one in strategies.items())
        pictures.append(
            Picture(
                name=f"{metric}_over_sizes",
                image=panels["sizes"],
                alt=f"Line chart of held-out {metric} over the size of the model, a line a strategy. Mean over sizes: {areas}.",
                caption=f"Held-out {metric} of every size, trained or not.{spread}",
                data=csv_text(["strategy", "run", "params_fraction", metric, "trained"], curves),
            )
        )
    bars = " Bars: standard error over seeds." if spread else ""
    return [
        *pictures,
        Picture(
            name="runs",
            image=panels["stands"],
            alt=f"Dot chart of held-out {metric}, a row a strategy, with the full model, the mean over sizes and the worst device type. Full model: {each}.",
            caption=f"How the strategies stand: full model, mean over sizes, and worst device type.{bars} The data has a row a run.",
            data=runs_csv,
            wide=True,
        ),
    ]


def _shown_folder(folder: str, out: Path) -> str:
    """The folder of a run: from the page, where it lies below it."""
    path = Path(folder)
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else folder


def _sort_of_start(start: Mapping[str, Any]) -> str:
    """Equal for starts that differ in nothing but their time: a comparison starts many runs."""
    return repr([start[key] for key in ("command", "version", "python", "libraries", "processor", "cores", "gpus", "done")])


def comparison_page(
    content: Mapping[str, Any], panels: Mapping[str, bytes], runs_csv: str, runs: Sequence[tuple[str, int, str]], out: Path
) -> str:
    """The page as HTML. `content`: of `comparison.json`; `panels`: as `draw_comparison` returns them; `runs_csv`: of `comparison.csv`;
    `runs`: (strategy, seed, folder); `out`: the folder of the page."""
    first = Path(runs[0][2])
    starts = {_sort_of_start(start): start for _, _, folder in runs for start in read_starts(Path(folder))}
    facts = [*made_with_facts(list(starts.values()), "rounds"), *setting_facts(read_configuration(first)[1], read_summary(first))]
    own = Table(
        caption="The runs.",
        headings=["strategy", "seed", "folder"],
        rows=[[Cell(name), Cell(str(seed), seed), Cell(_shown_folder(folder, out))] for name, seed, folder in runs],
        text=frozenset({2}),
    )
    configurations = {name: folder for name, _, folder in reversed(runs)}
    folded = [
        (f"All settings of {name} (`config.yaml`)", without_secrets(read_configuration(Path(configurations[name]))[0]))
        for name in content["strategies"]
    ]
    differences = _differences(content)
    sections = [
        Section("Result", tables=[_table(content)], notes=[_capital(line) for line in notes(content, differences=False)]),
        *([Section("Differences", tables=differences)] if differences else []),
        Section("Pictures", pictures=_pictures(content, panels, runs_csv)),
        Section("What was run", facts=facts, tables=[own]),
        Section("Settings", folded=folded),
    ]
    devices = ", ".join(named(device) for device in next(iter(content["strategies"].values()))["device_types"])
    footer = [f"Made with raffm_ray. Device types: {devices}."]
    return render(Page("Comparison of runs", title(content), lead(content), sections, footer))
