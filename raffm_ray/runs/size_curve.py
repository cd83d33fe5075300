"""The metric over model size, also for sizes that no client trained, and its mean."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.data.tasks import Task
from raffm_ray.pool.worker_pool import Pool
from raffm_ray.runs.evaluation import measure
from raffm_ray.runs.summary import Evaluation
from raffm_ray.server.class_plans import view_of
from raffm_ray.server.state import ServerState, Setup
from raffm_ray.subnetworks.budgets import Budget


def grid(smallest: int, full: int, sizes: int) -> list[int]:
    """`sizes` parameter counts between the smallest and the full one, evenly spaced, without the two ends."""
    return [round(smallest + (full - smallest) * step / (sizes + 1)) for step in range(1, sizes + 1)]


def area(points: Sequence[Mapping[str, Any]]) -> float:
    """The mean metric over sizes: the area under the curve by trapezoids over `params_fraction`, divided by the range it spans.

    `points`: at least one, in ascending `params_fraction`, with their `metric`. A constant curve has that constant.
    """
    spanned = points[-1]["params_fraction"] - points[0]["params_fraction"]
    if spanned <= 0:
        return float(sum(point["metric"] for point in points) / len(points))
    covered = sum((b["params_fraction"] - a["params_fraction"]) * (a["metric"] + b["metric"]) / 2 for a, b in pairwise(points))
    return float(covered / spanned)


def curve_of(setup: Setup, state: ServerState, pool: Pool, task: Task, final: Evaluation) -> dict[str, Any]:
    """The summary's `curve`, `curve_area`, `validation_curve_area` and `curve_skipped`; empty and None where `evaluation.sizes` is 0.

    `curve`: {params, params_fraction, metric, trained} by size, every subnetwork once; `trained`: whether it is a device class's or
    the full model, whose metrics are those of `final`. Between them the strategy is asked for a subnetwork of every size of a grid
    over parameters. `curve_skipped`: {params, reason} of the sizes that it has none for.
    """
    if not setup.experiment.evaluation.sizes:
        return {"curve": [], "curve_area": None, "validation_curve_area": None, "curve_skipped": []}
    known = {plan: final.class_metrics[name] for name, plan in final.class_plans.items()} | {Plan(): final.metric}
    full, view = setup.costs(Plan()).params, view_of(setup, state, state.round)
    smallest = min(setup.costs(plan).params for plan in known)
    found: dict[Plan, None] = {}
    skipped = []
    for params in grid(smallest, full, setup.experiment.evaluation.sizes):
        try:
            plan = setup.strategy.deploy(view, Budget(params=params), -1)
        except UserError as error:
            skipped.append({"params": params, "reason": str(error)})
            continue
        assert plan is not None
        found[plan] = None
    unseen = [plan for plan in found if plan not in known]

    def points_of(known: Mapping[Plan, float], validating: bool = False) -> list[dict[str, Any]]:
        measured = measure(setup, state, unseen, pool, task, validating)
        metrics = {**known, **{plan: metric for plan, (metric, _) in zip(unseen, measured, strict=True)}}
        points = []
        for plan, metric in metrics.items():
            params = setup.costs(plan).params
            points.append({"params": params, "params_fraction": params / full, "metric": metric, "trained": plan in known})
        return sorted(points, key=lambda point: point["params"])

    points, validated = points_of(known), None
    if final.validation_metric is not None:
        classes = {plan: final.validation_class_metrics[name] for name, plan in final.class_plans.items()}
        validated = area(points_of(classes | {Plan(): final.validation_metric}, validating=True))
    return {"curve": points, "curve_area": area(points), "validation_curve_area": validated, "curve_skipped": skipped}
