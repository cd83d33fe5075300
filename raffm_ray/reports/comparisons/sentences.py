"""What is said of several runs in words: differences and what can be told from them, how they were held equal and tuned, what the runs say of
themselves. Pure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raffm_ray.basics.formatting import counted, human_bytes, human_joules, human_seconds, without_numbers
from raffm_ray.data.metrics import shown, unit
from raffm_ray.reports.comparisons.content import clients_are_measured
from raffm_ray.reports.run_story import told_of_lacks
from raffm_ray.reports.seed_statistics import CONFIDENCE, SPENT, Statistic, error_of_share

NOTES = (
    "mean ± standard error over seeds; mean over sizes: area under the curve from the smallest device type's size to the full model",
    "FLOPs: charged to a client in a round; bytes, time, energy: of the whole run; means over seeds; * simulated devices, estimated from data sheets",
    "budgets: in what share of clients' rounds more was charged than their devices allow",
)
CLIENT_NOTE = (
    "worst tenth, gap: of clients on their own held-out examples, each with its own subnetwork, and its own parameters where it keeps some: mean of the worst tenth of them; between the device "
    "types whose clients do best and worst on average"
)


def signed(metric: str, value: float) -> str:
    """A difference of metrics: `+1.2`."""
    return f"{'-' if value < 0 else '+'}{shown(metric, abs(value))}"


def with_error(metric: str, value: Statistic) -> str:
    """`97.1 ± 0.3`; without the error where there is one seed, `-` where there is no value."""
    if value["mean"] is None:
        return "-"
    error = value["standard_error"]
    return shown(metric, value["mean"]) + ("" if error is None else f" ± {shown(metric, error)}")


def told_difference(metric: str, names: tuple[str, str], what: str, found: Mapping[str, Any]) -> str:
    """A paired difference as a sentence, with what can be told from it."""
    first, second = names
    sign, points = ("", " points") if unit(metric) else ("", "")
    lead = f"{what}, {first} - {second}: {signed(metric, found['mean'])}{sign}{points}"
    if found["low"] is None:
        told = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds that all differ by the same: they have no interval"
        return f"{lead}; no difference can be told from {told}"
    span = f"{lead}, {CONFIDENCE:.0%} t-interval {signed(metric, found['low'])} to {signed(metric, found['high'])}"
    told = "" if found["low"] > 0 or found["high"] < 0 else f"; no difference can be told from {found['seeds']} seeds"
    return span + told


def told_of_tuning(content: Mapping[str, Any]) -> list[str]:
    """Which learning rates were chosen, in a line; none where none were."""
    found = content.get("tuned")
    if not found:
        return []
    rates = ", ".join(f"{name} {rate:.2g}" for name, rate in found["learning_rates"].items())
    return [f"learning rates were chosen on the validation part, with {found['trials']} trials for each strategy: {rates}"]


def told_of_target(content: Mapping[str, Any]) -> list[str]:
    """What every strategy took to the metric that was to be reached, in a line; none where none was named."""
    target, metric = content.get("target"), content["metric"]
    if target is None:
        return []
    parts = []
    for name, one in content["strategies"].items():
        found = one["to_target"]
        if found["rounds"]["mean"] is None:
            reached = sum(value is not None for value in found["rounds"]["values"])
            parts.append(f"{name} in {reached} of {counted(len(found['rounds']['values']), 'run')}")
            continue
        rounds, spent = found["rounds"]["mean"], {key: found[key]["mean"] for key in SPENT}
        costs = human_bytes(spent["bytes"]), human_joules(spent["energy_joules"]), human_seconds(spent["simulated_seconds"])
        parts.append(f"{name} after {rounds:.3g} rounds ({', '.join(costs)})")
    return [f"the full model is first seen at {metric} {shown(metric, target)}{unit(metric)} or better by {'; '.join(parts)}"]


def _told_of_seeds(content: Mapping[str, Any]) -> list[str]:
    metric, first = content["metric"], next(iter(content["strategies"]))
    lines = [
        told_difference(metric, (first, name), what, one[measure])
        for name, one in content["differences"].items()
        for what, measure in (("full model", "full_model"), ("worst device type", "worst_device_type"))
    ]
    full, examples = content["strategies"][first]["full_model"]["mean"], content["held_out_examples"]
    error = None if full is None else error_of_share(metric, full, examples)
    if error is not None:
        lines.append(
            f"with {examples:,} held-out examples, {metric} of {shown(metric, full)} has a standard error of {shown(metric, error)}"
        )
    return lines


def _told_of_the_paper(content: Mapping[str, Any]) -> list[str]:
    """What of a strategy is RaFFM as its paper or its published code has it."""
    found = []
    for name, one in content["strategies"].items():
        if one["strategy"] == "raffm_reference":
            found.append(f"{name} is close to its published code")
        elif one["strategy"] == "raffm":
            salience = "with the paper's salience (l1)" if one["salience"] == "l1" else "not the paper's"
            found.append(f"{name} is this project's variant, {salience}")
    return [f"RaFFM (arXiv 2310.00247): {'; '.join(found)}"] if found else []


def _told_of_equals(content: Mapping[str, Any]) -> list[str]:
    """What was held equal, and how equal it came out."""
    equal = content.get("equal")
    if not equal:
        return []
    counts = ", ".join(f"{name} {one['rounds']}" for name, one in content["strategies"].items())
    line = f"equal {equal['resource']}: budgets in its unit; rounds: {counts}"
    measure = {"compute": "flops", "bytes": "bytes", "time": "simulated_seconds"}.get(equal["resource"])
    if equal["allowed"] and measure:
        allowed, strategies = equal["allowed"], content["strategies"].items()
        shares = [f"{name} {one[measure]['mean'] / allowed:.1%}" for name, one in strategies if one[measure]["mean"]]
        line += f"; charged of what is allowed: {', '.join(shares)}"
    return [line]


Hints = Mapping[str, Sequence[Sequence[str]]]
"""By label, what each of its runs says of itself: the `hints` in its summary."""


def together(hints: Hints) -> list[str]:
    """Each hint once, whatever its numbers, with those of the first run that has it, and whose it is."""
    return [_told_with_whose(found, hints) for found in _by(without_numbers, hints).values()]


def common_warnings(hints: Hints) -> list[str]:
    """The warnings that all runs have, in the words of the first one, who may give another cause than the others: it comes after the first comma."""
    found = _by(lambda line: line.partition(",")[0], hints)
    every = [lines for lines in found.values() if sum(map(len, lines.values())) == sum(map(len, hints.values()))]
    return [_told_with_whose(lines, hints) for lines in every if next(iter(lines.values()))[0].startswith("warning: ")]


def _by(kind: Callable[[str], str], hints: Hints) -> dict[str, dict[str, list[str]]]:
    """Kind of a hint -> label -> the lines of its runs."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for label, runs in hints.items():
        for line in (line for lines in runs for line in lines):
            kinds.setdefault(kind(line), {}).setdefault(label, []).append(line)
    return kinds


def _told_with_whose(found: Mapping[str, Sequence[str]], hints: Hints) -> str:
    """`found`: of one kind."""
    lines, count = [line for own in found.values() for line in own], sum(map(len, hints.values()))
    if count == 1:
        return lines[0]
    some = {label: f"{len(own)} of {counted(len(hints[label]), 'run')} of " for label, own in found.items()}
    who = [label if len(own) == len(hints[label]) else some[label] + label for label, own in found.items()]
    whose = f"all {count} runs" if len(lines) == count else ", ".join(who)
    return f"{lines[0]} ({whose}{f'; the numbers are of {next(iter(found))}' if len({*lines}) > 1 else ''})"


def notes(content: Mapping[str, Any], differences: bool = True) -> list[str]:
    """What a reader of the tables has to know, a line each; with what seeds and held-out examples tell of `differences`."""
    refused = {name: one["rejected_updates"] for name, one in content["strategies"].items() if one["rejected_updates"]}
    told = [f"updates refused (clients' records say why): {', '.join(f'{name} {count}' for name, count in refused.items())}"]
    start = f"before training the full model has {with_error(content['metric'], content['start'])}"
    return [
        start,
        *(_told_of_seeds(content) if differences else []),
        *_told_of_the_paper(content),
        *NOTES,
        *([CLIENT_NOTE] if clients_are_measured(content) else []),
        *_told_of_equals(content),
        *told_of_tuning(content),
        *told_of_target(content),
        *told_of_lacks(
            "charged FLOPs and budgets",
            [name for name, one in content["strategies"].items() if one["over_budget"]["mean"] is None],
        ),
        *together(content.get("hints", {})),
        *(told if refused else []),
    ]
