"""`make test`: the tests that start processes and those that do not, side by side; those look at what is left on the machine, these leave nothing."""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory, TemporaryFile


def _command(half: str, place: str) -> list[str]:
    """Both keep what they remember and write in places of their own: pytest removes the folders of all but its last few runs."""
    own = ["-o", f"cache_dir=.pytest_cache/{half}", "--basetemp", f"{place}/{half}"]
    return [sys.executable, "-m", "pytest", "--half", half, *own, *sys.argv[1:]]


def main() -> int:
    """Runs both halves; shows the one as it goes and the other at its end; returns 0 where both passed."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory(prefix="raffm-tests-") as place, TemporaryFile("w+") as kept:
        first, second = (_command(half, place) for half in ("alone", "processes"))
        with subprocess.Popen(first, stdout=kept, stderr=subprocess.STDOUT, env=one_thread) as beside:
            codes = [subprocess.run(second, check=False).returncode]
            codes.append(beside.wait())
        kept.seek(0)
        print(kept.read())
    # 5: nothing of what was asked for is in that half.
    return max(0 if code == 5 and 0 in codes else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
