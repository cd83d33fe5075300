"""Peak memory of a client's training, with every way to train prefixes: as it is estimated, and with one prefix in memory at a time."""

from dataclasses import replace

import pytest
from conftest import tiny_experiment
from live_bytes import LiveBytes

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.device_type_plans import view_of
from raffm_ray.server.ranking import plain_state
from raffm_ray.server.strategies import ranked
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import with_prefixes

CONFIG = {
    "model_type": "vit",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module", params=["few examples a step", "many examples a step"])
def prepared(request) -> Prepared:
    """Where weights take most of the memory, and where activations do."""
    batch = 4 if request.param.startswith("few") else 64
    return prepare(
        tiny_experiment(model={"config": CONFIG}, local={"batch_size": batch, "steps": 24}, clients={"count": 2, "per_round": 2})
    )


def measured(prepared: Prepared, prefix: str) -> tuple[float, float]:
    """(estimated, measured) bytes of a client that trains the full model and five prefixes as `prefix` says."""
    setup = prepared.setup
    state = plain_state(setup.architecture)
    view, full = view_of(setup, state, 1), setup.costs(Plan())
    plans = [ranked(view, Budget(params=share * full.params), -1) for share in (0.3, 0.45, 0.6, 0.75, 0.9)] + [Plan()]
    costs = [setup.costs(plan) for plan in plans]
    estimate = (
        with_prefixes(costs[-1], costs[:-1], prefix).memory_bytes + costs[-1].bytes_up
    )  # what it began with, to tell the change
    local = setup.experiment.local
    if prefix in (
        "none",
        "smallest",
    ):  # no step draws what it trains: all are like the second, the first one with the optimizer's moments
        local = local.model_copy(update={"steps": 3})
    context = RoundContext(seed=0, round=1, plans=tuple(plans), local=local, learning_rate=1e-3)
    job = Job(0, 5, prefixes=(0, 1, 2, 3, 4), prefix=prefix)
    runner = prepared.runner()
    flat = state.parameters.clone().contiguous().add_(0.01)
    parameters = views(flat, setup.architecture.shapes)
    with LiveBytes() as live:
        runner._train(parameters, context, job, 5)
    runner.module_factory.release()
    return float(estimate), float(live.most)


@pytest.fixture
def whole_layers(monkeypatch) -> None:
    """As simulated devices are charged: they compute the whole last layer."""
    monkeypatch.setattr("raffm_ray.clients.module_factory.compute_first_position", lambda architecture, plan, model: model)


def test_the_last_layer_at_one_position_takes_less_than_is_estimated(prepared) -> None:
    estimate, peak = measured(prepared, "none")
    assert 0.75 * estimate < peak < estimate


@pytest.mark.usefixtures("whole_layers")
@pytest.mark.parametrize("prefix", ["none", "one", "smallest", "random"])
def test_the_peak_is_as_estimated(prepared, prefix) -> None:
    estimate, peak = measured(prepared, prefix)
    assert peak == pytest.approx(estimate, rel=0.15), (estimate / 1e6, peak / 1e6)


def test_control_prefixes_that_stay_in_memory_take_more(prepared, monkeypatch) -> None:
    from raffm_ray.clients.local_training import Prefix

    if prepared.setup.experiment.local.batch_size > 4:
        pytest.skip("activations take so much that it hardly shows")
    _, freed = measured(prepared, "random")
    monkeypatch.setattr(Prefix, "free", lambda _: None)
    _, peak = measured(prepared, "random")
    assert peak > 1.08 * freed


def test_a_prefix_is_part_of_the_estimate(prepared) -> None:
    costs = [replace(prepared.setup.costs(Plan()), params=share) for share in (1, 2)]
    assert with_prefixes(costs[1], costs[:1], "random").memory_bytes > costs[1].memory_bytes
    assert with_prefixes(costs[1], costs[1:], "random") == costs[1]
