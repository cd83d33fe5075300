"""The same run on one node and on several, as a command and as a job: the same bits; nodes join and are lost meanwhile."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_experiment
from nodes import ROOT, Cluster, wait_for

from raffm_ray.runs.simulation import simulate
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
