"""Tables and pages: values stand under their own headings, and texts are shown as texts."""

from raffm_ray.reports.comparison_table import headings_and_rows
from raffm_ray.reports.run_report import PAGE


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


def test_a_name_in_the_page_of_a_run_is_text() -> None:
    page = PAGE.render(summary={"name": "<script>alert(1)</script>"}, images={}, headings=["<b>"], rows=[["<i>"]], share=0.5)
    assert not any(tag in page for tag in ("<script>", "<b>", "<i>"))
    assert "&lt;script&gt;" in page
