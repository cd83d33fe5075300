"""What a table of clients' metrics says: means, spread, the worst clients, and how fair it is. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raffm_ray.data.metrics import METRICS, shown, unit
from raffm_ray.runs.client_metrics.request import MODELS

Values = NDArray[np.float64]
MOST_GROUPS = 50
"""Groups that a summary lists; where there are more, as with a group for every person, the records have them."""
WORST = 0.1
"""The part of the clients that counts as the worst."""


def jain_index(values: Values) -> float | None:
    """(sum of x)^2 / (n sum of x^2): 1 where all clients have the same, 1/n where one has all (Jain, Chiu and Hawe 1984, DEC-TR-301, equation 1).
    None where all have 0."""
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else None


def worst_tenth(metric: str, values: Values) -> float:
    """The mean of the worst tenth of the clients, of one at least."""
    ordered = np.sort(values) if METRICS[metric].higher else -np.sort(-values)
    return float(ordered[: ceil(WORST * len(values) - 1e-9)].mean())


def _spread(metric: str, values: Values, examples: Values) -> dict[str, Any]:
    """Of one client or more whose metric is defined."""
    quantile = WORST if METRICS[metric].higher else 1 - WORST
    return {
        "mean_over_clients": float(values.mean()),
        "mean_over_examples": float((values * examples).sum() / examples.sum()),
        "standard_deviation": float(values.std()),
        "percentile_10": float(np.quantile(values, quantile)),
        "worst_tenth": worst_tenth(metric, values),
    }


def _parts(metric: str, names: Sequence[Any], values: Values, examples: Values, order: Iterable[Any]) -> dict[str, Any]:
    """By name, what is said of its clients."""
    given, found = np.array([str(name) for name in names]), {}
    for name in order:
        mine = given == str(name)
        known = mine & ~np.isnan(values)
        if known.any():
            found[name] = {"clients": int(mine.sum()), **_spread(metric, values[known], examples[known])}
    return found


def _of_model(metric: str, table: pa.Table, device_types: Sequence[str]) -> dict[str, Any] | None:
    """None where the metric is defined on no client's examples."""
    values = table["metric"].to_numpy().astype(np.float64)  # null is NaN
    examples, clients = table["examples"].to_numpy().astype(np.float64), table["client"].to_numpy()
    known = ~np.isnan(values)
    if not known.any():
        return None
    own = values[known]
    worst = int(clients[known][own.argmin() if METRICS[metric].higher else own.argmax()])
    groups = table["group"].to_pylist()
    named = sorted({name for name in groups if name is not None})
    by_device_type = _parts(metric, table["device_type"].to_pylist(), values, examples, device_types)
    return {
        "clients": len(values),
        "undefined": int((~known).sum()),
        **_spread(metric, own, examples[known]),
        "worst_client": {"client": worst, "metric": float(own.min() if METRICS[metric].higher else own.max())},
        "jain_index": jain_index(own),
        "device_types": by_device_type,
        "device_type_gap": _gap({name: one["mean_over_clients"] for name, one in by_device_type.items()}, metric),
        "groups": _parts(metric, groups, values, examples, named) if len(named) <= MOST_GROUPS else {},
        "trained_and_unseen": _parts(
            metric,
            ["unseen" if one else "trained" for one in table["unseen"].to_pylist()],
            values,
            examples,
            ("trained", "unseen"),
        ),
    }


def _gap(means: Mapping[str, float], metric: str) -> dict[str, Any]:
    """Between the device types whose clients do best and worst on average."""
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    strongest, weakest = (high, low) if METRICS[metric].higher else (low, high)
    return {"gap": means[high] - means[low], "strongest": strongest, "weakest": weakest}


def client_summary(metric: str, table: pa.Table, device_types: Sequence[str]) -> dict[str, Any]:
    """The content of the summary's `client_metrics`: after which round they were measured, and by model what clients get. `device_types`: weakest
    first, as they come out."""
    models, after = np.array(table["model"].to_pylist()), int(table["round"][0].as_py())
    there = [model for model in MODELS if (models == model).any()]
    by_model = {model: _of_model(metric, table.filter(pa.array(models == model)), device_types) for model in there}
    return {"round": after, **by_model}


def told(metric: str, table: pa.Table) -> str:
    """A line for who watches: the mean over clients and the worst tenth, of every client's own subnetwork, with its own parameters where it keeps
    some."""
    models = np.array(table["model"].to_pylist())
    model, besides = ("personal", " and parameters") if (models == "personal").any() else ("own", "")
    values = table.filter(pa.array(models == model))["metric"].drop_null().to_numpy()
    if not len(values):
        return f"clients: {metric} is defined on no client's examples"
    mean, worst = (f"{shown(metric, value)}{unit(metric)}" for value in (float(values.mean()), worst_tenth(metric, values)))
    return f"clients, each with its own subnetwork{besides}: mean {metric} {mean}, worst tenth {worst}"
