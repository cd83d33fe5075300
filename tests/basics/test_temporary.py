"""A process's temporary folder goes with it, however it ends; nothing else does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.temporary_folders import INSIDE, process_folder

ROOT = Path(__file__).parents[2]
PREFIX = "raffm-test-"
PROGRAM = """
import sys, time
from pathlib import Path
from raffm_ray.basics.temporary_folders import process_folder
place = process_folder(Path(sys.argv[1]), "raffm-test-", lambda: print("before", place.is_dir()))
(place / "file").touch()
print("made", flush=True)
{}
"""


def started(parent: Path, end: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end), str(parent)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "made\n"
    return process


@pytest.mark.parametrize(
    "end", ["", "raise ValueError", "sys.exit(3)", "import os\nif os.fork() == 0: sys.exit()\nos.wait()\nassert place.is_dir()"]
)
def test_it_goes_at_the_end(tmp_path, end) -> None:
    assert started(tmp_path, end).communicate()[0] == "before True\n"
    assert not list(tmp_path.iterdir())


def test_it_goes_at_an_interruption_and_after_a_kill_when_the_next_is_made(tmp_path) -> None:
    interrupted, killed, held = (started(tmp_path, "time.sleep(60)") for _ in range(3))
    before = {path.name for path in tmp_path.iterdir()}
    assert len(before) == 3
    for process, number in ((interrupted, signal.SIGINT), (killed, signal.SIGKILL)):
        process.send_signal(number)
        process.communicate()
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2  # control: a kill leaves it
    assert started(tmp_path, "").communicate()[0] == "before True\n"
    (still,) = (path for path in tmp_path.iterdir())
    assert (still / INSIDE / "file").is_file()  # of the process that runs
    held.terminate()
    held.communicate()


def test_what_merely_has_such_a_name_stays(tmp_path) -> None:
    other, file, link = (tmp_path / f"{PREFIX}{name}" for name in ("results", "file", "link"))
    other.mkdir()
    (other / "mine").touch()
    file.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    link.symlink_to(empty)
    place = process_folder(tmp_path, PREFIX)
    assert (other / "mine").is_file()
    assert file.is_file()
    assert link.is_symlink()
    assert empty.is_dir()
    assert place.parent.stat().st_mode & 0o777 == 0o700


def test_where_none_can_be_made_is_said(tmp_path) -> None:
    with pytest.raises(UserError, match="no temporary folder can be made there"):
        process_folder(tmp_path / "nothing", PREFIX)
