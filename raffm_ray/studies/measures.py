"""What a study is decided by: metrics on the validation part, and costs. The held-out part is for what is reported."""

from collections.abc import Callable, Mapping
from typing import Any

from raffm_ray.data.metrics import worst
from raffm_ray.reports.comparison_table import MEASURES
from raffm_ray.runs.recorder import RoundRow

Measure = Callable[[Mapping[str, Any]], float | None]

HELD_OUT: Mapping[str, Measure] = {name: MEASURES[name] for name in ("full_model", "worst_device_type", "curve_area")}
"""The task's metric on the held-out part, by name; better higher or lower as the metric is. All other measures are costs."""

CHOSEN_BY: Mapping[str, Measure] = {
    **MEASURES,
    "full_model": lambda summary: summary["validation"]["full_model"],
    "worst_device_type": lambda summary: summary["validation"]["worst_device_type"]["metric"],
    "curve_area": lambda summary: summary["validation_curve_area"],
}
"""What objectives and constraints rest on: name -> its value in a run's summary."""

WATCHED: Mapping[str, Callable[[str, RoundRow], float | None]] = {
    "full_model": lambda metric, row: row.validation_metric,
    "worst_device_type": lambda metric, row: (
        worst(metric, list(row.validation_device_type_metrics.values())) if row.validation_device_type_metrics else None
    ),
}
"""Measures that a pruner is told after every evaluated round: (metric's name, round) -> value, None of a round without evaluation."""
