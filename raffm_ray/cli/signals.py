"""Ctrl-C and SIGTERM: a command ends cleanly and says how to resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from raffm_ray.basics.errors import BadUpdateError, ClientError, WorkerLostError


def _what_now(folder: Path, url: str) -> str:
    if any((folder / "rounds").glob("round-*.parquet")):
        return f"raffm-ray resume {quote(url or str(folder))} goes on"
    if (folder / "config.yaml").is_file() and not url:  # a URL gets its first copy with the first record
        return f"no round was recorded yet: raffm-ray resume {quote(str(folder))} begins again at the ranking of the parameters"
    return "nothing was recorded yet: the same command begins again"


@contextmanager
def telling_how_to_resume(folder: Path, url: str = "") -> Iterator[None]:
    """Adds to whatever ends a run before its time how to go on with it: from its folder, or the URL that has a copy of it."""
    try:
        yield
    except (KeyboardInterrupt, WorkerLostError, ClientError, BadUpdateError) as error:
        raise type(error)(f"{error}; {_what_now(folder, url)}") from None


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Ends at SIGTERM as at Ctrl-C; gives the signals that came. A second one changes nothing: ending takes a moment."""
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
