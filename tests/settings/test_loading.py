"""Reading settings from YAML and flags."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from documents import ROOT

from raffm_ray.basics.errors import UserError
from raffm_ray.settings.loading import load, override, parse


def test_flags_leave_the_settings_that_they_override_as_they_were() -> None:
    given = {"fleet": {"budgets": {"laptop": {"params": 0.5}}}}
    before = deepcopy(given)
    assert override(given, ["--fleet.budgets.laptop.params", "0.25"]) == {"fleet": {"budgets": {"laptop": {"params": 0.25}}}}
    assert given == before


def test_a_study_is_told_from_a_misspelt_experiment() -> None:
    for values, told in (
        ({"experiment": "digits.yaml", "space": {}}, "this is a study: raffm-ray study runs it, raffm_ray.load_study reads it"),
        ({"experiment": "digits.yaml"}, "experiment: unknown key"),
    ):
        with pytest.raises(UserError, match=told):
            parse(values)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_that_comes_with_the_project_can_be_changed_in_python(path: Path) -> None:
    if "experiment" in yaml.safe_load(path.read_text(encoding="utf-8")):
        pytest.skip("a study")
    experiment = load(path)
    changed = experiment.with_settings(rounds=3)
    assert changed.baselines == experiment.baselines
    assert changed.model_copy(update={"rounds": experiment.rounds}) == experiment
