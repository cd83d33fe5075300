"""Tables: values stand under their own headings, and are sorted by their own numbers."""

from raffm_ray.reports.comparisons.content import CLIENT_MEASURES, comparison_content
from raffm_ray.reports.comparisons.sentences import notes
from raffm_ray.reports.comparisons.table import headings_and_rows, orders


def value(mean: float) -> dict[str, float | None]:
    return {"mean": mean, "standard_error": None}


def test_every_value_stands_under_its_heading() -> None:
    device_types = {"raspberry_pi_4": value(0.25), "laptop": value(0.5)}
    measured = {"full_model": value(0.75), "worst_device_type": value(0.125), "curve_area": value(0.375)}
    spent = {"bytes": value(2000.0), "simulated_seconds": value(3.0), "energy_joules": value(4.0)}
    spent |= {"flops_a_client": value(5e9), "over_budget": value(0.25)}
    strategy = {"device_types": device_types, **measured, **spent}
    content = {"metric": "accuracy", "strategies": {"raffm": strategy}}
    headings, (row,) = headings_and_rows(content)
    assert dict(zip(headings, row, strict=True)) == {
        "strategy": "raffm",
        "full model": "75.0",
        "raspberry pi 4": "25.0",
        "laptop": "50.0",
        "worst device type": "12.5",
        "mean over sizes": "37.5",
        "FLOPs": "5 G",
        "bytes": "2.0 kB",
        "time*": "3 s",
        "energy*": "4 J",
        "budgets": "over 25%",
    }
    numbers = dict(zip(headings, orders(content, strategy), strict=True))
    assert numbers == {
        "strategy": None,
        "full model": 0.75,
        "raspberry pi 4": 0.25,
        "laptop": 0.5,
        "worst device type": 0.125,
        "mean over sizes": 0.375,
        "FLOPs": 5e9,
        "bytes": 2000.0,
        "time*": 3.0,
        "energy*": 4.0,
        "budgets": 0.25,
    }


def test_columns_of_clients_are_there_where_some_were_measured() -> None:
    measures = ("full_model", "worst_device_type", "curve_area", "bytes", "simulated_seconds", "energy_joules", "flops_a_client")
    strategy = {"device_types": {}, **{name: value(0.5) for name in (*measures, "over_budget")}}
    with_clients = {**strategy, "worst_tenth": value(0.25), "device_type_gap": value(0.0625)}
    without = {**strategy, "worst_tenth": {"mean": None, "standard_error": None}}
    contents = [{"metric": "accuracy", "strategies": {"raffm": one}} for one in (with_clients, without)]
    (headings, (row,)), (fewer, _) = (headings_and_rows(content) for content in contents)
    numbers = dict(zip(headings, orders(contents[0], with_clients), strict=True))
    assert dict(zip(headings, row, strict=True)).items() >= {"worst tenth": "25.0", "gap": "6.2"}.items()
    assert (numbers["worst tenth"], numbers["gap"]) == (0.25, 0.0625)
    assert [name for name in headings if name not in fewer] == ["worst tenth", "gap"]
    summary = {"client_metrics": {"own": {"worst_tenth": 0.25, "device_type_gap": {"gap": 0.0625}}}}
    assert [one(summary) for one in CLIENT_MEASURES.values()] == [0.25, 0.0625]
    assert [one({"client_metrics": None}) for one in CLIENT_MEASURES.values()] == [None, None]


def told_of_raffm(*runs: tuple[str, str, str | None]) -> list[str]:
    """The notes about RaFFM below a comparison of runs (label, strategy, salience)."""
    device_type = {"client_rounds": 1, "flops": 1.0, "over_budget": 0, "metric": 0.5}
    summary = {
        **dict.fromkeys(
            ("rounds", "clients", "params", "start", "full_model", "curve_area", "bytes_down", "bytes_up", "flops"), 1
        ),
        **{"name": "digits", "metric": "accuracy", "simulated_seconds": 1.0, "energy_joules": 1.0, "rejected_updates": 0},
        **{"curve": [], "device_types": {"laptop": device_type}, "worst_device_type": {"metric": 0.5}},
    }
    content = comparison_content(
        {label: {0: {**summary, "strategy": name, "salience": salience}} for label, name, salience in runs}
    )
    return [note for note in notes(content) if note.startswith("RaFFM")]


def test_a_comparison_says_which_strategy_is_the_papers() -> None:
    (told,) = told_of_raffm(("raffm", "raffm", "outputs"), ("full", "full", "outputs"), ("code", "raffm_reference", None))
    assert told.endswith("raffm is this project's variant, not the paper's; code is close to its published code")
    (told,) = told_of_raffm(("by norm", "raffm", "l1"))
    assert told.endswith("by norm is this project's variant, with the paper's salience (l1)")
    assert told_of_raffm(("full", "full", "l1"), ("fiarse", "fiarse", None)) == []  # control
