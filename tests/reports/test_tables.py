"""Tables: values stand under their own headings, and are sorted by their own numbers."""

from raffm_ray.reports.comparison_table import headings_and_rows, orders


def value(mean: float) -> dict[str, float | None]:
    return {"mean": mean, "standard_error": None}


def test_every_value_stands_under_its_heading() -> None:
    classes = {"raspberry_pi_4": value(0.25), "laptop": value(0.5)}
    measured = {"full": value(0.75), "worst_class": value(0.125), "curve_area": value(0.375)}
    spent = {"bytes": value(2000.0), "simulated_seconds": value(3.0), "energy_joules": value(4.0)}
    spent |= {"flops_a_client": value(5e9), "over_budget": value(0.25)}
    strategy = {"classes": classes, **measured, **spent}
    headings, (row,) = headings_and_rows({"metric": "accuracy", "strategies": {"raffm": strategy}})
    assert dict(zip(headings, row, strict=True)) == {
        "strategy": "raffm",
        "full model": "75.0",
        "raspberry pi 4": "25.0",
        "laptop": "50.0",
        "worst class": "12.5",
        "mean over sizes": "37.5",
        "FLOPs": "5 G",
        "bytes": "2.0 kB",
        "time*": "3 s",
        "energy*": "4 J",
        "budgets": "over 25%",
    }
    numbers = dict(zip(headings, orders(strategy), strict=True))
    assert numbers == {
        "strategy": None,
        "full model": 0.75,
        "raspberry pi 4": 0.25,
        "laptop": 0.5,
        "worst class": 0.125,
        "mean over sizes": 0.375,
        "FLOPs": 5e9,
        "bytes": 2000.0,
        "time*": 3.0,
        "energy*": 4.0,
        "budgets": 0.25,
    }
