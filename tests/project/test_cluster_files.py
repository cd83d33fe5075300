"""The files in cluster/ are what their programs take, and agree with each other, with the versions and with the code."""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raffm_ray.runs.loggers.telemetry import EXPORTED, LOST_WORKERS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = sorted((CLUSTER / "launcher").glob("*.yaml"))
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
SLURM, DOCKERFILE = CLUSTER / "slurm" / "raffm_ray.sbatch", CLUSTER / "docker" / "Dockerfile"
BIN = Path(sys.executable).parent


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def checked(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / program, path], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.stem)
def test_rays_launcher_takes_its_files(path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(path))
    validate_config(config)
    starts = [
        line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key] if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ray start") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_wrkers": 2})


def schema_of_kuberay() -> dict[str, Any]:
    return read(Path(__file__).with_name("kuberay.yaml"))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_takes_its_files(path) -> None:
    resource, schema = read(path), schema_of_kuberay()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(resource, schema)
    cluster = resource["spec"].get("rayClusterSpec", resource["spec"])
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}
    for damage in (
        {"rayVersion": 2.6},
        {"authOption": {"mode": "token"}},
        {"authOptions": {"mode": "tokens"}},
        {"workerGroupSpecs": [{}]},
    ):
        wrong = copy.deepcopy(resource)
        wrong["spec"].get("rayClusterSpec", wrong["spec"]).update(damage)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_files_name_the_versions_that_are_pinned() -> None:
    ray = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(1)
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG RAY_VERSION={ray}\n" in DOCKERFILE.read_text()
    for path in KUBERAY:
        assert re.findall(r'rayVersion: "(.*)"', path.read_text()) == [ray]
    texts = [path.read_text() for path in CLUSTER.rglob("*") if path.suffix in {".yaml", ".md"}]
    tags = {tag for text in texts for tag in re.findall(r"raffm-ray:([\w.-]+)", text)}
    assert tags == {own, f"{own}-cuda"}


@pytest.mark.parametrize(
    ("program", "path", "wrong"),
    [("shellcheck", SLURM, "#!/bin/bash\necho $1\n"), ("hadolint", DOCKERFILE, "FROM rayproject/ray\nRUN cd /tmp\n")],
)
def test_the_slurm_script_and_the_dockerfile_are_clean(program, path, wrong, tmp_path) -> None:
    if not (BIN / program).exists():
        pytest.skip(f"no {program} for this machine")
    found = checked(program, path)
    assert found.returncode == 0, found.stdout
    control = tmp_path / path.name
    control.write_text(wrong)
    assert checked(program, control).returncode == 1


def stub(folder: Path, name: str, lines: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/bash\n{lines}\n")
    file.chmod(0o755)


def test_the_slurm_script_runs_one_command_on_all_nodes(tmp_path) -> None:
    """With stand-ins for Slurm and Ray, which say what they are called with."""
    stub(tmp_path, "scontrol", "echo node7; sleep 0.2; echo node8")  # a reader that leaves after the first line breaks the pipe
    stub(tmp_path, "srun", 'while [[ "$1" == --* ]]; do echo "srun $1" >&2; shift; done; exec "$@"')
    stub(tmp_path, "hostname", "echo 192.0.2.7 10.0.0.7")
    stub(
        tmp_path,
        "ray",
        'echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE"; while [ "$1" != -- ]; do echo "ray $1"; shift; done; shift; exec "$@"',
    )
    stub(tmp_path, "raffm-ray", 'echo "at $RAY_ADDRESS"; for word in "$@"; do echo "word $word"; done')
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_GPUS_PER_TASK": "4",
    }
    asked = ["bash", SLURM, "run", "my experiment.yaml", "--rounds", "3"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    assert "token 64 token" in lines
    assert {"ray --address", "ray 192.0.2.7:22345", "ray --min-nodes", "ray 2", "ray 32", "ray 4"} <= set(lines)
    assert lines[-5:] == ["at 192.0.2.7:22345", "word run", "word my experiment.yaml", "word --rounds", "word 3"]
    assert "srun --nodelist=node7" in done.stderr
    leaving = tmp_path / "leaving.sbatch"  # control
    leaving.write_text(Path(SLURM).read_text().replace("awk 'NR == 1'", "head -n 1"))
    assert (
        subprocess.run(["bash", leaving, *asked[2:]], env=environment, capture_output=True, check=False, timeout=60).returncode
        == 141
    )
    empty = subprocess.run(["bash", SLURM], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert empty.returncode == 2
    assert empty.stderr.startswith("usage: sbatch")


def dashboard() -> Any:
    return json.loads((CLUSTER / "metrics" / "dashboard.json").read_text())


def names_in(expressions: list[str]) -> set[str]:
    return {name for text in expressions for name in re.findall(r"ray_raffm_\w+", text)}


def test_the_dashboard_draws_what_runs_export() -> None:
    board, page = dashboard(), (CLUSTER / "metrics" / "README.md").read_text()
    exported = {f"ray_{name}" + "_total" * (one.kind == "counter") for name, one in EXPORTED.items()} | {
        f"ray_{LOST_WORKERS}_total"
    }
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    assert names_in(asked) == exported
    assert names_in([page]) == exported
    assert names_in(["rate(ray_raffm_round_total[5m])"]) - exported  # control
    labels = {one.label for one in EXPORTED.values()} | {"run"}
    for expression in asked:
        for listed in re.findall(r"(?:by|label_values)[^({]*\(([\w, ]+)\)", expression):
            assert set(listed.split(", ")) - {"ray_raffm_rounds_total"} <= labels


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """What its import needs: identifiers, a place for every panel and a source for every query."""
    board = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(board)
    assert "id" not in board  # Grafana gives it
    variables = {one["name"] for one in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(board))) - {"__all"} == variables
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
