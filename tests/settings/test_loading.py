"""Reading settings from YAML and flags."""

from copy import deepcopy

import pytest

from raffm_ray.basics.errors import UserError
from raffm_ray.settings.loading import override, parse


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
