"""Budgets: which of a plan's costs each limit is compared with."""

from dataclasses import fields

import pytest
from conftest import architecture_case

from raffm_ray.axes.indexing import Plan
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import costs_of


@pytest.mark.parametrize("name", [field.name for field in fields(Budget)])
def test_a_limit_binds_at_the_cost_of_its_own_name(name) -> None:
    costs = costs_of(architecture_case("bert", "sequence_classification"), Plan())
    value = getattr(costs, name)
    assert Budget(**{name: value}).allows(costs)
    (told,) = Budget(**{name: value - 1}).exceeded(costs)
    assert told.startswith(f"{name} {value:,} > ")
