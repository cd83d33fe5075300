"""`make test`: the tests that start processes and those that do not, side by side; those look at what is left on the machine, these leave nothing."""

import os
import subprocess
import sys
from tempfile import TemporaryFile


def main() -> int:
    """Runs both halves; shows the one as it goes and the other at its end; returns 0 where both passed."""
    command = [sys.executable, "-m", "pytest", "-o", "cache_dir=.pytest_cache/{half}", "--half", "{half}", *sys.argv[1:]]
    first, second = ([word.format(half=half) for word in command] for half in ("alone", "processes"))
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with TemporaryFile("w+") as kept, subprocess.Popen(first, stdout=kept, stderr=subprocess.STDOUT, env=one_thread) as beside:
        codes = [subprocess.run(second, check=False).returncode]
        codes.append(beside.wait())
        kept.seek(0)
        print(kept.read())
    # 5: nothing of what was asked for is in that half.
    return max(0 if code == 5 and 0 in codes else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
