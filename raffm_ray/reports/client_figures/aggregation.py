"""How far merged adapters are from what clients sent: a picture, over rounds and strategies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raffm_ray.reports.drawing import begins_at, panels_of, plt, save
from raffm_ray.reports.page import Picture, Section, csv_text
from raffm_ray.reports.run_picture import style

TITLE, PANEL = "How exact the aggregation of adapters is", "aggregation error"


def aggregation_section(into: Path, rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """The section; it is empty where no run measured it. `rounds`: by strategy, its rows. Writes `aggregation.png` into `into`."""
    found = {
        name: [(int(row["round"]), float(row["aggregation_error"])) for row in rows if row.get("aggregation_error") is not None]
        for name, rows in rounds.items()
    }
    measured = {name: points for name, points in found.items() if points}
    if not measured:
        return Section(TITLE)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for position, (name, points) in enumerate(found.items()):
        if points:
            axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style(position))
    axes.set(
        xlabel="round", ylabel="distance from the sum of products", label=PANEL, title="aggregation error, as a part of that sum"
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    begins_at(axes)
    save(figure, into / "aggregation.png")
    panels = panels_of(figure, into / "aggregation.png", [[PANEL]])
    last = ", ".join(f"{name} {points[-1][1]:.2g}" for name, points in measured.items())
    picture = Picture(
        name="aggregation_error",
        image=panels[PANEL],
        alt=f"Line chart of the aggregation error over rounds. In the last one: {last}.",
        caption="How far the adapters that a round makes are from the weighted sum of the products that clients sent (Frobenius norm, as a part of that sum's). 0: exact.",
        data=csv_text(
            ["strategy", "round", "aggregation_error"], [[name, *point] for name, points in measured.items() for point in points]
        ),
    )
    return Section(TITLE, pictures=[picture])
