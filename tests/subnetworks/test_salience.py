"""Salience: sums that clients can report, scores that find what matters, and the table."""

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import CASES, architecture_case

from raffm_ray.axes.indexing import Axis, Plan, dim_indices
from raffm_ray.axes.layout import Layout, take_all
from raffm_ray.models.architecture import Architecture, build, new_model
from raffm_ray.models.hooks import mask_for
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.subnetworks.calibration import add_statistics, collect, rankable, sites, unit_sums
from raffm_ray.subnetworks.salience import METRICS, identity_orders, rank

CLASSES = OBJECTIVES["sequence_classification"]
STATISTICS = sorted({metric.statistic for metric in METRICS.values() if metric.statistic})


@pytest.fixture(params=[case for case in CASES if case[1].endswith("classification")], ids="-".join)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """The calibrated metrics need a loss, which is that of classification so far."""
    return architecture_case(*request.param)


@pytest.fixture
def batch(inputs) -> dict[str, torch.Tensor]:
    return {**inputs, "labels": torch.arange(len(next(iter(inputs.values())))) % 10}


def parts(batch, *edges):
    return [
        {name: values[start:stop] for name, values in batch.items()}
        for start, stop in zip((0, *edges), (*edges, None), strict=True)
    ]


def scores_of(name, architecture, model, batch):
    metric = METRICS[name]
    statistics = collect(model, architecture.layout, [batch], metric.statistic, CLASSES) if metric.statistic else {}
    return metric.score(architecture.layout, dict(model.named_parameters()), statistics, np.random.default_rng(0))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_scores_every_axis(architecture, model, batch, name) -> None:
    scores = scores_of(name, architecture, model, batch)
    layout = architecture.layout
    assert set(scores) == set(rankable(layout))
    for axis, score in scores.items():
        parent = layout.axes[axis].parent
        assert score.shape == ((layout.axes[parent].size, layout.axes[axis].size) if parent else (layout.axes[axis].size,))
        assert np.isfinite(score).all()
        assert (score >= 0).all()
        order = rank(scores)[axis]
        assert (np.sort(order, axis=-1) == np.arange(layout.axes[axis].size)).all()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_statistics_of_clients_add_up_to_those_of_all_examples(architecture, model, batch, statistic) -> None:
    whole = collect(model, architecture.layout, [batch], statistic, CLASSES)
    first, second = ([part] for part in parts(batch, 2))
    added = add_statistics(
        collect(model, architecture.layout, first, statistic, CLASSES),
        collect(model, architecture.layout, second, statistic, CLASSES),
    )
    assert whole.keys() == added.keys()
    for key, value in whole.items():
        torch.testing.assert_close(added[key], value, rtol=1e-5, atol=1e-12)
    assert float(whole["examples"]) == len(batch["labels"])


@pytest.mark.parametrize("statistic", STATISTICS)
def test_padding_adds_nothing_to_statistics(statistic) -> None:
    """What stands at padded positions must not matter; control: at a real position it does."""
    described = architecture_case("bert", "sequence_classification")
    model = new_model(described, 1).eval()
    text = {
        "input_ids": torch.tensor([[5, 6, 7, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "labels": torch.tensor([2]),
    }
    short = {name: values[:, :3] if name != "labels" else values for name, values in text.items()}
    padded, plain = (collect(model, described.layout, [one], statistic, CLASSES) for one in (text, short))
    for name, values in plain.items():
        torch.testing.assert_close(padded[name], values, rtol=1e-3, atol=1e-16)
    longer = collect(
        model, described.layout, [text | {"attention_mask": torch.ones(1, 5, dtype=torch.int64)}], statistic, CLASSES
    )
    (key, *_) = [name for name in plain if name.partition("@")[0] == "0/ffn"]
    assert not torch.allclose(longer[key], plain[key], rtol=1e-3, atol=0)


def wanda(architecture, model, batch, axis) -> torch.Tensor:
    """Sum over all linear layers that read an axis, and all of their weights, of |W| x the norm of the input that it multiplies."""
    layout, inputs = architecture.layout, {}
    read = [site for site in sites(layout, axis) if site.side == "input"]
    handles = [
        model.get_submodule(site.module).register_forward_pre_hook(lambda _, given, at=site.module: inputs.update({at: given[0]}))
        for site in read
    ]
    with torch.no_grad():
        model(**{name: values for name, values in batch.items() if name != "labels"})
    for handle in handles:
        handle.remove()
    total = torch.zeros(layout.axes[axis].size, dtype=torch.float64)
    for site in read:
        mask = mask_for(inputs[site.module], batch, layout.parameters[site.parameter].matmul)
        values = (inputs[site.module] if mask is None else inputs[site.module] * mask[..., None]).double()
        weight = dict(model.named_parameters())[site.parameter].detach().double()
        by_input = weight.abs().sum(1 - layout.parameters[site.parameter].reads)
        total += by_input * values.flatten(0, -2).square().sum(0).sqrt()
    return total


@pytest.mark.parametrize("axis", ["residual", "0/ffn"])
def test_activation_is_each_weight_times_the_norm_of_its_own_input(architecture, model, batch, axis) -> None:
    statistics = collect(model, architecture.layout, [batch], "square", CLASSES)
    parameters = dict(model.named_parameters())
    scores = METRICS["activation"].score(architecture.layout, parameters, statistics, np.random.default_rng(0))
    expected = wanda(architecture, model, batch, axis)
    np.testing.assert_allclose(scores[axis], expected, rtol=1e-6)
    if axis == "residual":  # control: readers of different inputs do not share one norm
        names = [f"{axis}@{site.name}" for site in sites(architecture.layout, axis)]
        together = torch.stack([statistics[name] for name in names]).sum(0).sqrt()
        assert not np.allclose(together / together.mean(), expected / expected.mean(), rtol=1e-3)


def test_statistics_control_another_half_differs(architecture, model, batch) -> None:
    first, second = (collect(model, architecture.layout, [part], "fisher", CLASSES) for part in parts(batch, 3))
    assert not torch.allclose(first["0/ffn"], second["0/ffn"])


def test_collecting_leaves_the_model_as_it_was(architecture, model, batch) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    collect(model, architecture.layout, [batch], "fisher", CLASSES)
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def gated_loss_gradient(architecture, model, batch, site, unit, columns) -> float:
    """d loss / d gate by finite differences: the gate scales what one projection sends on from a unit, one example."""

    def loss(scale: float) -> float:
        tensors = {n: p.detach().clone().double() for n, p in model.named_parameters()}
        reads = architecture.layout.parameters[site.parameter].reads
        for one in unit:
            tensors[site.parameter].select(reads if columns else 1 - reads, site.start + one).mul_(scale)
            if not columns and (bias := site.parameter.replace("weight", "bias")) in tensors:
                tensors[bias][site.start + one] *= scale
        double = build(architecture, tensors, Plan()).eval()
        logits = double(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items() if k != "labels"}).logits
        return float(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").detach())

    return (loss(1.001) - loss(0.999)) / 0.002


@pytest.mark.parametrize(("axis", "columns"), [("0/ffn", True), ("0/vo", True), ("0/qk", False)])
def test_fisher_is_the_squared_derivative_of_a_gate(architecture, model, batch, axis, columns) -> None:
    layout = architecture.layout
    site = sites(layout, axis)[0]
    assert site.side == ("input" if columns else "output")
    # Every number of the module that belongs to the axis' unit 2 (of its parent's unit 0, if it is nested) is gated together.
    kept = np.full((layout.axes[layout.axes[axis].parent].size, 1), 2) if layout.axes[axis].parent else np.array([2])
    chosen = Plan({axis: kept} | ({layout.axes[axis].parent: [0]} if layout.axes[axis].parent else {}))
    unit = dim_indices(site.dim, layout.axes, chosen)
    expected = sum(gated_loss_gradient(architecture, model, one, site, unit, columns) ** 2 for one in parts(batch, 1, 2, 3, 4, 5))
    measured = collect(model, layout, [batch], "fisher", CLASSES)[axis].flatten()[2]
    assert float(measured) == pytest.approx(expected, rel=1e-2)


def neurons(architecture, tensors) -> list[torch.Tensor]:
    """Views of everything that belongs to the first layer's FFN neurons, each with the neurons in front."""
    found = []
    for name, spec in architecture.layout.parameters.items():
        found += [tensors[name].movedim(at, 0) for at, dim in enumerate(spec.dims) if dim == ("0/ffn",)]
    return found


def test_l1_is_the_paper_s_sum_of_absolute_weights(architecture, model) -> None:
    scores = METRICS["l1"].score(architecture.layout, dict(model.named_parameters()), {}, np.random.default_rng(0))
    neuron = 7
    expected = sum(float(part[neuron].detach().abs().sum()) for part in neurons(architecture, dict(model.named_parameters())))
    assert scores["0/ffn"][neuron] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"random"}))
def test_a_metric_ranks_dead_units_last(architecture, model, batch, name) -> None:
    dead = [3, 11, 17]
    with torch.no_grad():
        for part in neurons(architecture, dict(model.named_parameters())):
            part[dead] = 0
    assert sorted(rank(scores_of(name, architecture, model, batch))["0/ffn"][-3:]) == dead


def test_random_control_does_not_find_dead_units(architecture, model, batch) -> None:
    scores = scores_of("random", architecture, model, batch)
    assert sorted(rank(scores)["0/ffn"][-3:]) != [3, 11, 17]


def test_fused_dims_add_their_parts() -> None:
    heads, size = 3, 4
    axes = [Axis("0/heads", heads), Axis("0/qk", size, parent="0/heads"), Axis("0/vo", size, parent="0/heads")]
    layout = Layout({axis.name: axis for axis in axes}, {})
    dim = ((("0/heads", "0/qk"), ("0/heads", "0/qk"), ("0/heads", "0/vo")),)
    values = torch.arange(3.0 * heads * size)
    first, second, third = values.reshape(3, heads, size)
    assert torch.equal(unit_sums(values, dim, "0/qk", layout), first + second)
    assert torch.equal(unit_sums(values, dim, "0/vo", layout), third)


def test_identity_orders_are_plain_prefixes(architecture, model) -> None:
    orders = identity_orders(architecture.layout)
    cut = take_all(dict(model.named_parameters()), architecture.layout, Plan({"0/ffn": orders["0/ffn"][:5]}))
    whole = neurons(architecture, dict(model.named_parameters()))
    assert all(torch.equal(part, full[:5]) for part, full in zip(neurons(architecture, cut), whole, strict=True))


def test_no_activation_outlives_its_batch(architecture, model, batch) -> None:
    alive = []
    hook = model.get_submodule(sites(architecture.layout, "0/ffn")[0].module).register_forward_hook(
        lambda _, inputs, output: alive.extend([weakref.ref(inputs[0]), weakref.ref(output)])
    )
    for statistic in STATISTICS:
        collect(model, architecture.layout, parts(batch, 2, 4), statistic, CLASSES)
    hook.remove()
    gc.collect()
    assert len(alive) == 2 * 3 * len(STATISTICS)
    assert not any(one() is not None for one in alive)
