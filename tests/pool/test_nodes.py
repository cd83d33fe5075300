"""The same run on one node and on several, as a command and as a job: the same bits; nodes join and are lost meanwhile."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import tiny_experiment
from nodes import ROOT, Cluster, wait_for

from raffm_ray.basics.plugins import use
from raffm_ray.cli.main import main
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.loading import dump, load

ROUNDS = 5


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A user's working directory, with an experiment."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "experiments").mkdir()
    experiment = tiny_experiment(
        rounds=ROUNDS, clients={"count": 20, "per_round": 8}, pool={"backend": "ray", "block_clients": 1}
    )
    (folder / "experiments" / "tiny.yaml").write_text(dump(experiment))
    return folder


@pytest.fixture(scope="module")
def sha256(work) -> str:
    """Of the parameters that come of it in one process."""
    experiment = load(work / "experiments" / "tiny.yaml", ["--pool.backend", "in_process"])
    return simulate(experiment, work / "in-process")["params_sha256"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    started = Cluster(cores=1)
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _there(work, monkeypatch) -> None:
    monkeypatch.chdir(work)


def test_ray_on_this_machine_alone_gives_the_same_bits(four_cores, work, sha256) -> None:
    experiment = load(work / "experiments" / "tiny.yaml", ["--pool.workers", "2"])
    assert simulate(experiment, work / "local")["params_sha256"] == sha256
    other = load(work / "experiments" / "tiny.yaml", ["--seed", "1", "--pool.backend", "in_process"])
    assert simulate(other, work / "other")["params_sha256"] != sha256  # control


def test_two_nodes_and_a_third_that_joins_and_one_that_is_lost_within_a_round(cluster, work, sha256, tmp_path) -> None:
    second = cluster.add()
    driver = subprocess.Popen(
        [
            *cluster.prefix,
            sys.executable,
            str(ROOT / "tests" / "elastic.py"),
            "experiments/tiny.yaml",
            str(tmp_path / "run"),
            str(tmp_path),
        ],
        env=cluster.environment | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def reached(moment: str) -> bool:
        if driver.poll():
            raise AssertionError(driver.communicate()[1])
        return (tmp_path / moment).exists()

    third = None
    for moment in ("after-0", "after-1", "after-2", "after-3", "within-4", "after-4", "after-5"):
        wait_for(lambda moment=moment: reached(moment), moment)
        if moment == "after-1":
            assert [node.actors() for node in cluster.nodes] == [1, 1]
            third = cluster.add("--labels=hardware=small")
            assert third.actors() == 0
        elif moment == "after-2":
            wait_for(lambda node=third: node.actors() == 1, "the node that joined is used from the next round")
        elif moment == "within-4":
            second.kill()
        (tmp_path / f"{moment}.done").touch()
    assert driver.wait(60) == 0, driver.communicate()[1]
    told = json.loads((tmp_path / "told").read_text())
    assert told["lost"] >= 1  # control: it had work
    assert told["sha256"] == sha256
    assert [node.actors() for node in cluster.nodes if node is not second] == [0, 0]


def test_nodes_have_addresses_of_their_own(cluster) -> None:
    if cluster.networks.reason:
        pytest.skip(cluster.networks.reason)
    code = "import ray; ray.init(log_to_driver=False); print(sorted({one['NodeManagerAddress'] for one in ray.nodes()}))"
    told = cluster.run(sys.executable, "-c", code, RAY_ADDRESS=cluster.address)
    assert told.stdout.strip() == "['10.77.0.1', '10.77.0.2', '10.77.0.3']", told.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token|token is missing or incorrect"),
        ({"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": ""}, "Invalid authentication token|token is missing or incorrect"),
    ],
    ids=["without", "wrong"],
)
def test_without_the_token_it_is_refused(cluster, work, changes, told) -> None:
    for words, more in (
        (["run", "experiments/tiny.yaml", "--out", "refused"], {"RAY_ADDRESS": cluster.address}),
        (["submit", "experiments/tiny.yaml", "--address", cluster.dashboard], {}),
    ):
        done = cluster.run("raffm-ray", *words, **changes, **more)
        assert done.returncode == 2, done.stdout + done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("raffm-ray: ")
        assert any(part in last for part in told.split("|")), last
        assert "Traceback" not in done.stderr
    assert not (work / "refused").exists()


def test_a_job_of_rays_own_command(cluster, work, sha256) -> None:
    out = work / "job"
    submit = [
        "ray",
        "job",
        "submit",
        "--address",
        cluster.dashboard,
        "--working-dir",
        ".",
        "--",
        "raffm-ray",
        "run",
        "experiments/tiny.yaml",
    ]
    done = cluster.run(*submit, "--out", f"file:{out}", RAY_ADDRESS="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "summary.json").read_text())["params_sha256"] == sha256
    assert (out / "report.html").is_file()


def test_a_job_that_fails_says_so_in_its_log_and_its_code(cluster) -> None:
    done = cluster.run(
        "raffm-ray",
        "submit",
        "experiments/tiny.yaml",
        "--address",
        cluster.dashboard,
        "--task.data",
        "/no/such.csv",
        "--task.name",
        "image_classification",
    )
    assert done.returncode == 2
    assert "raffm-ray: task.data: /no/such.csv: no such file or folder" in done.stdout


def test_a_submitted_run_comes_back_as_a_report_and_keeps_its_bits_where_device_types_are_placed(cluster, work, sha256) -> None:
    (work / ".rayignore").write_text("in-process\nlocal\nother\njob\n")
    words = [
        "experiments/tiny.yaml",
        "--address",
        cluster.dashboard,
        "--pool.placement",
        "{jetson_agx_orin: {labels: {hardware: small}}}",
    ]
    done = cluster.run("raffm-ray", "submit", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (work / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.png", "summary.json", "config.yaml"}
    assert json.loads((folder / "summary.json").read_text())["params_sha256"] == sha256
    whole = cluster.folder / "raffm-ray-runs" / folder.name
    assert all((whole / name).read_bytes() == (folder / name).read_bytes() for name in ("report.html", "report.png"))
    assert (whole / "checkpoints" / "final" / "model.safetensors").is_file()


METHODS = """
import raffm_ray
from raffm_ray.server.aggregation import damped_by_coverage
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.salience import METRICS

@raffm_ray.strategy("in_turns", like="raffm", nested=False, prefix="none")
def in_turns(view, budget, client):
    return STRATEGIES["fedrolex" if view.round % 2 else "raffm"].train(view, budget, client)

@raffm_ray.salience("upside_down")
def upside_down(layout, parameters, statistics, rng):
    return {axis: -score for axis, score in METRICS["l1"].score(layout, parameters, statistics, rng).items()}

@raffm_ray.aggregation("halfway")
def halfway(old, summed, covered, total):
    return old + 0.5 * (damped_by_coverage(old, summed, covered, total) - old)
"""
OTHERS = """
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification
import raffm_ray

OwnConfig = type("OwnConfig", (ViTConfig,), {"model_type": "own_vit"})
OwnModel = type("OwnModel", (ViTForImageClassification,), {"config_class": OwnConfig})
AutoConfig.register("own_vit", OwnConfig, exist_ok=True)
AutoModelForImageClassification.register(OwnConfig, OwnModel, exist_ok=True)

@raffm_ray.family("own_vit", like="vit")
def own_vit(config, head):
    described = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return raffm_ray.models.architecture.FAMILIES["vit"].layout(ViTConfig(**described), head)

@raffm_ray.task("shifted", kind="image_classification", ready=True)
def shifted(settings, rng):
    labels = rng.integers(10, size=400)
    return {"pixel_values": rng.normal(size=(400, 1, 8, 8)) + labels[:, None, None, None] / 5, "labels": labels}

@raffm_ray.client_update("signs")
def signs(module, batches, given, training, rng, state):
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], lr=0.1)
    for batch in batches:
        loss = training.objective.loss(module(pixel_values=batch["pixel_values"]), batch["labels"], "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), {name: 0.01 * (dict(module.named_parameters())[name].detach() - old).sign() for name, old in given.items()}
"""
KILLED = """
import os, sys
from raffm_ray import load, simulate
simulate(load(sys.argv[1], sys.argv[3:]), sys.argv[2], on_round=lambda row: row.round == 2 and os.kill(os.getpid(), 9))
"""
CHOSEN = {
    "strategy.name": "in_turns",
    "strategy.prefix": "none",
    "strategy.aggregation": "halfway",
    "salience.metric": "upside_down",
    "model.config.model_type": "own_vit",
    "task.name": "shifted",
    "local.client_update": "signs",
}


@pytest.fixture(scope="module")
def own(work) -> tuple[str, str]:
    """An experiment beside two plug-ins, files of at most 30 lines; and what comes of it in one process."""
    for name, text in (("methods.py", METHODS), ("others.py", OTHERS)):
        assert len(text.strip().splitlines()) <= 30
        (work / "experiments" / name).write_text(text)
    flags = [word for key, value in CHOSEN.items() for word in (f"--{key}", value)]
    files = f"[{work}/experiments/methods.py, {work}/experiments/others.py]"
    experiment = load(work / "experiments" / "tiny.yaml", [*flags, "--plugins", files, "--pool.backend", "in_process"])
    try:
        sha256 = simulate(experiment, work / "in-process-own")["params_sha256"]
    finally:
        use([])
    written = yaml.safe_load(dump(experiment)) | {"plugins": ["methods.py", "others.py"]}
    written["pool"]["backend"] = "ray"
    (work / "experiments" / "own.yaml").write_text(yaml.safe_dump(written))
    return "experiments/own.yaml", sha256


def test_plug_ins_beside_an_experiment_travel_with_the_job(cluster, work, sha256, own, tmp_path) -> None:
    name, expected = own
    assert expected != sha256  # control: it is used
    done = cluster.run("raffm-ray", "submit", name, "--address", cluster.dashboard, "--out", f"file:{tmp_path}/job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "job" / "summary.json").read_text())["params_sha256"] == expected


def test_a_run_of_plug_ins_goes_on_after_kill_9(work, own, tmp_path) -> None:
    name, expected = own
    run = tmp_path / "run"
    words = [name, str(run), "--pool.backend", "in_process"]
    assert subprocess.run([sys.executable, "-c", KILLED, *words], check=False, cwd=work).returncode == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    try:
        assert resume(run)["params_sha256"] == expected
        assert main(["report", str(run)]) == 0
        assert main(["deploy", str(run), "--budget", "layer_params=0.5", "--out", str(tmp_path / "small")]) == 0
    finally:
        use([])


def test_ctrl_c_stops_the_job(cluster, work) -> None:
    driver = subprocess.Popen(
        [*cluster.prefix, "raffm-ray", "submit", "experiments/tiny.yaml", "--address", cluster.dashboard, "--rounds", "100000"],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    name = driver.stdout.readline().split()[1]
    for line in driver.stdout:
        if "rounds of 8 of 20 clients" in line:
            break
    os.kill(driver.pid, signal.SIGINT)
    out, error = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert f"stopping job {name}" in out
    assert f"raffm-ray: interrupted; job {name} is stopped" in error
    assert "was stopped" in cluster.run("ray", "job", "status", "--address", cluster.dashboard, name, RAY_ADDRESS="").stdout
