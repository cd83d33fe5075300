"""The page of a study says which trial is best, and of every trial of the front why it is not."""

from typing import Any

import pytest
from html_pages import lacks, of, rows_of

from raffm_ray.studies.study_page import lead, study_page, verdict

FRONT = {0: (0.699, 45.5e6), 1: (0.882, 49.4e6), 2: (0.885, 92e6)}


def statistic(value: float) -> dict[str, Any]:
    return {"mean": value, "standard_error": None, "values": [value]}


def study(**changes: Any) -> dict[str, Any]:
    """The content of `study.json`: a front of three trials, and a trial that failed."""
    trials: list[dict[str, Any]] = [
        {
            "number": number,
            "state": "complete",
            "enqueued": False,
            "settings": {"local.learning_rate": 0.001 * (number + 1), "salience.metric": "<i>l1"},
            "values": {"full_model": full, "bytes": moved},
            "feasible": True,
            "excess": {},
            "measures": {"full_model": statistic(full), "bytes": statistic(moved)},
            "held_out": {"full_model": statistic(full - 0.01)},
            "by_round": {},
            "reason": "",
            "file": f"front/{3 - number:03d}.yaml",
        }
        for number, (full, moved) in FRONT.items()
    ]
    failed = {
        **trials[0],
        "number": 3,
        "state": "failed",
        "values": {},
        "measures": {},
        "held_out": {},
        "file": "",
        "reason": "a<b",
    }
    return {
        "name": "small",
        "metric": "accuracy",
        "seeds": [0],
        "examples": {"validation": 400, "held_out": 449},
        "objectives": {"full_model": "maximize", "bytes": "minimize"},
        "constraints": [],
        "trials": [*trials, {**failed, "feasible": False}],
        "front": [0, 1, 2],
        "best": 1,
        "rule": "the rule",
        "metric_share": 0.99,
        "enough": [1, 2],
        "importances": {},
        **changes,
    }


def test_every_trial_of_the_front_has_its_reason(tmp_path) -> None:
    page = study_page(study(), {}, tmp_path, [("Data", "digits")])
    assert lacks(page) == []
    assert [(row[0], row[1], row[-1]) for row in rows_of(page)[1:]] == [
        ("2", "front/001.yaml", "keeps the full model; best.yaml is better in bytes"),
        ("1", "front/002.yaml", "best.yaml"),
        ("0", "front/003.yaml", "79.0% of the best full model, below 0.99"),
    ]
    chosen = [one.words[0] for one in of(page, "tr") if one.attributes.get("class") == "chosen"]
    assert chosen == ["1", "1"], "in the table of the front, and in that of all trials"
    assert rows_of(page, 1)[4][-1] == "a<b"
    assert rows_of(page, 1)[1][4] == "<i>l1"


def test_the_best_is_told_with_its_uncertainty() -> None:
    first, held_out, rule, seed = lead(study())
    assert first == (
        "The best of 3 complete trials is trial 1: full model 88.2% (standard error from 400 examples: 1.6 points), bytes 49.4 MB "
        "(accuracy on the validation part)."
    )
    assert held_out.startswith(
        "On the held-out part, which decided nothing, it has full model 87.2% (standard error from 449 examples:"
    )
    assert "3 trials are on the front" in rule
    assert "one seed 0" in seed
    assert "means over seeds 0, 1" in lead(study(seeds=[0, 1]))[-1]


def test_a_study_without_a_best_trial_says_so(tmp_path) -> None:
    none = study(best=None, front=[], enough=[], constraints=["full_model >= 2"])
    assert lead(none) == ["4 trials, 3 of them complete: none meets every constraint (full_model >= 2)."]
    assert lacks(study_page(none, {}, tmp_path, [])) == []


@pytest.mark.parametrize(
    ("metric", "told"),
    [("accuracy", "79.0% of the best full model, below 0.99"), ("perplexity", "126.2% of the best full model, above 1.01")],
)
def test_a_reason_goes_the_way_of_the_metric(metric, told) -> None:
    content = study(metric=metric)
    row = content["trials"][0 if metric == "accuracy" else 1]
    assert verdict({**content, "best": 2, "enough": []}, row) == told
    costs = study(objectives={"bytes": "minimize", "energy_joules": "minimize"})
    assert verdict(costs, costs["trials"][0]) == "further from the best values"
