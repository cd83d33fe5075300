"""A resource that is held equal: what budgets and rounds are found, and what the runs are charged then."""

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.preparation.equal_resources import RESOURCES, equalized, predicted, with_equal_budgets
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import plain_state
from raffm_ray.studies.comparison import compare


def experiment(**changes):
    values = {
        "rounds": 6,
        "clients": {"count": 12, "per_round": 4},
        "baselines": ["full", {"name": "raffm", "label": "random", "prefix": "random"}],
        "strategy": {"prefix": "none"},
        "evaluation": {"sizes": 0, "every": 6},
        "local": {"steps": 1},
        "salience": {"metric": "l1"},
        **changes,
    }
    return tiny_experiment(**values)


@pytest.mark.parametrize("resource", ["compute", "bytes", "memory"])
def test_budgets_are_what_the_device_types_plans_cost_in_that_unit(resource) -> None:
    prepared = prepare(experiment())
    converted = with_equal_budgets(prepared, resource)
    kind = RESOURCES[resource].kind
    plans = device_type_plans(prepared.setup, plain_state(prepared.setup.architecture))
    assert converted.fleet.budgets == {name: {kind: getattr(prepared.setup.costs(plan), kind)} for name, plan in plans.items()}
    setup = prepare(converted).setup
    for name, plan in device_type_plans(setup, plain_state(setup.architecture)).items():
        assert setup.budgets[name].allows(setup.costs(plan))
        assert getattr(setup.costs(plan), kind) == getattr(prepared.setup.costs(plans[name]), kind)


@pytest.mark.parametrize(("resource", "measure"), [("compute", "flops"), ("bytes", "bytes"), ("time", "simulated_seconds")])
def test_all_are_charged_alike_and_what_the_budgets_allow(resource, measure, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("raffm_ray.studies.comparison.write_report", lambda folder: None)  # pictures take longer than these runs
    content = compare(experiment(), [0], tmp_path, equal=resource)
    charged = {name: one[measure]["mean"] for name, one in content["strategies"].items()}
    allowed = content["equal"]["allowed"]
    rounds = {name: one["rounds"] for name, one in content["strategies"].items()}
    for name, value in charged.items():
        assert abs(value / allowed - 1) <= 0.51 / rounds[name] + 0.05, (name, value / allowed)  # half a round, and other rankings
    assert rounds["full"] < rounds["raffm"]  # control: with as many rounds it would be charged more
    assert (tmp_path / "random" / "seed-0" / "config.yaml").read_text().count(f"rounds: {rounds['random']}") == 1


def test_memory_adds_up_over_no_rounds() -> None:
    chosen = experiment()
    prepared = prepare(chosen)
    found = equalized([prepared], "memory")
    assert (found.experiment, found.allowed) == (prepared.setup.experiment, None)


def test_rounds_are_predicted_as_they_are_charged() -> None:
    prepared = prepare(experiment(baselines=[]))
    works = predicted(prepared.setup, 5)
    assert [work.context.round for work in works] == [1, 2, 3, 4, 5]
    assert all(work.context.plans for work in works)
    assert len(works[0].visits) == 4


def test_what_cannot_be_equal_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"--equal 'computes' is not known.*compute"):
        compare(experiment(), [0], tmp_path, equal="computes")
    small = experiment(rounds=1, fleet={"budgets": {name: {"params": 0.4} for name in tiny_experiment().fleet.budgets}})
    with pytest.raises(
        UserError, match=r"--equal compute: one round of full takes more than twice what all 1 rounds may: more rounds are needed"
    ):
        compare(small, [0], tmp_path, equal="compute")
