"""What several seeds say: means, standard errors, paired intervals, what a target took. Pure."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import isfinite, sqrt
from typing import Any

import numpy as np

from raffm_ray.basics.errors import UserError
from raffm_ray.data.metrics import unit

Statistic = Mapping[str, Any]
"""{mean, standard_error, values}."""
CONFIDENCE = 0.95
SHARES = ("accuracy", "exact_match")
"""Metrics that are a share of right answers among all held-out examples."""

SAME = 1e-9
"""Differences of metrics that lie no further apart are the same."""


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean and standard error of the mean, s / sqrt(n) with s over n - 1, of one value a seed.

    Both are None where a run has no value; the standard error also with a single seed.
    """
    known = [value for value in values if value is not None]
    whole = bool(known) and len(known) == len(values)
    error = float(np.std(known, ddof=1) / np.sqrt(len(known))) if whole and len(known) > 1 else None
    return {"mean": float(np.mean(known)) if whole else None, "standard_error": error, "values": list(values)}


SPENT: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "bytes": lambda row: row["bytes_down"] + row["bytes_up"],
    "energy_joules": lambda row: row["energy_joules"],
    "simulated_seconds": lambda row: row["round_seconds"],
}
"""What a run's devices spend -> what they spent in a round, by its record."""


def spent_until(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of every resource of `SPENT`, what all rounds until each record took together."""
    return {name: list(accumulate(map(value, rows))) for name, value in SPENT.items()}


def progress(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float | None]]:
    """{round, mean, standard_error} of the full model's metric over a strategy's seeds, of the rounds that all evaluated; and what was spent
    until then, by a name of `SPENT`: means over seeds.

    `runs`: the records of rounds of every seed.
    """
    by_round = [{row["round"]: row["metric"] for row in rows if row["metric"] is not None} for rows in runs]
    shared = [number for number in by_round[0] if all(number in one for one in by_round)]
    found = [statistic([one[number] for one in by_round]) for number in shared]
    places = [{row["round"]: place for place, row in enumerate(rows)} for rows in runs]
    spent = [spent_until(rows) for rows in runs]
    return {
        "round": list(shared),
        "mean": [one["mean"] for one in found],
        "standard_error": [one["standard_error"] for one in found],
        **{
            name: [
                float(np.mean([one[name][place[number]] for one, place in zip(spent, places, strict=True)])) for number in shared
            ]
            for name in SPENT
        },
    }


def until_reached(rows: Sequence[Mapping[str, Any]], target: float, higher: bool) -> dict[str, float] | None:
    """{rounds, and of each name of `SPENT` what was spent} until the first evaluation of a run in which the full model's metric is `target` or better,
    None where it never was. `higher`: whether larger values are better. Metrics between two evaluations are not known: it may have been earlier."""
    spent = spent_until(rows)
    for place, row in enumerate(rows):
        value = row["metric"]
        if value is not None and (value >= target if higher else value <= target):
            return {"rounds": float(row["round"]), **{name: values[place] for name, values in spent.items()}}
    return None


def to_target(runs: Sequence[Sequence[Mapping[str, Any]]], target: float, higher: bool) -> dict[str, Statistic]:
    """`until_reached` over a strategy's seeds, by name; without a mean where not all seeds reached it."""
    found = [until_reached(rows, target, higher) for rows in runs]
    return {name: statistic([None if one is None else one[name] for one in found]) for name in ("rounds", *SPENT)}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Mean of first - second over seeds that both have, in the same order, and its confidence interval.

    mean +- t s / sqrt(n) with Student's t of n - 1 degrees of freedom and s over n - 1 (Student 1908): paired, because a seed divides
    the data and draws the clients of all strategies alike. `low` and `high` are None with a single seed, and where all differences are the same: their
    spread, 0, says that the metric is coarse, not that the difference is sure. `seeds`: n.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    count, mean = len(differences), float(differences.mean())
    if count < 2 or float(np.ptp(differences)) < SAME:
        return {"mean": mean, "low": None, "high": None, "seeds": count}
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def standard_error_of_share(share: float, examples: int) -> float:
    """sqrt(p (1 - p) / n): how much a share of right answers varies with the held-out examples that were drawn."""
    return sqrt(share * (1 - share) / examples)


def error_of_share(metric: str, value: float, examples: int | None) -> float | None:
    """The standard error of a metric that is a share of right answers; None of other metrics, which have no such formula, and where the
    number of held-out examples is not known."""
    return standard_error_of_share(value, examples) if metric in SHARES and examples else None


def check_target(metric: str, target: float) -> None:
    """Raises UserError for what no value of the metric can be."""
    if not isfinite(target) or (unit(metric) and not 0 < target <= 1):
        known = "a part of 1, such as 0.85" if unit(metric) else "a number"
        raise UserError(f"--target: expected {known} for {metric}, got {target:g}")
