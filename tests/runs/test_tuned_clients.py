"""Clients after training on their own examples: measured, and nothing of it goes into the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.evaluation.own_model import OwnModel, own_model
from raffm_ray.clients.messages import Job
from raffm_ray.deployment.trained_model import of_run
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.evaluation import _context
from raffm_ray.runs.reader import read_evaluations
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.device_type_plans import device_type_plans

SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "clients": {"held_out": 0.3, "unseen": 0.1},
    "local": {"learning_rate": 0.02},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    simulate(tiny_experiment(**SETTINGS, evaluation={"clients": "all", "tune": {"steps": 6}, "sizes": 0}), folder)
    return folder


def test_the_tuned_model_is_the_subnetwork_after_so_many_steps(run) -> None:
    trained = of_run(run)
    prepared = trained.prepared
    setup, runner = prepared.setup, prepared.runner()
    rows = {(row["client"], row["model"]): row for row in read_evaluations(run, 2)}
    client = next(client for client, share in enumerate(prepared.shares) if len(share) > 3)
    plan = device_type_plans(setup, trained.state)[setup.device_types[client]]
    context = _context(setup, trained.state, [plan])
    held_out = prepared.parts.held_out[client]

    def loss_after(steps: int) -> float:
        parameters = runner._parameters(trained.state.parameters.numpy(), context, 0)
        module = own_model(runner.module_factory, parameters, context, OwnModel(0))
        training = runner._training(context, Job(client, 0))
        alone = training.local.model_copy(update={"steps": steps})
        if steps:
            train(
                module.train(),
                type(training)(**{**vars(training), "local": alone}),
                runner.examples,
                runner._data(context, Job(client, 0)),
            )
        batch = runner.examples.batch(held_out, "cpu")
        labels = batch.pop("labels")
        return runner.objective.loss(module.eval()(**batch), labels, "mean").item()

    assert rows[client, "tuned"]["loss"] == pytest.approx(loss_after(6), rel=1e-5)
    assert rows[client, "own"]["loss"] == pytest.approx(loss_after(0), rel=1e-5)
    assert rows[client, "tuned"]["loss"] != pytest.approx(loss_after(5), rel=1e-5)  # the control: another number of steps


def test_who_has_nothing_to_train_on_is_not_tuned(run) -> None:
    rows = read_evaluations(run, 2)
    unseen = {row["client"] for row in rows if row["unseen"]}
    assert unseen
    tuned = {row["client"] for row in rows if row["model"] == "tuned"}
    assert tuned
    assert not unseen & tuned
    assert not any(row["model"] == "personal" for row in rows)


def test_tuning_changes_nothing_of_the_run(run, tmp_path) -> None:
    simulate(tiny_experiment(**SETTINGS, evaluation={"sizes": 0}), tmp_path / "plain")
    plain, other = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "plain", run))
    assert plain["params_sha256"] == other["params_sha256"]
    assert plain["energy_joules"] == other["energy_joules"]
    assert set(other["client_metrics"]) == {"round", "own", "full", "tuned"}


def test_tuning_needs_clients_that_are_measured() -> None:
    with pytest.raises(UserError, match="evaluation.tune.steps: needs evaluation.clients"):
        prepare(tiny_experiment(clients={"held_out": 0.3}, evaluation={"tune": {"steps": 6}}))
