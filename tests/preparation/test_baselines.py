"""Baselines of an experiment: which are allowed, and with which settings they run."""

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.preparation.baselines import alone, check_baselines
from raffm_ray.settings.loading import dump, parse
from raffm_ray.settings.strategy import StrategySettings


def entries(**changes):
    experiment = tiny_experiment(**changes)
    return experiment, *experiment.baselines


def test_a_baseline_has_its_strategy_s_defaults_and_the_experiment_s_protocol() -> None:
    strategy = {"prefix": "smallest", "aggregation": "coverage", "client_weight": "equal"}
    local = {"learning_rate": 0.02, "optimizer": "sgd", "clip": 0.5, "schedule": "cosine"}
    experiment, rival, other = entries(
        strategy=strategy, local=local, baselines=["heterofl", {"name": "fjord", "client_weight": "examples"}]
    )
    assert alone(experiment, rival).strategy == StrategySettings(name="heterofl", client_weight="equal")
    assert alone(experiment, rival).local == experiment.local
    assert alone(experiment, other).strategy == StrategySettings(name="fjord", client_weight="examples")
    assert alone(experiment).strategy == experiment.strategy
    assert alone(experiment, rival).baselines == alone(experiment).baselines == ()


def test_variants_of_one_strategy_have_labels_and_settings_of_their_own() -> None:
    own = {"local": {"learning_rate": 0.5}, "server": {"optimizer": "momentum"}}
    entry = {"name": "raffm", "label": "no prefixes", "prefix": "none", **own}
    experiment, variant = entries(baselines=[entry])
    check_baselines(experiment)
    assert variant.shown == "no prefixes"
    assert alone(experiment, variant).strategy == StrategySettings(name="raffm", prefix="none")
    assert alone(experiment, variant).local == experiment.local.model_copy(update={"learning_rate": 0.5})
    assert alone(experiment, variant).server == experiment.server.model_copy(update={"optimizer": "momentum"})
    (plain,) = tiny_experiment(baselines=["full"]).baselines
    assert alone(experiment, plain).server == experiment.server  # control: the protocol's


def test_a_baseline_is_written_as_short_as_it_was_given() -> None:
    own = {"server": {"optimizer": "momentum"}}
    experiment, *_ = entries(
        baselines=["full", {"name": "raffm", "label": "no prefixes", "prefix": "none"}, {"name": "fjord", **own}]
    )
    text = dump(experiment)
    assert "baselines:\n- full\n- name: raffm\n" in text
    assert text.count("optimizer: momentum") == 1
    assert "server" not in experiment.baselines[1].model_dump()  # as before there was such a setting
    import yaml

    assert parse(yaml.safe_load(text)) == experiment


@pytest.mark.parametrize(
    "names", [["full", "full"], ["full", "heterofl", "full"], ["raffm"], [{"name": "full", "label": "raffm"}]]
)
def test_a_baseline_that_is_called_as_another_is_refused(names) -> None:
    with pytest.raises(UserError, match=r"is there already; another variant of a strategy needs a label of its own"):
        check_baselines(tiny_experiment(baselines=names))
    check_baselines(tiny_experiment(baselines=["full", {"name": "full", "label": "full 2"}]))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("fulll", r"baselines: strategy 'fulll'.*did you mean 'full'"),
        ({"name": "full", "local": {"learning_rat": 1}}, r"baselines: full: local.learning_rat: unknown key.*learning_rate"),
        ({"name": "full", "local": {"learning_rate": -1}}, r"baselines: full: local.learning_rate: .*greater than 0"),
        ({"name": "full", "server": {"beta": 0.5}}, r"baselines: full: server.beta: unknown key.*beta2"),
    ],
)
def test_a_mistake_in_a_baseline_is_one_line(entry, told) -> None:
    with pytest.raises(UserError, match=told):
        check_baselines(tiny_experiment(baselines=[entry]))
