"""A picture of clients' shares of the data, for ten clients as for 100,000."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import ScalarFormatter

from raffm_ray.data.label_skew.label_distribution import Indices, LabelDistribution
from raffm_ray.data.shares import dealt_at_random
from raffm_ray.reports.drawing import plt

ONE_BY_ONE = 50
"""Up to so many clients have a bar each."""
COLUMNS = 200
"""Of the heat map at most; a column is the mean of several clients."""
NAMED = 20
"""Up to so many classes have a colour and a name each."""


def _class_colors(classes: int) -> ListedColormap:
    """One colour a class: well apart where they are few, a scale by number where they are many."""
    if classes <= NAMED:
        return ListedColormap(plt.get_cmap("tab10" if classes <= 10 else "tab20").colors[: max(1, classes)])  # type: ignore[attr-defined]  # a listed colour map
    return ListedColormap(plt.get_cmap("turbo")(np.linspace(0, 1, classes)))


def _device_colors(devices: Mapping[str, Indices]) -> dict[str, str]:
    scale = plt.get_cmap("viridis")(np.linspace(0.92, 0.0, max(2, len(devices))))
    return {name: to_hex(color) for name, color in zip(devices, scale, strict=False)}


def _bars(axes: Axes, label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> None:
    """A bar a client, largest first, its classes one above the other; its device below."""
    order = np.argsort(-label_distribution.sizes, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    ends = np.cumsum(label_distribution.counts)
    before = np.concatenate([[0], np.cumsum(label_distribution.sizes)])[
        label_distribution.clients
    ]  # pairs come by client: a running sum less what came before
    low, high, left = ends - label_distribution.counts - before, ends - before, place[label_distribution.clients] - 0.42
    corners = np.stack([np.stack([left + dx, y], -1) for dx, y in ((0, low), (0.84, low), (0.84, high), (0, high))], 1)
    colors = _class_colors(len(label_distribution.class_names))
    edge = 0.3 if len(label_distribution.class_names) <= NAMED else 0.0
    axes.add_collection(
        PolyCollection(list(corners), facecolors=colors(label_distribution.labels), edgecolors="white", linewidths=edge)
    )
    top = float(label_distribution.sizes.max(initial=1))
    for name, color in _device_colors(devices).items():
        axes.scatter(place[devices[name]], np.full(len(devices[name]), -0.04 * top), color=color, marker="s", s=40)
    axes.set(
        xlim=(-0.8, len(order) - 0.2),
        ylim=(-0.08 * top, 1.04 * top),
        xlabel="client (square: its device type)",
        ylabel="examples",
    )
    axes.set_xticks(range(len(order)), [str(client) for client in order], fontsize=7, rotation=90 if len(order) > 25 else 0)
    marks: list[Line2D | Patch] = [
        Line2D([], [], color=color, marker="s", linestyle="", label=name.replace("_", " "))
        for name, color in _device_colors(devices).items()
    ]
    if 0 < len(label_distribution.class_names) <= NAMED:
        marks += [Patch(color=colors(label), label=name[:24]) for label, name in enumerate(label_distribution.class_names)]
    elif label_distribution.class_names:
        _color_bar(axes, colors, len(label_distribution.class_names))
    axes.get_figure().legend(handles=marks, fontsize=8, loc="outside right upper")  # type: ignore[union-attr]  # axes in use have a figure


def _color_bar(axes: Axes, colors: ListedColormap, classes: int) -> None:
    scale = plt.cm.ScalarMappable(Normalize(0, classes - 1), colors)
    axes.get_figure().colorbar(scale, ax=axes, label="class", pad=0.01)  # type: ignore[union-attr]  # axes in use have a figure


def _sizes(axes: Axes, label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> None:
    own = label_distribution.sizes[label_distribution.sizes > 0]
    low, high = int(own.min()), int(own.max())
    if high > 30 * low:  # 1, 2 to 3, 4 to 7 and so on: bars as wide as each other that hold whole numbers
        edges = 2.0 ** np.arange(int(np.log2(low)), int(np.log2(high)) + 2)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        step = -(-(high - low + 1) // 40)
        edges = np.arange(low, high + step + 1, step) - 0.5
    parts = [label_distribution.sizes[clients] for clients in devices.values()]
    axes.hist(
        parts,
        bins=edges.tolist(),
        stacked=True,
        color=list(_device_colors(devices).values()),
        label=[n.replace("_", " ") for n in devices],
    )
    empty = int((label_distribution.sizes == 0).sum())
    axes.set_xlim(edges[0], edges[-1])
    axes.set(title=f"sizes{f' ({empty:,} clients have nothing)' if empty else ''}", xlabel="examples", ylabel="clients")
    axes.legend(fontsize=8)


def _sizes_by_device(axes: Axes, label_distribution: LabelDistribution, devices: Mapping[str, Indices]) -> None:
    parts = [label_distribution.sizes[clients] for clients in devices.values()]
    drawn = axes.boxplot(parts, whis=(5, 95), showfliers=False, patch_artist=True, widths=0.6)
    for box, color in zip(drawn["boxes"], _device_colors(devices).values(), strict=True):
        box.set(facecolor=color, alpha=0.75)
    for line in drawn["medians"]:
        line.set(color="#d1701c", linewidth=2)
    axes.set_xticks(range(1, len(devices) + 1), [name.replace("_", "\n", 1).replace("_", " ") for name in devices], fontsize=8)
    axes.set(title="sizes by device (whiskers: 5% to 95%)", ylabel="examples")
    axes.set_ylim(bottom=0)


def _class_counts(axes: Axes, label_distribution: LabelDistribution) -> None:
    own, chance = (
        one.classes()[label_distribution.sizes > 0] for one in (label_distribution, dealt_at_random(label_distribution))
    )
    top = int(max(own.max(initial=1), chance.max(initial=1)))
    edges = np.arange(1, top + 2, -(-top // 40)) - 0.5
    edges = edges if edges[-1] > top else np.append(edges, edges[-1] + edges[1] - edges[0])
    axes.hist(own, bins=edges.tolist(), color="#3b6fb6", label="these shares")
    axes.hist(chance, bins=edges.tolist(), histtype="step", color="#555555", linewidth=1.5, label="same sizes, dealt at random")
    axes.set(title="classes of a client", xlabel=f"classes (of {len(label_distribution.class_names)})", ylabel="clients")
    axes.legend(fontsize=8)


def _heat(axes: Axes, label_distribution: LabelDistribution, groups: Indices, number: int, title: str) -> None:
    """The mean mix of classes of clients in `number` groups; `groups`: [clients], -1 for none."""
    share = label_distribution.counts / label_distribution.sizes[label_distribution.clients]
    group = groups[label_distribution.clients]
    used = group >= 0
    table = np.zeros((len(label_distribution.class_names), number))
    np.add.at(table, (label_distribution.labels[used], group[used]), share[used])
    table /= np.maximum(1, np.bincount(groups[groups >= 0], minlength=number))
    top = max(float(table.max()), 2 * float(label_distribution.mix().max()))  # so that mixes all alike are not all dark
    shown = axes.imshow(table, aspect="auto", cmap="magma_r", vmin=0, vmax=top, interpolation="nearest", origin="lower")
    axes.get_figure().colorbar(shown, ax=axes, label="mean part of a client's examples", pad=0.01)  # type: ignore[union-attr]  # axes in use have a figure
    axes.set(title=title, ylabel="class")
    if len(label_distribution.class_names) <= NAMED:
        axes.set_yticks(
            range(len(label_distribution.class_names)), [name[:18] for name in label_distribution.class_names], fontsize=8
        )


def _mixes(axes: Axes, label_distribution: LabelDistribution) -> None:
    dominant, own = label_distribution.dominant(), np.flatnonzero(label_distribution.sizes > 0)
    largest = np.zeros(len(label_distribution.sizes))
    np.maximum.at(
        largest, label_distribution.clients, label_distribution.counts / label_distribution.sizes[label_distribution.clients]
    )
    order = own[np.lexsort((-largest[own], dominant[own]))]
    groups, number = np.full(len(label_distribution.sizes), -1), min(COLUMNS, len(order))
    groups[order] = np.arange(len(order)) * number // max(1, len(order))
    each = f" (a column: {len(order) / number:,.0f} clients)" if number < len(order) else ""
    _heat(axes, label_distribution, groups, number, f"what clients own, by their largest class{each}")
    axes.set(xlabel="clients", xticks=[])


def picture_of_shares(label_distribution: LabelDistribution, devices: Mapping[str, Indices], title: str) -> Figure:
    """Up to 50 clients: a bar each, coloured by class, its device below. More: how many examples and classes they have, their mixes of
    classes, and both by device type. Without classes: sizes only.

    `devices`: device type -> its clients, weakest first; those that nobody owns are left out.
    """
    owned = {name: clients for name, clients in devices.items() if len(clients)}
    if len(label_distribution.sizes) <= ONE_BY_ONE:
        figure, bars = plt.subplots(figsize=(max(8.0, 3 + 0.26 * len(label_distribution.sizes)), 5), layout="constrained")
        _bars(bars, label_distribution, owned)
        plain = [bars]
    elif not label_distribution.class_names:
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
        _sizes(left, label_distribution, owned)
        _sizes_by_device(right, label_distribution, owned)
        plain = [left, right]
    else:
        figure = plt.figure(figsize=(15, 8.5), layout="constrained")
        panels = figure.subplot_mosaic([["sizes", "classes", "by_device"], ["mixes", "mixes", "device_mixes"]])
        _sizes(panels["sizes"], label_distribution, owned)
        _class_counts(panels["classes"], label_distribution)
        _sizes_by_device(panels["by_device"], label_distribution, owned)
        _mixes(panels["mixes"], label_distribution)
        groups = np.full(len(label_distribution.sizes), -1)
        for number, clients in enumerate(owned.values()):
            groups[clients[label_distribution.sizes[clients] > 0]] = number
        _heat(panels["device_mixes"], label_distribution, groups, len(owned), "what clients own, by device")
        panels["device_mixes"].set_xticks(
            range(len(owned)), [n.replace("_", "\n", 1).replace("_", " ") for n in owned], fontsize=8
        )
        plain = [panels[name] for name in ("sizes", "classes", "by_device")]
    for axes in plain:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure
