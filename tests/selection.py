"""Which tests a run of pytest has: all, those of one lane, the fast ones, or those that a run beside it has not begun.

`--lane NAME`: `processes` are files that start processes, `clusters` those of them that start clusters of their own, kill what they
start, or measure what processes take, and mostly wait; `alone` are all other files.

`--share FOLDER`: two runs, of the lanes `alone` and `processes`, divide the files between them while they run. Each notes in this folder
which files it has begun. The one that has finished its processes goes on with files that start none, from the last to the first.

`--fast`: no tests that start processes, no notebooks, nothing that the documentation shows, none of the tests in slow_tests.txt, and at most
three cases of a test that has many: the first, the middle and the last.

`--write-slow`: measures, and writes slow_tests.txt: tests of which one case takes longer than a second. With `--fast`, adds to it.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STARTS_PROCESSES = re.compile(r"four_cores|import ray\b|subprocess|Popen|\bnodes\b")
ALONE_EVEN_SO = {
    f"test_{name}.py"
    for name in (
        "api",
        "cluster_files",
        "docs_site",
        "documentation",
        "drawing",
        "installation",
        "notebooks",
        "pages",
        "standalone",
        "structure",
    )
}
"""Files whose processes start no Ray and leave nothing."""
CLUSTERS = {f"test_{name}.py" for name in ("nodes", "chaos", "mirror", "resume", "hung", "speed_suite")}
SLOW_TESTS = Path(__file__).with_name("slow_tests.txt")
SLOW_SECONDS = 1.0
NOT_FAST = {
    "test_documentation.py",
    "test_docs_site.py",
    "test_tutorials.py",
    "test_readme.py",
    "test_notebooks.py",
    "test_experiments.py",
}
"""Files that run what the documentation shows, or experiments."""
durations: dict[str, float] = defaultdict(float)
"""Case of a test -> its seconds, with those of what it sets up first; for `--write-slow`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", choices=["alone", "processes", "clusters"], help="only tests of these files (see selection.py)")
    parser.addoption("--share", metavar="FOLDER", help="leave out files that another run with this folder has begun")
    parser.addoption("--fast", action="store_true", help="only the tests to run before every commit")
    parser.addoption("--write-slow", action="store_true", help="write the slow tests of this run to tests/slow_tests.txt")


def lane_of(path: Path) -> str:
    """The lane of a test file."""
    if path.suffix != ".py" or path.name in ALONE_EVEN_SO or not STARTS_PROCESSES.search(path.read_text(encoding="utf-8")):
        return "alone"
    return "clusters" if path.name in CLUSTERS else "processes"


def name_of(item: pytest.Item) -> str:
    """A test's file, relative to the repository, and its function: without its case."""
    return f"{item.path.relative_to(ROOT).as_posix()}::{getattr(item, 'originalname', item.name)}"


def slow_tests() -> set[str]:
    """The lines of slow_tests.txt."""
    return set(SLOW_TESTS.read_text(encoding="utf-8").split())


def is_fast(item: pytest.Item) -> bool:
    """Whether a test starts no processes, and is not of a file that runs what the documentation shows."""
    function = getattr(item, "function", None)
    if function is None or item.path.name in NOT_FAST or "four_cores" in getattr(item, "fixturenames", ()):
        return False
    return not STARTS_PROCESSES.search(inspect.getsource(function))


def fast(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests to run before every commit, of all tests."""
    slow, cases = slow_tests(), defaultdict(list)
    for item in items:
        if name_of(item) not in slow and is_fast(item):
            cases[name_of(item)].append(item)
    few = {case[at] for case in cases.values() for at in (0, len(case) // 2, -1)}
    return [item for item in items if item in few]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lane, chosen = config.getoption("--lane"), list(items)
    if config.getoption("--fast"):
        chosen = fast(chosen)
    lanes = {path: lane_of(path) for path in {item.path for item in chosen}} if lane else {}
    first = [item for item in chosen if not lane or lanes[item.path] == lane]
    if lane:  # those of one Ray one after the other: it ends after the last of them (see conftest.py)
        on_ray = {item.path for item in first if "four_cores" in getattr(item, "fixturenames", ())}
        first.sort(key=lambda item: item.path not in on_ray)
    others = []
    if lane == "processes" and config.getoption("--share"):
        by_file = defaultdict(list)
        for item in chosen:
            if lanes[item.path] == "alone":
                by_file[item.path].append(item)
        others = [item for path in reversed(by_file) for item in by_file[path]]
    kept = {*first, *others}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [*first, *others]


def _not_begun(items: list[pytest.Item], folder: Path) -> Iterator[pytest.Item]:
    """The items of files that no other run has begun by the time when their turn comes."""
    ours: dict[Path, bool] = {}
    for item in items:
        if item.path not in ours:
            try:
                (folder / str(item.path.relative_to(ROOT)).replace("/", "+")).touch(exist_ok=False)
                ours[item.path] = True
            except FileExistsError:
                ours[item.path] = False
        if ours[item.path]:
            yield item


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With `--share`, pytest's own loop over those items that are left by the time when each has its turn."""
    folder = session.config.getoption("--share")
    if not folder or session.config.getoption("collectonly") or session.testsfailed:
        return None
    left = _not_begun(session.items, Path(folder))
    item = next(left, None)
    while item is not None:
        following = next(left, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    case = f"{name_of(item)} {item.nodeid}"
    durations[case] += report.duration
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--write-slow"):
        slow = {case.split()[0] for case, seconds in durations.items() if seconds > SLOW_SECONDS}
        if session.config.getoption("--fast"):
            slow |= slow_tests()
        SLOW_TESTS.write_text("".join(f"{name}\n" for name in sorted(slow)), encoding="utf-8")
