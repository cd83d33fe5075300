"""The version of this package, and the commit that it comes from.

Every `import raffm_ray` imports this module. What only the commit needs is imported by the functions that look for it.
"""

import os
from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).parent.parent
NAME = "raffm-ray"
GIT_SECONDS = 10
NO_CODE = (":(exclude)*.md", ":(exclude)*.png")
"""Pages and pictures, which change no result: what a comparison writes of its numbers may be among them."""
REDIRECTING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Variables by which git would look at another repository, as inside of that repository's hooks."""


def version_text(package: Path = PACKAGE) -> str:
    """`raffm-ray 0.1.0 (commit 1a2b3c4, modified)`; the version alone where no commit is known.

    `package`: the folder of the package.
    """
    commit = checkout_commit(package) or installed_commit(package)
    return f"{NAME} {__version__} (commit {commit})" if commit else f"{NAME} {__version__}"


def checkout_commit(package: Path = PACKAGE) -> str | None:
    """`1a2b3c4` or `1a2b3c4, modified`, where the package lies in a git checkout of this project; None elsewhere or without git.

    Modified: a tracked file differs from the commit, other than pages and pictures. Files that git does not track are not looked at.
    """
    root = package.parent
    if not (root / ".git").exists() or not _is_this_project(root / "pyproject.toml"):
        return None
    commit = _git(root, "rev-parse", "--short=7", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *NO_CODE)
    return f"{commit}, modified" if commit and changes else commit


def installed_commit(package: Path = PACKAGE) -> str | None:
    """The commit that pip installed the package from, as in `pip install git+https://...`; None where it came from anything else.

    It is read from `direct_url.json` (PEP 610) of the distribution beside the package.
    """
    import json
    from importlib.metadata import distributions

    for distribution in distributions(name=NAME, path=[str(package.parent)]):
        try:
            commit = json.loads(distribution.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(commit, str):
            return commit[:7]
    return None


def _is_this_project(pyproject: Path) -> bool:
    import tomllib

    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return False
    return isinstance(project, dict) and project.get("name") == NAME


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, or it fails."""
    import subprocess

    environment = {name: value for name, value in os.environ.items() if name not in REDIRECTING}
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=GIT_SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
