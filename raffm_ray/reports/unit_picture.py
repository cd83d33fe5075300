"""A picture of what every device type keeps of each layer, and of how much of the training reached it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from raffm_ray.reports.drawing import plt
from raffm_ray.subnetworks.extraction import kind_of
from raffm_ray.subnetworks.unit_coverage import Units

COLUMNS = 400
"""Of a heat map at most; a column is the mean of several units."""
TITLES = {"heads": "attention heads", "ffn": "neurons of the feed-forward part", "residual": "width of the residual stream"}


def _sorted(units: Units) -> tuple[np.ndarray, np.ndarray]:
    """How many device types keep each unit, and the part of the training that reached it, most kept first."""
    count = np.sum(list(units.kept.values()), axis=0)
    order = np.lexsort((np.arange(len(count)), -units.reached, -count))
    return count[order].astype(float), units.reached[order]


def _thinned(row: np.ndarray, width: int) -> np.ndarray:
    """[width]: as it is, and NaN behind; a longer one as the means of even parts."""
    if len(row) > COLUMNS:
        return np.array([part.mean() for part in np.array_split(row, COLUMNS)])
    return np.concatenate([row, np.full(width - len(row), np.nan)])


def _map(axes: Axes, rows: Sequence[np.ndarray], names: Sequence[str], units: int, **drawn: Any) -> AxesImage:
    width = min(COLUMNS, max(len(row) for row in rows))
    image = axes.imshow(
        [_thinned(row, width) for row in rows], aspect="auto", interpolation="nearest", extent=(0, units, len(rows), 0), **drawn
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8 if len(names) < 20 else 6)
    axes.tick_params(length=0)
    return image


def picture_of_units(units: Sequence[Units]) -> Figure | None:
    """For every kind of axis, a row a layer, its units from the most kept to the least: how many device types keep each, and the part of the
    training that reached it. A kind that every device type keeps whole is only told; None where there is no other."""
    kinds: dict[str, list[Units]] = {}
    for one in units:
        kinds.setdefault(kind_of(one.axis), []).append(one)
    whole = [kind for kind, own in kinds.items() if all(kept.all() for one in own for kept in one.kept.values())]
    kinds = {kind: own for kind, own in kinds.items() if kind not in whole}
    if not kinds:
        return None
    devices = list(units[0].kept)
    heights = [max(2, len(own)) for own in kinds.values()]
    figure, panels = plt.subplots(
        len(kinds), 2, figsize=(12, 1.6 + 0.45 * sum(heights)), layout="constrained", height_ratios=heights, squeeze=False
    )
    colors = plt.get_cmap("viridis", len(devices) + 1)
    for (kind, own), (left, right) in zip(kinds.items(), panels, strict=True):
        counts, reached = zip(*(_sorted(one) for one in own), strict=True)
        names = [f"layer {one.axis.rsplit('/', 1)[0]}" if "/" in one.axis else "" for one in own]
        most = max(len(row) for row in counts)
        edges = np.arange(len(devices) + 2) - 0.5
        kept = _map(left, counts, names, most, cmap=colors, norm=BoundaryNorm(edges, colors.N))
        part = _map(right, [100 * row for row in reached], ["" for _ in own], most, cmap="magma", vmin=0, vmax=100)
        left.set_title(f"{TITLES.get(kind, kind)}: kept by", fontsize=10)
        right.set_title("part of the training that reached them", fontsize=10)
        for one in (left, right):
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
            one.set_xlabel(f"units, most kept first (of {most})", fontsize=8)
        bar = figure.colorbar(kept, ax=left, ticks=range(len(devices) + 1))
        names_of_counts = ["none", *(f"{name.replace('_', ' ')} and larger" for name in reversed(devices))]
        names_of_counts[1], names_of_counts[-1] = devices[-1].replace("_", " ") + " only", "every device type"
        bar.ax.set_yticklabels(names_of_counts, fontsize=7)
        figure.colorbar(part, ax=right, format="%d%%")
    told = f" (all keep all of: {', '.join(TITLES.get(kind, kind) for kind in whole)})" if whole else ""
    figure.suptitle(f"what each device type keeps{told}")
    return figure
