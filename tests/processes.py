"""Processes that a test has started: waiting for what they do, and finding those that are left."""

import time
from pathlib import Path
from typing import Any


def wait_for(there: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def shared_memory() -> set[str]:
    """Files of Ray in shared memory. One that a live Ray makes is gone within milliseconds: it is removed as soon as it is open."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(("plasma", "ray"))}


def marked(mark: str) -> list[str]:
    """The processes that were started with a mark and still run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAFFM_TEST_MARK={mark}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().decode().replace("\0", " ")[:80])
        except OSError:
            continue
    return found
