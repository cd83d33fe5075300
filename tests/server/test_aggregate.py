"""Law 4 over whole models against a dense oracle, and the divisor that it must not use."""

import numpy as np
import pytest
import torch
from plans import masks, random_cut

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan, scatter_add
from raffm_ray.axes.layout import take_all
from raffm_ray.server.aggregation import AGGREGATION_RULES, flat_coverage

ALL = ("heads", "qk", "vo", "ffn", "residual")


def clients_of(architecture, model, count, seed):
    """Random plans, weights and trained parameters, with their dense weighted mean, and what the rules take."""
    rng, layout, shapes = np.random.default_rng(seed), architecture.layout, architecture.shapes
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    plans = [random_cut(layout, rng, ALL, layers=True) for _ in range(count)]
    weights = {number: float(rng.integers(1, 30)) for number in range(count)}
    dense, dense_weight = ({name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()} for _ in range(2))
    summed = torch.zeros(sum(p.numel() for p in old.values()))
    named = views(summed, shapes)
    for number, plan in enumerate(plans):
        given = take_all(old, layout, plan)
        trained = {name: values + torch.from_numpy(rng.standard_normal(values.shape)).float() for name, values in given.items()}
        mask = masks(layout, shapes, plan)
        for name, values in trained.items():
            spec = layout.parameters[name]
            full = scatter_add(torch.zeros(shapes[name]), values, spec.dims, layout.axes, plan)
            dense[name] += weights[number] * mask[name].double() * full.double()
            dense_weight[name] += weights[number] * mask[name].double()
            scatter_add(
                total=named[name], part=values - given[name], dims=spec.dims, axes=layout.axes, plan=plan, weight=weights[number]
            )
    return old, plans, weights, dense, dense_weight, summed


@pytest.mark.parametrize("seed", range(4))
def test_law_4_coverage_aware_mean_equals_the_dense_oracle(architecture, model, seed) -> None:
    old, plans, weights, dense, dense_weight, summed = clients_of(architecture, model, 4, seed)
    covered = flat_coverage(weights, plans, architecture)
    new = views(
        AGGREGATION_RULES["coverage"](flatten(old, architecture.shapes), summed, covered, sum(weights.values())),
        architecture.shapes,
    )
    for name, values in new.items():
        expected = torch.where(dense_weight[name] > 0, dense[name] / dense_weight[name].clamp(min=1), old[name].double())
        torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    untouched = flatten({name: weight == 0 for name, weight in dense_weight.items()}, architecture.shapes).bool()
    flat = flatten(old, architecture.shapes)
    assert torch.equal(flatten(new, architecture.shapes)[untouched], flat[untouched])


def test_law_4_control_the_divisor_by_all_clients_differs(architecture, model) -> None:
    old, plans, weights, dense, dense_weight, summed = clients_of(architecture, model, 4, 0)
    covered = flat_coverage(weights, plans, architecture)
    total = sum(weights.values())
    new = views(AGGREGATION_RULES["all_clients"](flatten(old, architecture.shapes), summed, covered, total), architecture.shapes)
    partly = False
    for name, values in new.items():
        torch.testing.assert_close(values.double(), dense[name] / total, atol=1e-5, rtol=1e-5)
        partly |= bool(((dense_weight[name] > 0) & (dense_weight[name] < total)).any())
    assert partly


def test_untrained_clients_leave_the_model_alone_but_the_divisor_by_all_shrinks_it(architecture, model) -> None:
    layout, shapes = architecture.layout, architecture.shapes
    flat = flatten(dict(model.named_parameters()), shapes)
    ffn = next(site.ffn for site in layout.attentions if site.ffn)
    plans = [Plan(), Plan({ffn[0]: [0, 1, 2]})]
    covered = flat_coverage({0: 1.0, 1: 3.0}, plans, architecture)
    nothing = torch.zeros_like(flat)
    assert torch.equal(AGGREGATION_RULES["coverage"](flat, nothing, covered, 4.0), flat)
    shrunk = views(AGGREGATION_RULES["all_clients"](flat, nothing, covered, 4.0), shapes)
    name = next(key for key, spec in layout.parameters.items() if spec.dims == (ffn, ("residual",)))
    torch.testing.assert_close(shrunk[name][5:], views(flat, shapes)[name][5:] / 4)


@pytest.mark.parametrize("rule", sorted(AGGREGATION_RULES))
def test_every_rule_is_the_weighted_mean_where_everyone_trains_everything(architecture, model, rule) -> None:
    shapes, rng = architecture.shapes, np.random.default_rng(0)
    old = flatten(dict(model.named_parameters()), shapes)
    changes = torch.from_numpy(rng.standard_normal((3, len(old)))).float()
    weights = torch.tensor([1.0, 5.0, 2.0])
    covered = flat_coverage({0: float(weights.sum())}, [Plan()], architecture)
    new = AGGREGATION_RULES[rule](old, (weights[:, None] * changes).sum(0), covered, float(weights.sum()))
    torch.testing.assert_close(new, old + (weights[:, None] * changes).sum(0) / weights.sum(), atol=1e-5, rtol=1e-5)


def test_a_damped_step_is_shorter_by_the_root_of_the_coverage() -> None:
    old, summed, covered = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([8.0, 2.0, 0.0]), torch.tensor([4.0, 1.0, 0.0])
    assert AGGREGATION_RULES["damped"](old, summed, covered, 4.0).tolist() == [3.0, 2.0, 1.0]
    assert AGGREGATION_RULES["coverage"](old, summed, covered, 4.0).tolist() == [3.0, 3.0, 1.0]
