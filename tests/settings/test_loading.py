"""Reading settings from YAML and flags."""

from copy import deepcopy

from raffm_ray.settings.loading import override


def test_flags_leave_the_settings_that_they_override_as_they_were() -> None:
    given = {"fleet": {"budgets": {"laptop": {"params": 0.5}}}}
    before = deepcopy(given)
    assert override(given, ["--fleet.budgets.laptop.params", "0.25"]) == {"fleet": {"budgets": {"laptop": {"params": 0.25}}}}
    assert given == before
