"""What every client gets: the same numbers as clients measured one by one, and what is said of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import tiny_experiment
from quick import RICH, quick

from raffm_ray.axes.indexing import Plan
from raffm_ray.clients.messages import RoundContext
from raffm_ray.data.metrics import METRICS, defined
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.client_metrics.request import SCHEMA, client_calls
from raffm_ray.runs.client_metrics.statistics import client_summary, jain_index, told, worst_tenth
from raffm_ray.runs.evaluation import evaluate, request_evaluation, run_request
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.ranking import plain_scores
from raffm_ray.server.state import ServerState, starting_state


def table(metrics: list[float | None], **columns: list[Any]) -> pa.Table:
    """Clients with these metrics, by their own subnetworks and by the full model."""
    count = len(metrics)
    given = {
        "device_type": ["laptop"] * count,
        "group": [None] * count,
        "unseen": [False] * count,
        "examples": [1] * count,
        **columns,
    }
    rows = [
        {
            "round": 3,
            "client": client,
            "model": model,
            "metric": metric,
            "loss": 0.5,
            **{name: values[client] for name, values in given.items()},
        }
        for client, metric in enumerate(metrics)
        for model in ("own", "full")
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_what_is_said_of_clients() -> None:
    metrics = [1.0, 0.5, None, 0.25, 0.75]
    columns = {
        "device_type": ["phone", "phone", "phone", "laptop", "laptop"],
        "group": ["books", "films", "films", None, "films"],
        "unseen": [False, True, False, False, False],
        "examples": [1, 2, 5, 1, 4],
    }
    found = client_summary("accuracy", table(metrics, **columns), ["phone", "laptop"])
    own = found["own"]
    assert found["round"] == 3
    assert found["full"] == own
    assert (own["clients"], own["undefined"]) == (5, 1)
    assert own["mean_over_clients"] == 2.5 / 4
    assert own["mean_over_examples"] == (1 + 1 + 0.25 + 3) / 8
    assert own["standard_deviation"] == pytest.approx(np.std([1.0, 0.5, 0.25, 0.75]))
    assert own["percentile_10"] == pytest.approx(np.percentile([1.0, 0.5, 0.25, 0.75], 10))
    assert own["worst_tenth"] == 0.25
    assert own["worst_client"] == {"client": 3, "metric": 0.25}
    assert own["jain_index"] == pytest.approx(2.5**2 / (4 * (1 + 0.25 + 0.0625 + 0.5625)))
    assert {name: one["mean_over_clients"] for name, one in own["device_types"].items()} == {"phone": 0.75, "laptop": 0.5}
    assert own["device_types"]["phone"]["clients"] == 3
    assert own["device_type_gap"] == {"gap": 0.25, "strongest": "phone", "weakest": "laptop"}
    assert {name: one["mean_over_clients"] for name, one in own["groups"].items()} == {"books": 1.0, "films": 0.625}
    assert own["trained_and_unseen"]["unseen"]["mean_over_clients"] == 0.5
    assert told("accuracy", table(metrics)) == "clients, each with its own subnetwork: mean accuracy 62.5%, worst tenth 25.0%"


def test_the_worst_of_a_metric_where_less_is_better_are_the_highest() -> None:
    found = client_summary("perplexity", table([2.0, 8.0, 4.0]), ["laptop"])["own"]
    assert found["worst_client"] == {"client": 1, "metric": 8.0}
    assert found["worst_tenth"] == 8.0
    assert found["percentile_10"] == pytest.approx(np.percentile([2.0, 8.0, 4.0], 90))
    assert worst_tenth("accuracy", np.arange(20.0)) == 0.5
    assert worst_tenth("perplexity", np.arange(20.0)) == 18.5


def test_nothing_is_said_where_nothing_is_defined() -> None:
    nothing = table([None, None])
    assert client_summary("f1", nothing, ["laptop"])["own"] is None
    assert told("f1", nothing) == "clients: f1 is defined on no client's examples"
    many = table([0.5] * 60, group=[f"person {number}" for number in range(60)])
    assert client_summary("accuracy", many, ["laptop"])["own"]["groups"] == {}


def test_jain_s_index_is_one_where_all_have_the_same_and_1_of_n_where_one_has_all() -> None:
    assert jain_index(np.full(7, 0.3)) == pytest.approx(1)
    assert jain_index(np.array([0.0, 0.0, 5.0, 0.0])) == 0.25
    assert jain_index(np.zeros(3)) is None


@pytest.mark.parametrize(("metric", "truth", "known"), [("f1", [1, 1], False), ("f1", [0, 1], True), ("f1_micro", [1, 1], True)])
def test_a_metric_that_contrasts_classes_needs_two(metric: str, truth: list[int], known: bool) -> None:
    labels = np.array(truth)
    found = defined(metric, labels, lambda: METRICS[metric].score(labels[:, None].astype(float), labels))
    assert found == (1.0 if known else None)
    assert defined("accuracy", labels, lambda: float("nan")) is None


def test_clients_together_are_clients_one_by_one() -> None:
    """Against every client alone, by the runner's evaluation of the same examples as a held-out part."""
    prepared = prepare(
        tiny_experiment(
            clients={"held_out": 0.3, "unseen": 0.1},
            evaluation={"clients": "all", "batch_size": 7},
            model={"pretrain": {"epochs": 0}},
        )
    )
    setup, parts = prepared.setup, prepared.parts
    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    state = ServerState(0, start, plain_scores(setup.architecture))
    runner = prepared.runner()
    rows = evaluate_rows(prepared, state, InProcessPool(runner))
    assert [row["client"] for row in rows] == np.repeat(parts.measured, 2).tolist()
    assert {row["client"] for row in rows if row["unseen"]} == set(setup.unseen)
    plans = device_type_plans(setup, state)
    for row in rows:
        plan = plans[row["device_type"]] if row["model"] == "own" else Plan()
        runner.held_out = prepared.task.clients.part(parts.held_out[row["client"]])
        context = RoundContext(setup.experiment.seed, 0, (plan,), setup.experiment.local, 0.0)
        (answers, loss, targets), _ = runner.evaluate(context, start.numpy(), 0, 0, len(runner.held_out))
        assert row["examples"] == targets == len(runner.held_out)
        assert row["metric"] == np.mean(answers[:, 0] == runner.held_out.labels)
        assert row["loss"] == pytest.approx(loss / targets, rel=1e-5)
    assert len({row["metric"] for row in rows}) > 2


def evaluate_rows(prepared: Any, state: Any, pool: Any) -> list[dict[str, Any]]:
    question = request_evaluation(prepared.setup, state, prepared.task, prepared.parts)
    clients = run_request(question, state, pool).clients
    assert clients is not None
    return list(clients.to_pylist())


def test_clients_of_a_plan_share_its_batches() -> None:
    """Of 12 clients no more calls than of one client with all their examples, and one more for each further plan."""
    prepared, start, pool = quick(**RICH)
    state = replace(starting_state(prepared.setup, start), scores=plain_scores(prepared.setup.architecture))
    plans, parts = device_type_plans(prepared.setup, state), prepared.parts
    context = RoundContext(0, 0, tuple(dict.fromkeys([Plan(), *plans.values()])), prepared.setup.experiment.local, 0.0)
    calls, _ = client_calls(prepared.setup, context, plans, prepared.task, parts)
    size = prepared.setup.experiment.evaluation.batch_size
    used = {plans[prepared.setup.device_types[client]] for client in parts.measured} | {Plan()}
    assert len(calls) <= -(-len(parts.all_held_out) // size) * len(used)
    full = [call.arguments[1] for call in calls if context.plans[call.arguments[0]] == Plan()]
    assert sorted(np.concatenate(full)) == sorted(parts.all_held_out)
    assert evaluate(prepared.setup, state, pool, prepared.task).clients is None
