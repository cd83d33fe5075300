"""README.md, CONTRIBUTING.md, CHANGELOG.md and CITATION.cff: the examples run, and what they name exists.

Of the README's commands, `make demo` and `make test` are not run here: the one takes two minutes, the other would run this test again.
`source .venv/bin/activate` depends on where the package is installed. Everything else runs, with fewer rounds and without Ray.
"""

from pathlib import Path

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NOT_RUN = {"make demo", "make test", "source .venv/bin/activate"}
