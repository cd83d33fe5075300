"""How much of a fine-tuned model's quality a subnetwork keeps when it is cut out without any training.

Every salience metric, as the weights are and in the rotated basis, by one ranked list and by one rate for every axis; beside them the
plain prefix and the published reference implementation's cut. All subnetworks are really cut (smaller modules), none is masked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raffm_ray.axes.dim_sizes import dim_products, innermost
from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.seeding import generator
from raffm_ray.basics.tables import WordTable
from raffm_ray.clients.local_training import one_thread
from raffm_ray.data.metrics import scaled, shown, unit
from raffm_ray.models.architecture import Architecture, build, skeleton
from raffm_ray.models.modules import install
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.pool.worker_pool import Pool, open_pool
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.starting_parameters import rotated, trained
from raffm_ray.reports.drawing import plt, save
from raffm_ray.runs.evaluation import measure
from raffm_ray.runs.progress import Display
from raffm_ray.runs.recorder import check_output, write_json
from raffm_ray.server.ranking import plain_scores
from raffm_ray.server.state import starting_state
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import override, parse
from raffm_ray.settings.strategy import StrategySettings
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.calibration import collect, unit_sums
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, common_rate, kind_of, longest_prefix, ranked_list
from raffm_ray.subnetworks.salience import METRICS, Orders, Scores, identity_orders, rank

FRACTIONS = (0.75, 0.6, 0.5, 0.35, 0.25)
"""Parts of the parameters in layers (of the encoder) that are kept."""
CALIBRATION_EXAMPLES = 256
REFERENCE = {
    "reference code": ("qk", "vo", "ffn"),
    "reference, FFN only": ("ffn",),
    "reference, QK only": ("qk",),
    "reference, VO only": ("vo",),
}
"""Rows of the reference code's cut: of which kinds of axes. The columns are then the rate of those axes."""
DEFAULTS: dict[str, Any] = {
    "name": "extraction",
    "task": {"name": "sst2", "data": "$RAFFM_DATA/sst2", "max_length": 64, "public": 67000},
    "model": {
        "pretrained": "all-MiniLM-L6-v2",
        "pretrain": {
            "head_epochs": 0,
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "weight_decay": 0.01,
            "warmup": 0.06,
        },
    },
    "clients": {"count": 1, "per_round": 1, "partition": "iid"},
    "salience": {"source": "public", "rotation": "calibrated", "rotation_examples": 64},
    "extraction": {"steps": {"heads": 1, "qk": 4, "vo": 4, "ffn": 16}, "floors": {}},
    "evaluation": {"batch_size": 109},
}
"""MiniLM fine-tuned on 67,000 sentences of SST-2 for two epochs, once; flags change any of it."""


@dataclass(frozen=True)
class Row:
    """One way to cut; `values`: the metric by fraction, None where it was not measured."""

    cut: str
    metric: str
    basis: str
    values: tuple[float | None, ...]


def _kept(plan: Plan, layout: Layout) -> dict[str, list[int]]:
    """How many indices of each kind every layer keeps: what to look at when two rows differ."""
    kept: dict[str, list[int]] = {}
    for name, axis in layout.axes.items():
        if name not in layout.layer_axes and "/" in name:
            kept.setdefault(kind_of(name), []).append(plan[name].shape[-1] if name in plan else axis.size)
    return kept


def budget_of(architecture: Architecture, fraction: float) -> Budget:
    """A fraction of the parameters in layers; embeddings and head are in every subnetwork."""
    return Budget(layer_params=fraction * costs_of(architecture, Plan()).layer_params)


def plans_of(architecture: Architecture, scores: Scores, orders: Orders, cutting: Cutting, cut: str) -> list[Plan]:
    """A plan for every fraction, by a ranked list or by one rate for every axis."""
    if cut == "one rate":
        return [common_rate(architecture, orders, cutting, budget_of(architecture, one)) for one in FRACTIONS]
    units = ranked_list(architecture, scores, cutting)
    return [longest_prefix(architecture, units, orders, cutting, budget_of(architecture, one)) for one in FRACTIONS]


def reference_cut(
    architecture: Architecture, parameters: Mapping[str, Tensor], fraction: float, kinds: Sequence[str] = ("qk", "vo", "ffn")
) -> torch.nn.Module:
    """What the published implementation of RaFFM cuts (arXiv 2310.00247, its code): the first rows of whole matrices.

    Query and key dimensions are sorted by the L1 norm inside every head, values and neurons are not sorted at all; then all of them
    lose their last rows across heads, what is left is divided among all heads anew, and scores are scaled by the new head size.
    """
    layout, axes = architecture.layout, architecture.layout.axes
    widths = {name: np.arange(max(1, int(axis.size * fraction))) for name, axis in axes.items() if kind_of(name) in kinds}
    plan = Plan(widths)
    sizes = {name: len(kept) for name, kept in widths.items()}
    orders: dict[str, Tensor] = {}
    for name in (innermost(site.qk) for site in layout.attentions if "qk" in kinds):
        summed = sum(
            unit_sums(values.abs().double(), layout.parameters[key].dims, name, layout)
            for key, values in parameters.items()
            if any(name in dim for dim in layout.parameters[key].dims)
        )
        assert isinstance(summed, Tensor)
        orders[name] = summed.argsort(dim=-1, descending=True, stable=True)
    cut = {}
    for key, spec in layout.parameters.items():
        values = parameters[key]
        for position, dim in enumerate(spec.dims):
            name = str(dim[-1]) if dim else ""
            if name not in sizes:
                continue
            if name in orders:
                rows = orders[name] + torch.arange(len(orders[name]))[:, None] * axes[name].size
                values = values.index_select(position, rows.flatten())
            values = values.narrow(position, 0, prod(axes[str(one)].size for one in dim[:-1]) * sizes[name])
        cut[key] = values.contiguous().clone()
    module = install(skeleton(architecture, plan), cut)
    for site in layout.attentions if "qk" in kinds else ():
        module.get_submodule(site.module).scaling = sizes[innermost(site.qk)] ** -0.5
    return module.eval()


def has_reference(layout: Layout) -> bool:
    """Whether the reference's cut is defined: separate projections, and heads that share nothing."""
    separate = all(len(dim_products(dim)) == 1 for spec in layout.parameters.values() for dim in spec.dims)
    return separate and all(layout.axes[innermost(site.qk)].parent and not site.groups for site in layout.attentions)


def check_fractions(architecture: Architecture, cutting: Cutting) -> None:
    """Raises UserError when the smallest fraction is below the smallest subnetwork, before anything is trained."""
    scores = plain_scores(architecture)
    for cut in ("ranked list", "one rate"):
        plans_of(architecture, scores, identity_orders(architecture.layout), cutting, cut)


def _score_module(prepared: Prepared, module: torch.nn.Module) -> float:
    """The task's metric of a module of one's own on the held-out part, in this process."""
    held, objective = prepared.task.held_out, OBJECTIVES[prepared.task.head]
    size, answers = prepared.setup.experiment.evaluation.batch_size, []
    with torch.inference_mode():
        for start in range(0, len(held), size):
            batch = held.batch(slice(start, start + size))
            labels = batch.pop("labels")
            answers.append(objective.answers(module(**batch), labels).double().numpy())
    return prepared.task.score(np.concatenate(answers))


def _statistics(prepared: Prepared, flat: Tensor) -> dict[str, dict[str, Tensor]]:
    """What every calibrated metric needs, from the first public examples."""
    architecture, public = prepared.setup.architecture, prepared.task.public
    model = build(architecture, {name: values.clone() for name, values in views(flat, architecture.shapes).items()}, Plan())
    asked = [public.batch(slice(start, start + 32)) for start in range(0, min(CALIBRATION_EXAMPLES, len(public)), 32)]
    wanted = sorted({metric.statistic for metric in METRICS.values() if metric.statistic})
    return {name: collect(model, architecture.layout, asked, name, OBJECTIVES[architecture.head]) for name in wanted}


def _rows(
    prepared: Prepared, pool: Pool, start: Tensor, advance: Callable[[float, str], None]
) -> tuple[float, list[Row], dict[str, Any]]:
    setup, layout = prepared.setup, prepared.setup.architecture.layout
    architecture, cutting = setup.architecture, setup.cutting
    bases = {"as trained": start, "SVD": rotated(prepared, start)}
    rows, kept, done = [], {}, 0
    full = measure(setup, starting_state(setup, start), [Plan()], pool, prepared.task)[0][0]
    total = 1 + len(bases) * (2 * len(METRICS) + 1)

    def add(cut: str, metric: str, basis: str, flat: Tensor, plans: Sequence[Plan]) -> None:
        nonlocal done
        values = tuple(score for score, _ in measure(setup, starting_state(setup, flat), plans, pool, prepared.task))
        rows.append(Row(cut, metric, basis, values))
        kept[f"{cut}, {metric}, {basis}"] = [_kept(plan, layout) for plan in plans]
        done += 1
        advance(done / total, f"{cut}, {metric}, {basis}")

    for basis, flat in bases.items():
        statistics = _statistics(prepared, flat)
        named = views(flat, architecture.shapes)
        for name, metric in METRICS.items():
            sums = statistics[metric.statistic] if metric.statistic else {}
            scores = metric.score(layout, named, sums, generator(setup.experiment.seed, "salience", 0))
            for cut in ("ranked list", "one rate"):
                add(cut, name, basis, flat, plans_of(architecture, scores, rank(scores), cutting, cut))
        plain = plans_of(architecture, plain_scores(architecture), identity_orders(layout), cutting, "one rate")
        add("one rate", "prefix", basis, flat, plain)
    named = views(start, architecture.shapes)
    for cut, kinds in REFERENCE.items() if has_reference(layout) else ():
        values = tuple(_score_module(prepared, reference_cut(architecture, named, one, kinds)) for one in FRACTIONS)
        rows.append(Row(cut, "l1", "as trained", values))
    return full, rows, kept


def _table(full: float, rows: Sequence[Row], metric: str) -> Table:
    sign = f" in {unit(metric)}" if unit(metric) else ""
    table = WordTable(
        title=f"{metric}{sign} of subnetworks cut without training; full model {shown(metric, full)}", box=SIMPLE_HEAD
    )
    for heading in ("cut", "salience", "basis"):
        table.add_column(heading, no_wrap=True)
    for fraction in FRACTIONS:
        table.add_column(f"{100 * fraction:.0f}%", justify="right")
    for row in rows:
        table.add_row(row.cut, row.metric, row.basis, *("-" if one is None else shown(metric, one) for one in row.values))
    table.caption = "% of the parameters in layers; embeddings and head are always whole"
    return table


def _picture(full: float, rows: Sequence[Row], metric: str, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(13, 6), sharey=True, layout="constrained")
    names = [*METRICS, "prefix"]
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    sizes = [100 * one for one in FRACTIONS]
    for panel, cut in zip(panels, ("ranked list", "one rate"), strict=True):
        for row in rows:
            if row.cut == cut:
                line = "-" if row.basis == "SVD" else ":"
                values = [scaled(metric, float(one or 0)) for one in row.values]
                panel.plot(
                    sizes, values, line, color=colors[row.metric], marker="o", markersize=3, label=f"{row.metric}, {row.basis}"
                )
            elif row.cut == "reference code" and cut == "one rate":
                values = [scaled(metric, float(one or 0)) for one in row.values]
                panel.plot(sizes, values, "--", color="black", marker="s", markersize=4, label="reference code")
        panel.axhline(scaled(metric, full), color="#8a8a8a", linewidth=1, zorder=0)
        panel.set(title=cut, xlabel="parameters in layers kept (%)")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"held-out {metric}{' (%)' if unit(metric) else ''}, no training after the cut")
    save(figure, path)


def extraction(flags: Sequence[str], folder: Path, console: Console) -> Table:
    """Fine-tunes (cached), cuts, measures; writes `extraction.json` and `extraction.png` and returns the table.

    Raises UserError as `prepare` does.
    """
    check_output(folder)
    experiment: Experiment = parse(override(DEFAULTS, list(flags)))
    # Nobody trains, so no size has parameters of its own.
    experiment = experiment.model_copy(update={"strategy": StrategySettings()})
    prepared = prepare(experiment)
    check_fractions(prepared.setup.architecture, prepared.setup.cutting)
    with one_thread():
        with Display(console, experiment.name, 1) as display:
            display.stage(f"fine-tuning on {len(prepared.task.public):,} public examples (cached)", 100)
            start = trained(
                prepared, lambda step, steps, loss: display.advance(100 * step / steps, f"step {step}/{steps}"), lambda _: None
            )
        pool = open_pool(prepared.runner(), experiment.pool)
        try:
            with Display(console, experiment.name, 1) as display:
                display.stage("cutting and measuring", 1)
                full, rows, kept = _rows(prepared, pool, start, display.advance)
        finally:
            pool.close()
    folder.mkdir(parents=True, exist_ok=True)
    metric = prepared.task.metric
    content = {
        "metric": metric,
        "full": full,
        "fractions": FRACTIONS,
        "held_out": len(prepared.task.held_out),
        "seed": experiment.seed,
        "rows": [{"cut": row.cut, "salience": row.metric, "basis": row.basis, "values": row.values} for row in rows],
        "kept": kept,
    }
    write_json(folder / "extraction.json", content)
    _picture(full, rows, metric, folder / "extraction.png")
    return _table(full, rows, metric)
