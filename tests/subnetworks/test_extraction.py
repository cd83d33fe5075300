"""Budgets become plans: they fit, they are nested, and what cannot be is said."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from raffm_ray.axes.indexing import Plan, check_plan
from raffm_ray.axes.nesting import within
from raffm_ray.basics.errors import UserError
from raffm_ray.models.architecture import architecture_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.server.ranking import plain_scores
from raffm_ray.subnetworks.budgets import Budget, budget_from
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, common_rate, longest_prefix, plan_of, plan_of_rates, ranked_list, unit_cost
from raffm_ray.subnetworks.salience import METRICS, identity_orders, rank

ARCHITECTURE = architecture_of(parse_config(TINY["vit"]), "image_classification")
CUTTING = Cutting({"heads": 1, "qk": 2, "vo": 2, "ffn": 4, "residual": 4}, {"residual": 0.5})
FULL = costs_of(ARCHITECTURE, Plan(), 16)


def noise(seed: int):
    return METRICS["random"].score(ARCHITECTURE.layout, {}, {}, np.random.default_rng(seed))


def prefix(seed: int, budget: Budget, pace: float = 0.0) -> Plan:
    scores, cutting = noise(seed), replace(CUTTING, pace=pace)
    return longest_prefix(
        architecture=ARCHITECTURE,
        units=ranked_list(ARCHITECTURE, scores, cutting),
        orders=rank(scores),
        cutting=cutting,
        budget=budget,
        costs=partial(costs_of, ARCHITECTURE, batch_size=16),
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["params", "bytes", "training_flops", "memory_bytes"]),
    st.floats(0.45, 1.0),
    st.floats(0.45, 1.0),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 50.0]),
)
def test_a_prefix_fits_its_budget_and_smaller_ones_are_nested_in_larger(seed, kind, first, second, pace) -> None:
    small, large = (prefix(seed, budget_from({kind: share}, FULL), pace) for share in sorted((first, second)))
    for plan, share in ((small, min(first, second)), (large, max(first, second))):
        check_plan(plan, ARCHITECTURE.layout.axes)
        assert getattr(costs_of(ARCHITECTURE, plan, 16), kind) <= share * getattr(FULL, kind)
    within(small, large, ARCHITECTURE.layout)


def test_nested_control_another_ranking_s_plan_is_not_nested() -> None:
    small, large = prefix(1, budget_from({"params": 0.6}, FULL)), prefix(2, budget_from({"params": 0.7}, FULL))
    with pytest.raises(ValueError, match="inner plan keeps indices"):
        within(small, large, ARCHITECTURE.layout)


def test_nested_control_of_two_paces_the_smaller_plan_is_not_nested_in_the_larger() -> None:
    small, large = prefix(1, budget_from({"params": 0.6}, FULL)), prefix(1, budget_from({"params": 0.7}, FULL), pace=2.0)
    with pytest.raises(ValueError, match="inner plan keeps indices"):
        within(small, large, ARCHITECTURE.layout)


def given_up(architecture, cutting: Cutting, scores):
    """After every drop of a list: the residual stream's kept size, and the parameters that layers, whose other sizes are whole, have given
    up above what they keep, as a part of all of those; and the counts of all axes."""
    layout = architecture.layout
    counts = {name: layout.axes[name].size for name in cutting.axes(layout)}
    least = {name: cutting.reserve(name, layout) for name in counts if name != "residual"}
    units = ranked_list(architecture, scores, cutting)
    removed, steps = 0, []
    for name, count in reversed(units):
        assert counts[name] == count
        floor, step = cutting.floor(name, layout), cutting.step(name, layout)
        fewer = floor + (count - floor - 1) // step * step
        if name != "residual" and fewer >= least[name]:
            whole = {one: axis.size for one, axis in layout.axes.items()} | counts | {"residual": layout.axes["residual"].size}
            removed += unit_cost(architecture, name, whole) * (count - fewer)
        counts[name] = fewer
        steps.append((dict(counts), removed))
    return [(kept, gone / removed) for kept, gone in steps]


@pytest.mark.parametrize("pace", [0.5, 1.0, 2.0])
def test_the_residual_stream_is_given_up_at_the_pace_and_reserves_after_it(architecture, rng, pace) -> None:
    layout = architecture.layout
    floors = {"residual": 0.5}
    reserves = {"groups": 0.4, "heads": 0.4, "qk": 0.5, "vo": 0.5, "ffn": 0.25}
    cutting = Cutting({"groups": 1, "heads": 1, "qk": 2, "vo": 2, "ffn": 8, "residual": 4}, floors, reserves, pace)
    scores = {name: rng.random(np.shape(values)) for name, values in plain_scores(architecture).items()}
    size, least = layout.axes["residual"].size, cutting.floor("residual", layout)
    units = (size - least) // 4
    kept_reserve = []
    for counts, share in given_up(architecture, cutting, scores):
        gone, above = (size - counts["residual"]) // 4, {name: cutting.reserve(name, layout) for name in counts}
        inside = all(counts[name] >= above[name] for name in counts)
        kept_reserve.append(inside)
        if inside and share < 1:  # within the units that are due at this moment and the one before
            assert gone <= min(1.0, pace * share) * units + 1e-9
        if not inside:
            assert counts["residual"] == least
    assert kept_reserve == sorted(kept_reserve, reverse=True)
    assert not kept_reserve[-1]


def test_pace_control_where_the_residual_stream_comes_last_reserves_do_not_hold(architecture, rng) -> None:
    layout = architecture.layout
    cutting = Cutting({"heads": 1, "qk": 2, "vo": 2, "ffn": 8, "residual": 4}, {"residual": 0.5}, {"ffn": 0.9}, 0.0)
    scores = {name: rng.random(np.shape(values)) for name, values in plain_scores(architecture).items()}
    assert ranked_list(architecture, scores, cutting) == ranked_list(architecture, scores, replace(cutting, reserves={}))
    seen = [counts for counts, _ in given_up(architecture, cutting, scores) if counts["residual"] == layout.axes["residual"].size]
    assert any(counts[name] == cutting.floor(name, layout) for counts in seen for name in counts if name.endswith("/ffn"))


def test_the_prefix_is_the_longest() -> None:
    scores = noise(0)
    units = ranked_list(ARCHITECTURE, scores, CUTTING)
    floors = {name: CUTTING.floor(name, ARCHITECTURE.layout) for name in CUTTING.axes(ARCHITECTURE.layout)}
    from raffm_ray.subnetworks.extraction import plan_of

    sizes = [
        costs_of(ARCHITECTURE, plan_of(floors | dict(units[:n]), rank(scores), ARCHITECTURE.layout)).params
        for n in range(len(units) + 1)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] == FULL.params
    for limit in range(sizes[0], FULL.params + 1, 517):
        got = costs_of(ARCHITECTURE, prefix(0, Budget(params=limit))).params
        assert got == max(size for size in sizes if size <= limit)


def test_salient_units_are_kept_and_the_residual_is_cut_last() -> None:
    scores = {name: score.copy() for name, score in noise(0).items()}
    scores["1/ffn"][:4] = 1e6
    units = ranked_list(ARCHITECTURE, scores, CUTTING)
    plan = longest_prefix(
        architecture=ARCHITECTURE,
        units=units,
        orders=rank(scores),
        cutting=CUTTING,
        budget=budget_from({"params": 0.5}, FULL),
        costs=partial(costs_of, ARCHITECTURE, batch_size=16),
    )
    assert set(range(4)) <= set(plan["1/ffn"].tolist())
    assert "residual" not in plan
    smallest = longest_prefix(
        architecture=ARCHITECTURE,
        units=units,
        orders=rank(scores),
        cutting=CUTTING,
        budget=budget_from({"params": 0.15}, FULL),
        costs=partial(costs_of, ARCHITECTURE, batch_size=16),
    )
    assert smallest["residual"].size < 24
    assert all(smallest[f"{layer}/ffn"].shape == (4,) for layer in range(3))


def test_heads_of_a_layer_share_their_sizes_but_not_their_orders() -> None:
    scores = {name: score * (100 if name.endswith("/heads") else 1) for name, score in noise(3).items()}
    units = ranked_list(ARCHITECTURE, scores, CUTTING)
    plan = longest_prefix(
        architecture=ARCHITECTURE,
        units=units,
        orders=rank(scores),
        cutting=CUTTING,
        budget=budget_from({"params": 0.6}, FULL),
        costs=partial(costs_of, ARCHITECTURE, batch_size=16),
    )
    nested = [plan[name] for name in plan if name.endswith("/qk") or name.endswith("/vo")]
    assert nested
    assert all(kept.shape[0] == 3 for kept in nested)
    assert any((kept[0] != kept[1]).any() for kept in nested)


def test_one_rate_per_axis() -> None:
    plan = plan_of_rates({"ffn": 0.5, "qk": 0.75}, identity_orders(ARCHITECTURE.layout), ARCHITECTURE.layout, CUTTING)
    assert plan["2/ffn"].tolist() == list(range(20))
    assert plan["0/qk"].shape == (6,)
    assert "0/vo" not in plan
    whole = common_rate(ARCHITECTURE, identity_orders(ARCHITECTURE.layout), CUTTING, Budget(params=FULL.params))
    assert whole == Plan()


def test_several_limits_bind_together() -> None:
    plan = prefix(0, Budget(params=0.9 * FULL.params, memory_bytes=0.7 * FULL.memory_bytes))
    costs = costs_of(ARCHITECTURE, plan, 16)
    assert costs.memory_bytes <= 0.7 * FULL.memory_bytes
    assert costs.params <= 0.9 * FULL.params


def test_a_budget_below_the_smallest_subnetwork_says_by_how_much() -> None:
    with pytest.raises(UserError, match=r"below the smallest subnetwork: params 1,\d{3} > 143"):
        prefix(0, budget_from({"params": 0.01}, FULL))


def test_a_unit_costs_the_parameters_that_go_with_it(architecture) -> None:
    axes, whole = architecture.layout.axes, costs_of(architecture, Plan()).params
    counts = {name: axis.size for name, axis in axes.items()}
    for name in rankable(architecture.layout):
        if axes[name].size > 1:
            without_one = costs_of(architecture, Plan({name: np.arange(axes[name].size - 1)})).params
            assert unit_cost(architecture, name, counts) == whole - without_one


def test_the_list_drops_what_loses_least_for_the_parameters_that_it_saves_by_then(architecture, rng) -> None:
    layout = architecture.layout
    cutting = Cutting({"groups": 1, "heads": 1, "qk": 2, "vo": 2, "ffn": 8}, {"ffn": 0.3})
    scores = {name: rng.random(np.shape(values)) for name, values in plain_scores(architecture).items()}
    counts = {name: layout.axes[name].size for name in cutting.axes(layout)}
    orders = rank(scores)

    def params(changed: dict[str, int]) -> int:
        return costs_of(architecture, plan_of({**counts, **changed}, orders, layout)).params

    for name, count in reversed(ranked_list(architecture, scores, cutting)):
        assert counts[name] == count
        ratios = {}
        for one in counts:
            floor, step = cutting.floor(one, layout), cutting.step(one, layout)
            if counts[one] > floor:
                fewer = floor + (counts[one] - floor - 1) // step * step
                kept = -np.sort(-scores[one], axis=-1)[..., fewer : counts[one]]
                ratios[one] = (float(kept.sum()) / (params({}) - params({one: fewer})), fewer)
        assert ratios[name][0] == pytest.approx(min(ratio for ratio, _ in ratios.values()))
        counts[name] = ratios[name][1]
    assert counts == {name: cutting.floor(name, layout) for name in counts}
