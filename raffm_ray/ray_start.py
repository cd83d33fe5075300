"""Starts Ray on this machine, or joins a cluster; ahead of time where that saves waiting. Imports nothing heavy but Ray."""

import logging
import os
import signal
from concurrent.futures import Future
from threading import Event, Thread, current_thread, main_thread

import ray

from raffm_ray.running import PoolSettings

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
    """Begins to start Ray in the background if the pool will need it: it takes seconds, as does what a driver imports."""
    if settings.backend == "ray" and not ray.is_initialized() and not _ahead:
        _ahead.append(Future())
        Thread(target=_start_and_stay, args=(settings, _ahead[0]), daemon=True).start()


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
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", log_to_driver=False)
        return
    cores = max(settings.workers or 0, os.cpu_count() or 1)
    if not settings.gpus_per_worker and (settings.workers or cores) == cores:  # one actor for every process that Ray has waiting
        os.environ.setdefault("RAY_preload_python_modules", "raffm_ray.client")
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
