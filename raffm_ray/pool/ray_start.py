"""Starts Ray on this machine, or joins a cluster; ahead of time where that saves waiting. Imports nothing heavy but Ray."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import gettempdir
from threading import Event, Thread, current_thread, main_thread

import ray
import ray._raylet
from ray._private import ray_constants, services

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.machine import usable_cores
from raffm_ray.basics.temporary_folders import INSIDE, process_folder
from raffm_ray.settings.execution import PoolSettings

NO_HISTORY = {"task_events_report_interval_ms": 0}
"""Ray's GCS would keep what became of up to 100,000 calls, for a dashboard that is not there: 14 kB a round."""
PREFIX = "raffm-ray-"
SOCKET = f"{INSIDE}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path of a socket in Ray's folder; 1234567: a process."""
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The most that the system takes for a socket's path."""

ANSWER_SECONDS = 10.0
"""How long a cluster may take to answer."""

_ahead: list[Future[None]] = []
"""The start that is under way, if one is: Ray is one a process."""


def connect(settings: PoolSettings) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine alone; waits for a start that is under way."""
    before = signal.getsignal(signal.SIGTERM)
    if _ahead:
        _ahead.pop().result()
    if not ray.is_initialized():
        _start(settings)
    if callable(before) and current_thread() is main_thread():  # Ray's own handler would end the process on the spot
        signal.signal(signal.SIGTERM, before)


def start_ahead(settings: PoolSettings) -> None:
    """Begins to start Ray in the background if the pool will need it: it takes seconds, as does what a driver imports. Raises UserError
    where a cluster is to be joined that does not answer, or refuses."""
    if settings.backend == "ray" and not ray.is_initialized() and not _ahead:
        check_start()
        _ahead.append(Future())
        Thread(target=_start_and_stay, args=(settings, _ahead[0]), daemon=True).start()


def check_start() -> None:
    """Raises UserError, within seconds, where a cluster is to be joined that does not answer, or refuses, or where Ray cannot have its
    folder."""
    if ray.is_initialized():
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
    else:
        _parent_folder()


def _start_and_stay(settings: PoolSettings, started: Future[None]) -> None:
    try:
        _start(settings)
        started.set_result(None)
    except BaseException as error:
        started.set_exception(error)
    Event().wait()  # what Ray started is killed with the thread that started it (PR_SET_PDEATHSIG)


def _start(settings: PoolSettings) -> None:
    # A call that fails also leaves its second result unread, which Ray would report on top of our own error.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
        _join(address)
        return
    cores = max(settings.workers or 0, usable_cores())
    if not settings.gpus_per_worker and (settings.workers or cores) == cores:  # one actor for every process that Ray has waiting
        os.environ.setdefault("RAY_preload_python_modules", "raffm_ray.clients.client_runner")
    with _only_this_machine(), _only_who_has_the_token():
        folder = str(_folder())
        try:
            ray.init(
                address="local",
                num_cpus=cores,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                _system_config=NO_HISTORY,
            )
        except Exception as error:  # whatever Ray raises, as where a machine is too busy for it to start in time
            raise UserError(f"Ray cannot be started here: {in_short(error)} (pool.backend in_process needs none)") from None


def _check_address(address: str) -> None:
    """Raises UserError where no cluster answers, or it refuses: Ray itself would try again for minutes."""
    told = f"RAY_ADDRESS: {address}"
    if address == "auto":
        try:
            address = services.get_ray_address_from_environment("auto", None) or ""
        except Exception as error:  # whatever Ray raises where it finds none
            raise UserError(f"{told}: no cluster was started on this machine: {in_short(error)}") from None
        told += f": the last cluster that was started on this machine, {address}"
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        example = "a cluster's address, such as 10.0.0.1:6379, or auto (raffm-ray submit takes its dashboard's)"
        raise UserError(f"{told}: expected {example}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        ray._raylet.GcsClient(address=address)  # type: ignore[attr-defined]  # compiled
    except ray.exceptions.AuthenticationError as error:
        which = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) say which token: the one that its head was started with"
        raise UserError(f"{told}: the cluster refuses: {in_short(str(error).split('.')[0])} ({which})") from None
    except (OSError, OverflowError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(f"{told}: no cluster answers there: {in_short(error)}") from None


def _join(address: str) -> None:
    """Joins the cluster at an address. Raises UserError where it cannot be joined."""
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"RAY_ADDRESS: {address}: the cluster cannot be joined: {in_short(error)}") from None


def _folder() -> Path:
    """Where Ray has its sockets and logs: where it always has them, but in a folder of this process. Raises UserError."""
    return process_folder(_parent_folder(), PREFIX, ray.shutdown)


def _parent_folder() -> Path:
    parent = Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else gettempdir())).absolute()
    if not str(parent).isascii():
        raise UserError(f"{parent}: Ray's folder must have a name in ASCII letters; RAY_TMPDIR names another folder")
    longest = len(os.fsencode(parent / f"{PREFIX}12345678" / SOCKET))
    if longest > SOCKET_BYTES:
        raise UserError(
            f"{parent}: too long a path for Ray's sockets, by {longest - SOCKET_BYTES} bytes; RAY_TMPDIR names another folder"
        )
    return parent


@contextmanager
def _only_this_machine() -> Iterator[None]:
    """Within it, Ray starts as it does by default where firewalls ask: all that listens does so on 127.0.0.1."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _only_who_has_the_token() -> Iterator[None]:
    """Within it, what Ray starts inherits a new random token, unless the environment names one; it is on no disk and no command line."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = token_hex(32)
    if (loader := getattr(ray._raylet, "AuthenticationTokenLoader", None)) is not None:  # releases before tokens have none
        loader.instance().reset_cache()
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]  # this process has read it; what it starts besides Ray need not know it
