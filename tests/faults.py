"""Deliberate faults, put into a copy of the package one at a time: the tests that are named for each must fail.

`python tests/faults.py [NAME ...] [--list] [--no-control]`. The faults are in faults.toml. The working tree is never changed.
The exit code is 1 where a fault is not caught, 2 where the table of faults does not fit the code or the tests.
"""

import argparse
import ast
import atexit
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import hypothesis
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TABLE = HERE / "faults.toml"
PACKAGE = "raffm_ray"
COPIED = (PACKAGE, "tests")
LINKED = ("README.md", "pyproject.toml", "cluster", "docs", "experiments", "notebooks")
"""What tests read besides: links are enough, for nothing writes there."""
SECONDS = 600
"""How long the tests of one fault may take."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
SLOW = (
    "torch torch.utils.tensorboard transformers transformers.modeling_utils ray optuna pandas datasets tokenizers cyclopts jinja2 "
    "pyarrow.parquet scipy.optimize sklearn.metrics matplotlib.pyplot rich.console hypothesis.strategies"
)
"""What takes long to import: it is imported once, before the process of each fault is forked."""
NOT_THE_COPY = 99
"""The exit code of a process that imported another package than the copy; pytest's own are below 10."""
FLAGS = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "junit_family=xunit1", "--hypothesis-seed=0")


@dataclass(frozen=True)
class Fault:
    """A replacement of text in one file. `tests`: names of test files, each anywhere below tests/, or `file::function`; one of them
    must fail."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        """The package that the fault is in."""
        return self.file.split("/")[1]


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a fault. `failed`: the first test that failed, "" where none did; `problem`: why nothing was decided."""

    fault: Fault
    failed: str
    seconds: float
    problem: str = ""

    @property
    def text(self) -> str:
        """A line of the table."""
        outcome = f"? {self.problem}" if self.problem else self.failed or "NOT CAUGHT"
        return f"{self.fault.name:<44} {self.seconds:6.1f} s  {outcome}"


class TableError(Exception):
    """A fault that does not fit the code or the tests."""


def read_table(path: Path = TABLE) -> list[Fault]:
    """The faults of a file. Raises TableError for a name that is there twice."""
    faults = [Fault(**{**one, "tests": tuple(one["tests"])}) for one in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]]
    names = [fault.name for fault in faults]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TableError(f"these names are there twice: {', '.join(sorted(twice))}")
    return faults


def faulty(fault: Fault, root: Path) -> str:
    """The file with the fault. Raises TableError unless its text is there exactly once, and what comes of it is Python."""
    path = root / fault.file
    if not path.is_file():
        raise TableError(f"{fault.name}: {fault.file} does not exist")
    text = path.read_text(encoding="utf-8")
    if (count := text.count(fault.old)) != 1:
        raise TableError(f"{fault.name}: expected its text once in {fault.file}, found it {count} times")
    changed = text.replace(fault.old, fault.new)
    try:
        if ast.dump(ast.parse(changed)) == ast.dump(ast.parse(text)):
            raise TableError(f"{fault.name}: changes nothing")
    except SyntaxError as error:
        raise TableError(f"{fault.name}: no longer Python: {error}") from None
    return changed


def located(tests: Iterable[str], root: Path) -> list[str]:
    """Test names as pytest takes them, from the root. Raises TableError for a file that is missing or there twice."""
    found = []
    for test in tests:
        name, *function = test.split("::")
        places = sorted((root / "tests").rglob(name))
        if len(places) != 1:
            raise TableError(f"{test}: expected one file of that name below tests/, found {len(places)}")
        found.append("::".join([str(places[0].relative_to(root)), *function]))
    return found


def tree(folder: Path, root: Path) -> Path:
    """A copy of the package and the tests, with links to what tests read besides."""
    for name in COPIED:
        copytree(root / name, folder / name, ignore=ignore_patterns(".*"))
    for name in LINKED:
        if (root / name).exists():
            (folder / name).symlink_to(root / name)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """Of the environment, under which every process, Ray's workers too, imports the copy."""
    return {**SETTINGS, "PYTHONPATH": str(folder)}


def check_import(folder: Path) -> None:
    """Raises TableError unless the package that another process imports is the copy."""
    command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    environment = {**os.environ, **variables(folder)}
    told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(told).is_relative_to(folder):
        raise TableError(f"tests would import {told} instead of the copy in {folder}")


def preload() -> None:
    """Imports what is slow to import, and nothing of the package itself."""
    os.environ |= SETTINGS
    for name in SLOW.split():
        with suppress(ImportError):
            import_module(name)


def tests_in_a_fork(folder: Path, flags: Sequence[str], tests: Sequence[str]) -> None:
    """Ends this process with pytest's exit code. Its report is `folder`/report.xml, what it prints is in `folder`/output."""
    atexit._clear()  # what this process was forked from removes its own folders
    os.setsid()
    os.chdir(folder)
    os.environ |= variables(folder)
    sys.path[:] = [str(folder), *(place for place in sys.path if Path(place).resolve() != HERE)]
    with open("output", "wb") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    # A failure is enough: hypothesis need not look for the smallest example.
    hypothesis.settings.register_profile("faults", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None)
    hypothesis.settings.load_profile("faults")
    code = int(pytest.main([*FLAGS, *flags, "--basetemp", "t", "--junitxml", "report.xml", *tests]))
    imported = sys.modules.get(PACKAGE)
    if imported is not None and not Path(str(imported.__file__)).is_relative_to(folder):
        print(f"tests imported {imported.__file__}")
        code = NOT_THE_COPY
    atexit._run_exitfuncs()  # which a fork would not do
    sys.stdout.flush()
    os._exit(code)


def run_tests(folder: Path, tests: Sequence[str], flags: Sequence[str], seconds: float) -> int | None:
    """pytest's exit code, None beyond so many seconds."""
    process = get_context("fork").Process(target=tests_in_a_fork, args=(folder, flags, tests))
    process.start()
    try:
        process.join(seconds)
        return process.exitcode
    finally:
        with suppress(ProcessLookupError):  # whatever it started goes with it
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def printed(folder: Path) -> str:
    """The end of what pytest printed."""
    return (folder / "output").read_text(encoding="utf-8", errors="replace")[-2000:]


def outcomes(folder: Path) -> dict[str, str]:
    """By test, as pytest names it, "passed", "skipped" or "failed"."""
    found = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        kinds = {child.tag for child in case}
        name = f"{case.get('file')}::{case.get('name')}"
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found


def control(folder: Path, faults: Sequence[Fault]) -> dict[str, str]:
    """By fault, why its tests decide nothing: one of them fails, or none runs, without any fault. All tests run once, together."""
    wanted = {fault.name: located(fault.tests, folder) for fault in faults}
    asked = {test for tests in wanted.values() for test in tests}
    asked = {test for test in asked if "::" not in test or test.split("::")[0] not in asked}
    code = run_tests(folder, sorted(asked), (), SECONDS * len(faults))
    if code not in (0, 1):
        raise TableError(f"the control run ended with {code}:\n{printed(folder)}")
    seen = outcomes(folder)
    problems = {}
    for name, tests in wanted.items():
        own = {test: told for test, told in seen.items() if any(covers(one, test) for one in tests)}
        failed = [test for test, told in own.items() if told == "failed"]
        if failed:
            problems[name] = f"fails without the fault: {failed[0]}"
        elif "passed" not in own.values():
            problems[name] = "none of its tests runs"
    return problems


def covers(asked: str, test: str) -> bool:
    """Whether a test that ran is one that was asked for."""
    return test == asked or test.startswith((f"{asked}::", f"{asked}["))


def tried(fault: Fault, clean: Path) -> Verdict:
    """Puts a fault into a copy and runs its tests until one fails."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="raffm-fault-", ignore_cleanup_errors=True) as place:
        folder = Path(place).resolve()
        for name in COPIED:
            copytree(clean / name, folder / name)
        for link in clean.iterdir():
            if link.is_symlink():
                (folder / link.name).symlink_to(link.readlink())
        changed = faulty(fault, folder)
        (folder / fault.file).write_text(changed, encoding="utf-8")
        for compiled in (folder / fault.file).parent.glob(f"__pycache__/{Path(fault.file).stem}.*"):
            compiled.unlink()  # it is told by size and time in seconds whether it is of this text
        code = run_tests(folder, located(fault.tests, folder), ("-x",), SECONDS)
        seconds = time.monotonic() - began
        if code is None:
            return Verdict(fault, "", seconds, f"not done after {SECONDS} s")
        if code not in (0, 1):
            return Verdict(fault, "", seconds, f"pytest ended with {code}: {' '.join(printed(folder).split())[-300:]}")
        failed = next((test for test, told in outcomes(folder).items() if told == "failed"), "")
        return Verdict(fault, failed, seconds)


def listing(faults: Sequence[Fault]) -> str:
    """Every fault by package, with what it breaks."""
    by_package = {name: [fault for fault in faults if fault.package == name] for name in sorted({one.package for one in faults})}
    lines = []
    for package, own in by_package.items():
        lines += [f"{package} ({len(own)})", *(f"  {fault.name:<44} {fault.breaks}" for fault in own)]
    return "\n".join([*lines, f"{len(faults)} faults"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the faults that are named, all without names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; all of them without a name")
    parser.add_argument("--list", action="store_true", help="says what the faults are and runs nothing")
    parser.add_argument("--no-control", action="store_true", help="does not run the tests without a fault first")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        faults = read_table()
        if unknown := set(chosen.names) - {fault.name for fault in faults}:
            raise TableError(f"no such fault: {', '.join(sorted(unknown))}")
        faults = [fault for fault in faults if not chosen.names or fault.name in chosen.names]
        for fault in faults:
            faulty(fault, ROOT)
            located(fault.tests, ROOT)
        if chosen.list:
            print(listing(faults))
            return 0
        return run(faults, not chosen.no_control, began)
    except TableError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2


def run(faults: Sequence[Fault], with_control: bool, began: float, root: Path = ROOT) -> int:
    """Prints a line for every fault as it is decided; returns the exit code."""
    preload()
    with TemporaryDirectory(prefix="raffm-faults-", ignore_cleanup_errors=True) as place:
        clean = tree(Path(place).resolve(), root)
        check_import(clean)
        problems = control(clean, faults) if with_control else {}
        if with_control:
            print(f"control: {len(faults) - len(problems)} of {len(faults)} faults have tests that pass without them", flush=True)
        verdicts = [Verdict(fault, "", 0.0, problems[fault.name]) for fault in faults if fault.name in problems]
        for verdict in verdicts:
            print(verdict.text, flush=True)
        for fault in faults:
            if fault.name not in problems:
                verdicts.append(tried(fault, clean))
                print(verdicts[-1].text, flush=True)
    undecided = sum(bool(verdict.problem) for verdict in verdicts)
    caught = sum(bool(verdict.failed) for verdict in verdicts)
    missed = len(verdicts) - undecided - caught
    print(f"{caught} of {len(verdicts)} faults caught, {missed} not, {undecided} undecided, in {time.monotonic() - began:.0f} s")
    return 2 if undecided else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
