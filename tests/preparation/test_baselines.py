"""Baselines of an experiment: which are allowed, and with which settings they run."""

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.preparation.prepare import alone, check_baselines
from raffm_ray.settings.experiment import StrategySettings


def test_a_baseline_has_its_own_defaults_and_not_the_settings_of_the_strategy_beside_it() -> None:
    experiment = tiny_experiment(strategy={"prefix": "smallest", "aggregation": "coverage"}, baselines=["heterofl"])
    assert alone(experiment, "heterofl").strategy == StrategySettings(name="heterofl")
    assert alone(experiment, "raffm").strategy == experiment.strategy
    assert alone(experiment, "heterofl").baselines == ()


@pytest.mark.parametrize("names", [["full", "full"], ["full", "heterofl", "full"], ["heterofl", "full", "full"]])
def test_a_baseline_that_is_named_twice_is_refused(names) -> None:
    with pytest.raises(UserError, match="named once"):
        check_baselines(tiny_experiment(baselines=names))
    check_baselines(tiny_experiment(baselines=list(dict.fromkeys(names))))
