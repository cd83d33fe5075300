"""`deploy --client`: the subnetwork of one client, with the parameters that it keeps."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_experiment
from safetensors.torch import load_file

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.clients.updates.row import OWN
from raffm_ray.deployment.client_model import client_model
from raffm_ray.deployment.deploy import deploy
from raffm_ray.deployment.trained_model import of_run
from raffm_ray.runs.client_states.store import last_state
from raffm_ray.runs.reader import read_evaluations
from raffm_ray.runs.simulation import simulate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personal") / "run"
    simulate(
        tiny_experiment(
            rounds=2,
            strategy={"name": "raffm", "personal": ["classifier"]},
            clients={"held_out": 0.3},
            evaluation={"clients": "all", "sizes": 0},
            local={"epochs": 4},
            salience={"every": 100},
        ),
        folder,
    )
    return folder


def who_trained(run: Path) -> list[int]:
    return [client for client in range(12) if last_state(run, client) is not None]


def test_the_model_is_the_clients_own(run, tmp_path, capsys) -> None:
    trained = of_run(run)
    for client in who_trained(run):
        one, plan = client_model(trained, run, client)
        state, cut, plain = last_state(run, client), one.cut(plan), trained.cut(plan)
        own = state.of_kind(OWN)
        assert state.plan == plan
        for name, values in cut.items():
            assert torch.equal(values, own.get(name, plain[name]))
        assert not all(
            torch.equal(values, plain[name]) for name, values in own.items()
        )  # the control: without, it is the server's
    assert cli(["deploy", str(run), "--client", str(client), "--out", str(tmp_path / "out")]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    deploy(run, tmp_path / "python", client=client)
    assert (tmp_path / "python" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="client: says how small by itself"):
        deploy(run, tmp_path / "both", {"params": 0.5}, client=client)
    assert all(torch.equal(found[name], values) for name, values in cut.items())
    assert f"client {client} of the run" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_deployed_is_what_was_measured(run) -> None:
    """The row `personal` of the last evaluation is of the very model that is deployed."""
    from raffm_ray.clients.evaluation.own_model import OwnModel
    from raffm_ray.runs.evaluation import _context
    from raffm_ray.server.device_type_plans import device_type_plans

    trained = of_run(run)
    setup, rows = trained.prepared.setup, read_evaluations(run, 2)
    plans = device_type_plans(setup, trained.state)
    for client in who_trained(run)[:3]:
        plan = plans[setup.device_types[client]]
        held_out, asked = trained.prepared.parts.held_out[client], OwnModel(0, client, last_state(run, client))
        context = _context(setup, trained.state, [plan])
        (answers, losses), _ = trained.prepared.runner().evaluate_client(
            context, trained.state.parameters.numpy(), asked, [held_out]
        )
        (row,) = [one for one in rows if one["client"] == client and one["model"] == "personal"]
        assert row["loss"] == pytest.approx(losses[:, 0].sum() / losses[:, 1].sum(), rel=1e-6)
        assert row["metric"] == trained.prepared.task.client_score(answers, held_out)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--client", "12"], "--client: the run has clients 0 to 11, got 12"),
        (["--client", "x"], "--client: expected a whole number from 0, got 'x'"),
        (["--client", "1", "--budget", "params=0.5"], "--client: says how small by itself"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, capsys, flags, told) -> None:
    assert cli(["deploy", str(run), *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert not (tmp_path / "out").exists()


def test_who_never_trained_has_no_model_of_its_own(run, tmp_path) -> None:
    trained = of_run(run)
    (asleep, *_) = sorted(set(range(12)) - set(who_trained(run)))
    with pytest.raises(UserError, match=f"--client {asleep}: it never trained"):
        client_model(trained, run, asleep)
    config = (run / "config.yaml").read_text()
    assert "- classifier" in config
    plain = tmp_path / "plain"
    simulate(tiny_experiment(rounds=1, evaluation={"sizes": 0}), plain)
    with pytest.raises(UserError, match=r"keep no parameters of their own \(strategy.personal\)"):
        client_model(of_run(plain), plain, 0)
    assert json.loads((plain / "summary.json").read_text())["client_metrics"] is None
