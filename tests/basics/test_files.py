"""Files that are on the disk: whoever waits for them can be interrupted, and hears of what went wrong."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raffm_ray.basics import files

INTERRUPTED = """
import faulthandler, random, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from raffm_ray.basics import files

def stop(*_):
    raise KeyboardInterrupt

def with_futures(paths):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: None, paths))

def work():
    while time.monotonic() < end:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1.5e-3))
        waits(paths)
        signal.setitimer(signal.ITIMER_REAL, 0)

waits = {"sync": files.sync, "futures": with_futures}[sys.argv[1]]
files._sync = lambda path: None
sys.unraisablehook = lambda _: None
faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True, file=open("/dev/null", "w"))
signal.signal(signal.SIGALRM, stop)
paths, rng, count, end = [Path(str(number)) for number in range(8)], random.Random(0), 0, time.monotonic() + 2
while time.monotonic() < end:
    try:
        work()
    except KeyboardInterrupt:
        count += 1
    except RuntimeError:
        assert sys.argv[1] == "futures"
signal.setitimer(signal.ITIMER_REAL, 0)
print(count)
"""


def interrupted(how: str, seconds: float) -> str:
    """How often a wait was interrupted within two seconds; nothing where it never came back."""
    command = [sys.executable, "-c", INTERRUPTED, how, str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ImportError" not in done.stderr
    return done.stdout


def test_an_interrupted_wait_for_the_disk_always_comes_back() -> None:
    assert int(interrupted("sync", 120)) > 100


def test_control_a_wait_for_futures_does_not() -> None:
    assert interrupted("futures", 6) == ""


def test_all_are_synced_and_what_fails_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    synced = []
    monkeypatch.setattr(files, "_sync", synced.append)
    files.sync(paths)
    files.sync([])
    assert sorted(synced) == sorted(paths)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        files.sync([tmp_path, *paths])
    with ThreadPoolExecutor(4) as threads:  # nor does one wait end another's
        assert list(threads.map(files.sync, [[tmp_path]] * 40)) == [None] * 40
