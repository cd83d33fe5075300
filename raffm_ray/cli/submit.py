"""An experiment as a job on a Ray cluster: sent there, followed, and its report brought back, all through the dashboard's address."""

import asyncio
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.flags import is_url
from raffm_ray.basics.formatting import counted, human_bytes
from raffm_ray.basics.plugins import is_file_name
from raffm_ray.pool.ray_start import connect
from raffm_ray.runs.locations import fresh_folder
from raffm_ray.runs.recorder import check_output
from raffm_ray.runs.resuming import PLACES
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import load, read_mapping
from raffm_ray.settings.paths import absolute

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

BROUGHT = ("report.html", "report.png", "summary.json", "config.yaml")
"""What comes back of a run."""
PLACE = "raffm-ray"
"""Where among Ray's logs, which the dashboard hands out, a job leaves that."""
NOT_SENT = "runs/"
"""Where runs are kept: it is not sent, whatever the ignore files say. A folder of that name further down is."""
EXCLUDED = f"/{NOT_SENT}"
"""The same as a pattern of an ignore file."""
LEFT_OUT = f"left out by a .gitignore or .rayignore, or in {NOT_SENT}, which is not sent"
LARGEST_BYTES = 100 * 1024**2
"""Of the working directory: what a dashboard takes (Ray's DASHBOARD_CLIENT_MAX_SIZE)."""
ANSWER_SECONDS = 10.0
"""How long a dashboard may take to answer."""
FETCH_SECONDS = 60.0
"""How long it may be silent while it hands out a file."""
NO_AGENT = "No available agent to submit job"
"""What Ray answers where a node's agent, which starts jobs, could not listen on its port and ended."""
NOT_FOUND = 127
"""A shell's exit code where there is no such command."""
AGENT_PORT = (
    "the head's job agent does not run; its port 52365 may be taken by another Ray on that machine: "
    "ray start --dashboard-agent-listen-port N"
)


def hand_over(folder: Path, name: str, experiment: Experiment) -> None:
    """Leaves what comes back of a finished run where `submit` fetches it by name; the job's side."""
    connect(experiment.pool)
    node: Any = ray._private.worker._global_node
    place = Path(node.get_logs_dir_path()) / PLACE / name
    place.mkdir(parents=True, exist_ok=True)
    for file in BROUGHT:
        shutil.copyfile(folder / file, place / file)


def command(
    path: Path, settings: Sequence[str], address: str | None, out: str | None, pip: str | None, plugins: Sequence[str] = ()
) -> int:
    """Sends the current folder and runs an experiment of it there: the job's exit code. Raises UserError.

    `out`: where a relative path, the folder here of what is brought back; otherwise where the whole run is on the cluster. Files of plug-ins
    are sent with the folder.
    """
    experiment = load(path, settings, plugins)
    there = out if out and (is_url(out) or Path(out).is_absolute()) else None
    here = Path.cwd()
    if not path.resolve().is_relative_to(here):
        raise UserError(f"submit: {path}: outside of the working directory {here}, which is what the cluster gets")
    files = sent_files(here)
    if path.resolve() not in files:
        raise UserError(f"submit: {path}: {LEFT_OUT}, so the cluster would not get it")
    check_size(here, files)
    check_places(path, here, files)
    sent = [plugin_there(name, here, files) for name in plugins]
    for one in experiment.plugins:
        plugin_there(one.name, here, files)
    fresh = fresh_folder(experiment.name)
    name, folder = fresh.name, Path(out) if out and not there else fresh
    check_output(folder)
    client = client_at(dashboard(address))
    told = [
        "raffm-ray",
        "run",
        path.resolve().relative_to(here).as_posix(),
        *settings,
        *(f"--plugin={one}" for one in sent),
        "--hand-over",
        name,
    ]
    where = shlex.quote(there) if there else f'"$HOME"/raffm-ray-runs/{shlex.quote(name)}'
    environment: dict[str, Any] = {"working_dir": str(here), "excludes": [EXCLUDED]} | ({"pip": pip.split(",")} if pip else {})
    with _one_line("submit: the job was refused"):
        client.submit_job(entrypoint=f"{shlex.join(told)} --out {where}", submission_id=name, runtime_env=environment)
    stays = f"; {NOT_SENT} stays here" if (here / NOT_SENT).is_dir() else ""
    print(f"sent: {counted(len(files), 'file')}, {human_bytes(sum(files.values()))}{stays}", file=sys.stderr)
    print(f"job {name} at {client.get_address()}", flush=True)
    try:
        job = followed(client, name)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(client, name, there or f"$HOME/raffm-ray-runs/{name}")) from None
    return ended(client, job, name, folder)


def plugin_there(name: str, folder: Path, files: Mapping[Path, int]) -> str:
    """What a plug-in is called in the job's folder. Raises UserError for a file that the cluster would not get."""
    if not is_file_name(name):
        return name
    place = Path(name).expanduser().resolve()
    if place not in files:
        told = LEFT_OUT if place.is_relative_to(folder) else f"outside of {folder}"
        raise UserError(f"submit: plugins: {name}: {told}, so the cluster would not get it")
    return place.relative_to(folder).as_posix()


def check_places(path: Path, folder: Path, files: Mapping[Path, int]) -> None:
    """Raises UserError where an experiment names a file, relative to itself, that a working directory does not hold, or that is not among the `files` sent."""
    written, base = read_mapping(path), path.parent
    whole = absolute(written, base)
    for name in PLACES:
        section, key = name.split(".")
        given, place = ((one.get(section) or {}).get(key) for one in (written, whole))
        if (
            given
            and place
            and given != place
            and not Path(given).expanduser().is_absolute()
            and not Path(place).is_relative_to(folder)
        ):
            raise UserError(f"submit: {name}: {given}: outside of the working directory {folder}, which is what the cluster gets")
        if given and place and given != place and Path(place).exists() and not any(file.is_relative_to(place) for file in files):
            raise UserError(f"submit: {name}: {given}: {LEFT_OUT}, so the cluster would not get it")


def dashboard(address: str | None) -> str:
    """The address of a cluster's dashboard, as given or in the environment. Raises UserError where it is none."""
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    found = given if "://" in given else f"http://{given}"
    if not given or not found.startswith(("http://", "https://")):
        got = f", got {given}" if given else ""
        raise UserError(f"submit: --address: expected that of a cluster's dashboard, such as http://10.0.0.1:8265{got}")
    return found.rstrip("/")


def sent_files(folder: Path) -> dict[Path, int]:
    """The files that Ray packs of a folder, and their bytes: all but NOT_SENT and what a .gitignore or .rayignore leaves out."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: dict[Path, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[path] = path.stat().st_size

    silent = logging.Logger("silent", logging.CRITICAL)
    _dir_travel(
        folder, [_get_excludes(folder, [*ray_constants.get_runtime_env_default_excludes(), EXCLUDED])], note, True, silent
    )
    return found


def check_size(folder: Path, files: dict[Path, int]) -> None:
    """Raises UserError where a working directory is larger than what a cluster takes, naming what is largest in it."""
    total = sum(files.values())
    if total <= LARGEST_BYTES:
        return
    parts: dict[str, int] = {}
    for path, size in files.items():
        part = path.relative_to(folder).parts[0]
        parts[part] = parts.get(part, 0) + size
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in largest)
    raise UserError(
        f"submit: {folder} holds {total / 1e6:.0f} MB, and a cluster takes {LARGEST_BYTES / 1e6:.0f} MB (largest: {told}); "
        "a .rayignore leaves out what the run does not need"
    )


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Raises UserError for whatever Ray's client or the network raises."""
    import requests

    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        token = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) say which token: the one that its head was started with"
        raise UserError(f"{what}: {in_short(str(error).split(chr(10))[0])} ({token})") from None
    except requests.exceptions.RequestException as error:
        raise UserError(f"{what}: no dashboard answers there ({type(error).__name__})") from None
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        if NO_AGENT in str(error):
            raise UserError(f"{what}: {NO_AGENT}: {AGENT_PORT}") from None
        raise UserError(f"{what}: {in_short(error)}") from None


def client_at(address: str) -> "JobSubmissionClient":
    """A client of the dashboard at an address. Raises UserError where none answers, or it refuses the token."""
    import requests
    from ray.job_submission import JobSubmissionClient

    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would take RAY_ADDRESS instead of what it is given
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _one_line(f"submit: {address}"):
        requests.get(f"{address}/api/version", timeout=ANSWER_SECONDS)
        client = JobSubmissionClient(address)
        client.list_jobs()
    return client


def followed(client: "JobSubmissionClient", name: str) -> Any:
    """Shows a job's log until the job's end; what Ray says of it then."""

    async def show() -> None:
        async for text in client.tail_job_logs(name):
            print(text, end="", flush=True)

    with _one_line(f"submit: the connection is lost, but the job goes on: ray job logs {name}"):
        while True:
            asyncio.run(show())
            job = client.get_job_info(name)
            if job.status.is_terminal():
                return job
            time.sleep(1.0)


def stopped(client: "JobSubmissionClient", name: str, out: str) -> str:
    """Stops a job; what is to be said of that."""
    print(f"stopping job {name}", flush=True)
    with _one_line(f"submit: job {name} could not be stopped"):
        client.stop_job(name)
        for _ in range(60):
            if client.get_job_status(name).is_terminal():
                break
            time.sleep(0.5)
    return f"; job {name} is stopped; raffm-ray resume {out} goes on with the run there"


def ended(client: "JobSubmissionClient", job: Any, name: str, folder: Path) -> int:
    """Brings back what a job left, if it went well; its exit code."""
    from ray.job_submission import JobStatus

    if job.status == JobStatus.STOPPED:
        raise UserError(f"submit: job {name} was stopped on the cluster")
    if job.status == JobStatus.FAILED:
        if job.driver_exit_code == NOT_FOUND:
            raise UserError(f"submit: job {name}: the cluster's nodes have no raffm-ray: install it there, or --pip PACKAGE")
        if job.driver_exit_code is None:
            raise UserError(f"submit: job {name} did not start: {in_short(job.message)}")
        return int(job.driver_exit_code)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_line(f"submit: job {name} went well, but its report cannot be fetched"):
        for file in BROUGHT:
            asked = {"node_id": job.driver_node_id, "filename": f"{PLACE}/{name}/{file}", "lines": -1}
            answer = client._do_request("GET", "/api/v0/logs/file", params=asked, timeout=FETCH_SECONDS)
            answer.raise_for_status()
            (folder / file).write_bytes(answer.content)
    print(f"brought here: {folder / BROUGHT[0]}")
    return 0
