"""A comparison whose strategies are tuned alike: as many trials for each, on the validation part."""

import json

from conftest import tiny_experiment

from raffm_ray.cli.main import main
from raffm_ray.reports.comparisons.sentences import notes
from raffm_ray.settings.loading import dump, load
from raffm_ray.studies.comparison import compare
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS


def test_every_strategy_has_as_many_trials_and_the_rate_that_was_best_for_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.studies.comparison.write_report", lambda folder: None)
    experiment = tiny_experiment(
        rounds=1,
        baselines=["full"],
        evaluation={"sizes": 0},
        salience={"metric": "l1"},
        local={"steps": 1},
        clients={"per_round": 2},
    )
    content = compare(experiment, [3], tmp_path, tune=3)
    assert content["tuned"]["trials"] == 3
    for name, rate in content["tuned"]["learning_rates"].items():
        study = json.loads((tmp_path / "tuning" / name / "study.json").read_text())
        assert len(study["trials"]) == 3
        assert study["trials"][0]["settings"] == {"local.learning_rate": OPTIMIZERS["adamw"].rates.new}
        best = next(row for row in study["trials"] if row["number"] == study["best"])
        assert best["settings"]["local.learning_rate"] == rate
        assert best["values"]["full_model"] == max(row["values"]["full_model"] for row in study["trials"])
        run = load(tmp_path / name / "seed-3" / "config.yaml")
        assert run.local.learning_rate == rate
        assert run.task.validation > 0
    assert any(
        line.startswith("learning rates were chosen on the validation part, with 3 trials for each strategy: raffm ")
        for line in notes(content)
    )


def test_trials_that_are_no_number_are_one_line(tmp_path, capsys) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(tiny_experiment()))
    assert main(["compare", str(config), "--tune", "many"]) == 2
    assert "--tune: expected a number of trials, at least 1, got 'many'" in capsys.readouterr().err
