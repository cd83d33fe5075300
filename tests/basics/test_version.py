"""`raffm-ray --version`: the commit of a checkout, of an installation from a repository, and of neither."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raffm_ray.basics.version import PACKAGE, __version__, checkout_commit, installed_commit, version_text
from raffm_ray.cli.main import main

ROOT = Path(__file__).parents[2]
COMMIT = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d"
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder, as a user whose own configuration does not matter."""
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def project(folder: Path, name: str = "raffm-ray") -> Path:
    """A folder with the package's version module and a pyproject.toml; returns the package's folder in it."""
    package = folder / "raffm_ray"
    (package / "basics").mkdir(parents=True)
    shutil.copy(PACKAGE / "basics" / "version.py", package / "basics")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return package


def checkout(folder: Path, name: str = "raffm-ray") -> tuple[Path, str]:
    """The same, committed to a git repository of its own; the package's folder and the commit."""
    package = project(folder, name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return package, git(folder, "rev-parse", "HEAD")


def installed(folder: Path, direct_url: str | None) -> Path:
    """A folder like `site-packages` with the package and its metadata; returns the package's folder."""
    package = project(folder)
    (folder / "pyproject.toml").unlink()
    metadata = folder / f"raffm_ray-{__version__}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: raffm-ray\nVersion: {__version__}\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(direct_url)
    return package


def test_the_two_places_of_the_version_agree() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


@needs_git
def test_a_checkout_shows_its_commit(tmp_path: Path) -> None:
    package, commit = checkout(tmp_path)
    assert version_text(package) == f"raffm-ray {__version__} (commit {commit[:7]})"


@needs_git
def test_a_modified_checkout_says_so_and_untracked_files_do_not_count(tmp_path: Path) -> None:
    package, commit = checkout(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "summary.json").write_text("{}")
    assert version_text(package) == f"raffm-ray {__version__} (commit {commit[:7]})"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "raffm-ray"\nversion = "9"\n')
    assert version_text(package) == f"raffm-ray {__version__} (commit {commit[:7]}, modified)"


@needs_git
@pytest.mark.parametrize(("name", "counts"), [("page.md", False), ("deep/picture.png", False), ("deep/settings.yaml", True)])
def test_a_changed_page_or_picture_is_not_modified_code(tmp_path: Path, name: str, counts: bool) -> None:
    package, _ = checkout(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "two")
    assert "modified" not in version_text(package)
    (tmp_path / name).write_text("two")
    assert ("modified" in version_text(package)) == counts


@needs_git
def test_looking_at_a_checkout_changes_nothing_in_it(tmp_path: Path) -> None:
    package, _ = checkout(tmp_path)
    os.utime(package / "basics" / "version.py", (0, 0))  # git would refresh its index
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".git").rglob("*")}
    version_text(package)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / ".git").rglob("*")} == before


@needs_git
def test_another_repository_is_not_mistaken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, commit = checkout(tmp_path / "ours")
    _, other = checkout(tmp_path / "theirs", name="somebody-elses")
    assert checkout_commit(tmp_path / "theirs" / "raffm_ray") is None  # a copy of the package in somebody else's project
    (tmp_path / "theirs" / "pyproject.toml").unlink()
    assert checkout_commit(tmp_path / "theirs" / "raffm_ray") is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))  # as git sets it for its hooks
    assert checkout_commit(package) == commit[:7] != other[:7]


@pytest.mark.parametrize("text", ["", "not toml [", "project = 3\n", "[project]\nname = 3\n"])
def test_a_broken_pyproject_is_no_checkout(tmp_path: Path, text: str) -> None:
    package = project(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text(text)
    assert version_text(package) == f"raffm-ray {__version__}"


def test_without_git_the_version_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = project(tmp_path)
    (tmp_path / ".git").mkdir()
    assert version_text(package) == f"raffm-ray {__version__}"  # git fails: this is no repository
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version_text(package) == f"raffm-ray {__version__}"  # there is no git


@needs_git
def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    package = project(tmp_path)
    git(tmp_path, "init", "--quiet")
    assert version_text(package) == f"raffm-ray {__version__}"


@pytest.mark.parametrize(
    "direct_url",
    [
        None,
        json.dumps({"url": "https://example.org/raffm_ray-0.1.0-py3-none-any.whl", "archive_info": {}}),
        json.dumps({"url": "https://example.org/raffm-ray", "dir_info": {"editable": True}}),
        json.dumps({"url": "https://example.org/raffm-ray.git", "vcs_info": {"vcs": "git", "commit_id": 5}}),
        json.dumps([1]),
        json.dumps({"vcs_info": None}),
        "{",
    ],
)
def test_an_installed_wheel_shows_the_version_alone(tmp_path: Path, direct_url: str | None) -> None:
    package = installed(tmp_path, direct_url)
    assert installed_commit(package) is None
    assert version_text(package) == f"raffm-ray {__version__}"


def test_an_installation_from_a_repository_shows_the_commit(tmp_path: Path) -> None:
    known = {"url": "https://example.org/raffm-ray.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    assert version_text(installed(tmp_path, json.dumps(known))) == f"raffm-ray {__version__} (commit 1a2b3c4)"


def test_control_metadata_elsewhere_on_the_path_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = json.dumps({"url": "https://example.org/raffm-ray.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}})
    installed(tmp_path / "elsewhere", known)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert installed_commit(installed(tmp_path / "here", None)) is None


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{version_text()}\n"


def test_importing_the_version_starts_no_process_and_loads_nothing_for_it() -> None:
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, _: sys.exit(event) if event in ('subprocess.Popen', 'os.posix_spawn') else None)\n"
        "before = set(sys.modules)\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('version', {str(PACKAGE / 'basics' / 'version.py')!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'subprocess', 'tomllib', 'json', 'importlib.metadata'} & (set(sys.modules) - before)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
