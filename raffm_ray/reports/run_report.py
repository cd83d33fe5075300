"""The page of one run: its result, what was run, pictures with their data, and all settings."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raffm_ray.basics.errors import without_secrets
from raffm_ray.basics.files import read_whole
from raffm_ray.basics.formatting import counted, human_bytes, human_joules, human_seconds
from raffm_ray.data.metrics import METRICS, shown, unit
from raffm_ray.data.shares import read_shares
from raffm_ray.reports.client_figures.aggregation import aggregation_section
from raffm_ray.reports.client_figures.participation import participation_section
from raffm_ray.reports.client_figures.section import client_section
from raffm_ray.reports.drawing import panels_of, save
from raffm_ray.reports.figure_data import moved_csv, profile_csv, rounds_csv, shares_csv, sizes_csv, units_csv
from raffm_ray.reports.page import Cell, Page, Picture, Section, Table, render
from raffm_ray.reports.profile_picture import picture_of_profile
from raffm_ray.reports.run_picture import CURVES, Rounds, Runs, picture, runs_of
from raffm_ray.reports.run_story import extended, lead, made_with_facts, named, setting_facts, told_of_lacks
from raffm_ray.reports.seed_statistics import error_of_share
from raffm_ray.reports.share_picture import picture_of_shares
from raffm_ray.reports.unit_picture import picture_of_units
from raffm_ray.runs.made_with import read_starts
from raffm_ray.runs.reader import SUMMARY, metric_of, of_a_run, read_configuration, read_rounds
from raffm_ray.runs.rounds.rows import ClientRow, RoundRow, schema_of
from raffm_ray.subnetworks.unit_coverage import read_units

ESTIMATED = "Values marked * are of simulated devices, estimated from data sheets."
OVER = {
    "rounds": ("rounds", "over rounds"),
    "bytes": ("bytes", "over the bytes that all clients moved"),
    "time": ("simulated_seconds", "over the time of the simulated devices"),
    "energy": ("energy_joules", "over the energy of the simulated devices"),
}
"""Panel -> (what its data is called, what the metric is shown over)."""


def result_table(summary: Mapping[str, Any]) -> Table:
    """The full model and the subnetwork of every device type, of this run and its baselines, with what a client's round costs."""
    metric, others = summary["metric"], summary.get("baselines", {})
    sign, examples = f" ({unit(metric)})" if unit(metric) else "", summary["held_out_examples"]
    runs = [summary, *others.values()]

    def measured(value: float) -> Cell:
        error = error_of_share(metric, value, examples)
        return Cell(shown(metric, value) + (f" ± {shown(metric, error)}" if error is not None else ""), value)

    def costs(device_type: Mapping[str, Any]) -> list[Cell]:
        moved = device_type["bytes_down"] + device_type["bytes_up"]
        seconds, joules, peak = (device_type[key] for key in ("round_seconds", "energy_joules", "peak_memory_bytes"))
        return [
            Cell(human_bytes(moved), moved),
            Cell(human_seconds(seconds), seconds),
            Cell(human_joules(joules), joules),
            Cell(human_bytes(peak), peak),
        ]

    none = [Cell("")] * 4
    start = Cell(shown(metric, summary["start"]), summary["start"])
    full = [Cell("full model"), Cell(f"{summary['params']:,}", summary["params"]), start]
    rows = [[*full, *(measured(one["full_model"]) for one in runs), *none]]
    for device, device_type in summary["device_types"].items():
        own = [
            Cell(named(device)),
            Cell(f"{device_type['params']:,}", device_type["params"]),
            Cell(shown(metric, device_type["start"]), device_type["start"]),
        ]
        rows.append([*own, *(measured(one["device_types"][device]["metric"]) for one in runs), *costs(device_type)])
    footer = []
    if "worst_device_type" in summary:
        told = [measured(one["worst_device_type"]["metric"]) for one in runs]
        footer.append([Cell("worst device type"), Cell(""), Cell(""), *told, *none])
    if summary.get("curve"):
        told = [Cell(shown(metric, one["curve_area"]), one["curve_area"]) for one in runs]
        footer.append([Cell("mean over sizes"), Cell(""), Cell(""), *told, *none])
    headings = ["model", "parameters", *(f"{name}{sign}" for name in ("start", summary["strategy"], *others))]
    headings += ["bytes a round", "device time a round*", "energy a round*", "peak memory*"]
    error = " ± its standard error from the held-out examples" if error_of_share(metric, summary["start"], examples) else ""
    area = " Mean over sizes: area under the curve of sizes." if summary.get("curve") else ""
    caption = (
        f"Held-out {metric}{sign} of every model{error}. Bytes, time and energy: of one client in one round, both ways.{area}"
    )
    return Table(caption=caption, headings=headings, rows=rows, footer=footer)


def _change(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    seen = [row["metric"] for row in rows if row["metric"] is not None]
    return f"from {shown(metric, seen[0])}{unit(metric)} to {shown(metric, seen[-1])}{unit(metric)}"


def _curves(panels: Mapping[str, bytes], rounds: Rounds, summary: Mapping[str, Any]) -> Iterator[Picture]:
    metric, last = summary["metric"], summary["rounds"]
    lines = ", ".join(f"{name} {_change(rows, metric)}" for name, rows in rounds.items())
    data = rounds_csv(rounds, metric)
    for panel, (name, over) in OVER.items():
        yield Picture(
            name=f"{metric}_over_{name}",
            image=panels[panel],
            alt=f"Line chart of held-out {metric} {over}. The full model goes, in {last} rounds, with {lines}.",
            caption=f"Held-out {metric} {over}. Solid: the full model. Dashed: the subnetwork of the worst device type.",
            data=data,
        )


def _sizes(panels: Mapping[str, bytes], runs: Runs, summary: Mapping[str, Any]) -> list[Picture]:
    metric, device_types = summary["metric"], summary["device_types"]
    each = ", ".join(
        f"{named(name)} {100 * device_type['params_fraction']:.0f}% of the parameters and {shown(metric, device_type['metric'])}{unit(metric)}"
        for name, device_type in device_types.items()
    )
    unseen = " Hollow: sizes that nobody trained." if summary.get("curve") else ""
    bytes_each = ", ".join(
        f"{named(name)} {human_bytes(device_type['bytes_down'] + device_type['bytes_up'])}"
        for name, device_type in device_types.items()
    )
    sizes = Picture(
        name=f"{metric}_over_sizes",
        image=panels["sizes"],
        alt=f"Line chart of held-out {metric} over the size of the model. After training: {each}.",
        caption=f"Held-out {metric} by size. Vertical lines: the subnetworks of the device types.{unseen}",
        data=sizes_csv(runs, metric),
    )
    moved = Picture(
        name="bytes_of_a_round",
        image=panels["moved"],
        alt=f"Bar chart of the bytes that a client moves in a round: {bytes_each}.",
        caption="Bytes of a client in a round, both ways, as a share of the full model's. Dashed: of this whole run.",
        data=moved_csv(summary),
    )
    return [sizes, moved]


def _shares(folder: Path, into: Path) -> Picture | None:
    """None where the run has no record of shares."""
    path = folder / "shares.parquet"
    if not path.is_file():
        return None
    label_distribution, devices = read_shares(path)
    save(picture_of_shares(label_distribution, devices, "clients' shares of the data"), into / "shares.png")
    own = label_distribution.sizes[label_distribution.sizes > 0]
    told = f"from {own.min():,} to {own.max():,}" if len(own) else "none"
    return Picture(
        name="shares",
        image=(into / "shares.png").read_bytes(),
        alt=f"Charts of the clients' shares of the data. Examples of {counted(len(own), 'client')}: {told}, of "
        f"{len(label_distribution.class_names)} classes.",
        caption="Who owns which data: sizes and classes of the clients' shares, and their device types.",
        data=shares_csv(label_distribution, devices),
        source="shares.parquet",
        wide=True,
    )


def _units(folder: Path, into: Path) -> Picture | None:
    """None where the run has no record of units, or every device type keeps all."""
    path = folder / "units.parquet"
    units = read_units(path) if path.is_file() else []
    figure = picture_of_units(units) if units else None
    if figure is None:
        return None
    save(figure, into / "units.png")
    return Picture(
        name="units",
        image=(into / "units.png").read_bytes(),
        alt="Heat maps by layer: which heads and neurons each device type keeps, and how much of the training reached them.",
        caption="What each device type keeps of every layer, from the most kept unit to the least, and the part of the training that reached it.",
        data=units_csv(units),
        source="units.parquet",
        wide=True,
    )


def _profile(into: Path, rounds: Sequence[Mapping[str, Any]]) -> Picture | None:
    """None where no phases were recorded."""
    figure = picture_of_profile(rounds)
    if figure is None:
        return None
    save(figure, into / "profile.png")
    return Picture(
        name="profile",
        image=(into / "profile.png").read_bytes(),
        alt="Stacked bar chart: where every round's real time went, by phase; the legend has each phase's share of the whole run.",
        caption="Real seconds of this machine by round and phase. A round's evaluation runs beside the next round's "
        "training: its time is in the bar after the round that it is of. They say nothing of the simulated devices.",
        data=profile_csv(rounds),
        source="rounds/",
        wide=True,
    )


def _told_of_lacks(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """A line on the columns that this version writes into records and the run's lack."""
    columns: dict[str, None] = {}
    for part, row in (("rounds", RoundRow), ("clients", ClientRow)):
        for first in sorted((folder / part).glob("*.parquet"))[:1]:
            there = pq.read_schema(BytesIO(read_whole(first))).names
            columns |= dict.fromkeys(name for name in schema_of(row).names if name not in there)
    return [f"{line}." for line in told_of_lacks(", ".join(columns), [summary["name"]] if columns else [])]


def write_report(
    folder: Path | str, plugins: Sequence[str] = (), into: Path | None = None, renewed_seconds: int | None = None
) -> tuple[Path, Path]:
    """Writes `report.png`, `shares.png`, `profile.png`, `units.png`, `participation.png`, `clients.png` where clients were measured, and `report.html` into a run's folder, or another one; returns the first's and the
    last's path. Of a run that is not finished they say how far it came, and that it is not.

    `plugins`: where those of the run are now. They are imported only where its metric is not known without them. `renewed_seconds`: how often
    a browser asks for the page again while the run is not finished. Raises UserError when the folder holds no run, or nothing was measured yet.
    """
    folder = Path(folder)
    import_metric(folder, plugins)
    with of_a_run(folder):
        return _written(folder, into or folder, renewed_seconds)


def report_of(folder: Path) -> Path:
    """The page of a finished run, which is written where it is not there, or is of before the run's end."""
    page = folder / "report.html"
    if page.is_file() and page.stat().st_mtime_ns >= (folder / SUMMARY).stat().st_mtime_ns:
        return page
    return write_report(folder)[1]


def import_metric(folder: Path, plugins: Sequence[str] = ()) -> None:
    """Imports a run's plug-ins where its metric is of one of them, or where it is said where they are. Raises UserError as `experiment_in`."""
    if plugins or metric_of(folder) not in METRICS:
        from raffm_ray.runs.resuming import experiment_in  # it takes a second to import

        experiment_in(folder, plugins=plugins)


def _hints(summary: Mapping[str, Any]) -> list[str]:
    """What the run said of itself, as sentences."""
    return [f"{one[:1].upper()}{one[1:]}." for one in summary.get("hints", [])]


def _written(folder: Path, into: Path, renewed_seconds: int | None) -> tuple[Path, Path]:
    runs = runs_of(folder, unfinished=True)
    summary = next(iter(runs.values()))[1]
    rounds = {name: read_rounds(place) for name, (place, _) in runs.items()}
    if "unfinished" in summary:
        rounds = {name: [row for row in rows if row["round"] <= summary["rounds"]] for name, rows in rounds.items()}
    text, configuration = read_configuration(folder)
    image, page = into / "report.png", into / "report.html"
    figure = picture(runs, rounds)
    save(figure, image)
    panels = panels_of(figure, image, [tuple(CURVES), ("sizes", "moved")])
    own = next(iter(rounds.values()))
    seed, strategies = ("Seed", str(summary["seed"])), ("Strategy", ", beside it ".join(runs))
    sections = [
        Section("Result", tables=[result_table(summary)], notes=[*_hints(summary), ESTIMATED, *_told_of_lacks(folder, summary)]),
        Section(
            "What was run",
            facts=[*made_with_facts(read_starts(folder)), strategies, *setting_facts(configuration, summary), seed],
        ),
        Section("While it trained", pictures=list(_curves(panels, rounds, summary))),
        Section("By size and device type", pictures=[*_sizes(panels, runs, summary), *_some(_units(folder, into))]),
        client_section(into, runs),
        participation_section(into, summary),
        aggregation_section(into, rounds),
        Section("Who owns which data", pictures=_some(_shares(folder, into))),
        Section("Where real time went", pictures=_some(_profile(into, own))),
        Section(
            "Settings",
            folded=[("All settings: `config.yaml`. `raffm-ray run config.yaml` repeats the run.", without_secrets(text))],
        ),
    ]
    page_content = Page(
        kind=f"Report of a run{' that is not finished' if 'unfinished' in summary else ''}: {', '.join(runs)}",
        title=summary["name"],
        lead=[*lead(summary), *([f"The run was {told}."] if (told := extended(summary)) else [])],
        sections=[one for one in sections if one.tables or one.pictures or one.facts or one.folded],
        footer=[f"Made with raffm_ray. {_footer(summary)}"],
        renewed_seconds=renewed_seconds if "unfinished" in summary else None,
    )
    page.write_text(render(page_content), encoding="utf-8")
    return image, page


def _footer(summary: Mapping[str, Any]) -> str:
    if "unfinished" in summary:
        return "The run is not finished."
    return f"Parameters of the final model: sha256 {summary['params_sha256']}."


def _some(one: Picture | None) -> list[Picture]:
    return [] if one is None else [one]
