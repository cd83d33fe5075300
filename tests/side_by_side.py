"""`make test` and `make test-fast`: three runs of pytest side by side, which divide the test files between them (see selection.py).

Tests of files that start processes run one after the other, those that start clusters in a lane of their own, where they mostly wait.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

NOTHING_TO_RUN = 5
"""pytest's exit code where nothing of what was asked for is in that lane."""
SHOWN, BESIDE = "processes", ("alone", "clusters")


def _command(lane: str, place: Path) -> list[str]:
    """Each keeps what it remembers and writes in places of its own: pytest removes the folders of all but its last few runs."""
    own = [f"--share={place}", "-o", f"cache_dir=.pytest_cache/{lane}", "--basetemp", f"{place}-{lane}"]
    return [sys.executable, "-m", "pytest", "--lane", lane, *own, *sys.argv[1:]]


def main() -> int:
    """Shows the one run as it goes and the others at their end; returns 0 where all passed."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell starts this in the background, and so by all children
    # One thread each, for there are as many as cores. Ray lowers its workers' priority by default: beside other tests they would hardly run.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with TemporaryDirectory(prefix="raffm-tests-") as folder, ExitStack() as stack:
        place = Path(folder) / "begun"
        place.mkdir()
        kept = {lane: stack.enter_context(TemporaryFile("w+")) for lane in BESIDE}
        beside = [
            stack.enter_context(
                subprocess.Popen(_command(lane, place), stdout=kept[lane], stderr=subprocess.STDOUT, env=environment)
            )
            for lane in BESIDE
        ]
        codes = [subprocess.run(_command(SHOWN, place), env=environment, check=False).returncode]
        codes += [run.wait() for run in beside]
        for file in kept.values():
            file.seek(0)
            print(file.read())
    return max(0 if code == NOTHING_TO_RUN and 0 in codes else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
