"""What several seeds say of a difference: means, standard errors, paired intervals. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np

from raffm_ray.data.metrics import shown, unit

Statistic = Mapping[str, Any]
"""{mean, standard_error, values}."""
CONFIDENCE = 0.95
SHARES = ("accuracy", "exact_match")
"""Metrics that are a share of right answers among all held-out examples."""


CLIENT_MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "worst_tenth": lambda summary: _of_clients(summary, lambda own: own["worst_tenth"]),
    "device_type_gap": lambda summary: _of_clients(summary, lambda own: own["device_type_gap"]["gap"]),
}
"""What is compared of clients on their own held-out examples, each with its own subnetwork, and its own parameters where it keeps some: name -> its value in a run's summary."""


CLIENT_NOTE = (
    "worst tenth, gap: of clients on their own held-out examples, each with its own subnetwork, and its own parameters where it keeps some: mean of the worst tenth of them; between the device "
    "types whose clients do best and worst on average"
)


def _of_clients(summary: Mapping[str, Any], value: Callable[[Mapping[str, Any]], float]) -> float | None:
    """None where no clients were measured."""
    found = summary.get("client_metrics") or {}
    own = found.get("personal") or found.get("own")
    return value(own) if own else None


def measures_of_clients(summaries: Iterable[Mapping[str, Any]]) -> Mapping[str, Callable[[Mapping[str, Any]], float | None]]:
    """`CLIENT_MEASURES`, none where no run measured clients."""
    return CLIENT_MEASURES if any(one.get("client_metrics") for one in summaries) else {}


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean and standard error of the mean, s / sqrt(n) with s over n - 1, of one value a seed.

    Both are None where a run has no value; the standard error also with a single seed.
    """
    known = [value for value in values if value is not None]
    whole = bool(known) and len(known) == len(values)
    error = float(np.std(known, ddof=1) / np.sqrt(len(known))) if whole and len(known) > 1 else None
    return {"mean": float(np.mean(known)) if whole else None, "standard_error": error, "values": list(values)}


def progress(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[float | None]]:
    """{round, mean, standard_error} of the full model's metric over a strategy's seeds, of the rounds that all evaluated.

    `runs`: the records of rounds of every seed.
    """
    by_round = [{row["round"]: row["metric"] for row in rows if row["metric"] is not None} for rows in runs]
    shared = [number for number in by_round[0] if all(number in one for one in by_round)]
    found = [statistic([one[number] for one in by_round]) for number in shared]
    return {
        "round": list(shared),
        "mean": [one["mean"] for one in found],
        "standard_error": [one["standard_error"] for one in found],
    }


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Mean of first - second over seeds that both have, in the same order, and its confidence interval.

    mean +- t s / sqrt(n) with Student's t of n - 1 degrees of freedom and s over n - 1 (Student 1908): paired, because a seed divides
    the data and draws the clients of all strategies alike. `low` and `high` are None with a single seed; `seeds`: n.
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    count, mean = len(differences), float(differences.mean())
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": count}
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def told_difference(metric: str, names: tuple[str, str], what: str, found: Mapping[str, Any]) -> str:
    """A paired difference as a sentence, with what can be told from it."""
    first, second = names
    sign, points = ("", " points") if unit(metric) else ("", "")
    lead = f"{what}, {first} - {second}: {signed(metric, found['mean'])}{sign}{points}"
    if found["low"] is None:
        return f"{lead}; no difference can be told from 1 seed"
    span = f"{lead}, {CONFIDENCE:.0%} t-interval {signed(metric, found['low'])} to {signed(metric, found['high'])}"
    told = "" if found["low"] > 0 or found["high"] < 0 else f"; no difference can be told from {found['seeds']} seeds"
    return span + told


def signed(metric: str, value: float) -> str:
    """A difference of metrics: `+1.2`."""
    return f"{'-' if value < 0 else '+'}{shown(metric, abs(value))}"


def standard_error_of_share(share: float, examples: int) -> float:
    """sqrt(p (1 - p) / n): how much a share of right answers varies with the held-out examples that were drawn."""
    return sqrt(share * (1 - share) / examples)


def error_of_share(metric: str, value: float, examples: int | None) -> float | None:
    """The standard error of a metric that is a share of right answers; None of other metrics, which have no such formula, and where the
    number of held-out examples is not known."""
    return standard_error_of_share(value, examples) if metric in SHARES and examples else None
