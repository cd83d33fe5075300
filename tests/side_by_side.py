"""`make test`, `make test-all` and `make test-fast`: runs of pytest side by side, which divide the test files between them (see selection.py).

Tests of files that start processes run one after the other beside the rest. With `--all`, those of clusters, which mostly wait, come before them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

NOTHING_TO_RUN = 5
"""pytest's exit code where nothing of what was asked for is in that lane."""


def _command(lane: str, place: Path, words: Sequence[str]) -> list[str]:
    """All keep what they remember and write in places of their own: pytest removes the folders of all but its last few runs."""
    own = [f"--share={place}", "-o", f"cache_dir=.pytest_cache/{lane}", "--basetemp", f"{place}-{lane}"]
    return [sys.executable, "-m", "pytest", "--lane", lane, *own, *words]


def main() -> int:
    """Shows the one run as it goes and the other at its end; returns 0 where both passed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as conftest.py says
    # One thread each, for there are two. Ray lowers its workers' priority by default: beside other tests they would hardly run.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with TemporaryDirectory(prefix="raffm-tests-") as folder, TemporaryFile("w+") as kept:
        place = Path(folder) / "begun"
        place.mkdir()
        words = sys.argv[1:]
        lanes = ["clusters", "processes"] if "--all" in words else ["processes"]
        words = [word for word in words if word != "--all"]
        with subprocess.Popen(_command("alone", place, words), stdout=kept, stderr=subprocess.STDOUT, env=environment) as beside:
            codes = [subprocess.run(_command(lane, place, words), env=environment, check=False).returncode for lane in lanes]
            codes.append(beside.wait())
        kept.seek(0)
        print(kept.read())
    return max(0 if code == NOTHING_TO_RUN and 0 in codes else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
