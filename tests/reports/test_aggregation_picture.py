"""How exact the aggregation of adapters was, as a part of a report."""

from PIL import Image

from raffm_ray.reports.client_figures.aggregation import aggregation_section


def test_every_run_that_measured_it_is_a_line(tmp_path) -> None:
    rounds = {
        "raffm": [
            {"round": 0, "aggregation_error": None},
            {"round": 1, "aggregation_error": 0.5},
            {"round": 2, "aggregation_error": 0.25},
        ],
        "flora": [{"round": 1, "aggregation_error": 0.0}],
        "full": [{"round": 1}],
    }
    [picture] = aggregation_section(tmp_path, rounds).pictures
    assert "raffm 0.25, flora 0" in picture.alt
    assert picture.data.splitlines() == ["strategy,round,aggregation_error", "raffm,1,0.5", "raffm,2,0.25", "flora,1,0.0"]
    with Image.open(tmp_path / "aggregation.png") as image:
        assert min(image.size) > 200


def test_a_run_that_did_not_measure_it_has_no_such_part(tmp_path) -> None:
    section = aggregation_section(tmp_path, {"full": [{"round": 1, "aggregation_error": None}]})
    assert not section.pictures
    assert not list(tmp_path.iterdir())
