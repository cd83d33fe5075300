"""README.md, CONTRIBUTING.md, CHANGELOG.md and CITATION.cff: the examples run, and what they name exists.

Of the README's commands, `make demo` and `make test` are not run here: the one takes two minutes, the other would run this test again.
`source .venv/bin/activate` depends on where the package is installed. Everything else runs, with fewer rounds and without Ray.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from raffm_ray.basics.version import __version__
from raffm_ray.cli.main import main
from raffm_ray.data.task_types import KINDS
from raffm_ray.models.architecture import FAMILIES
from raffm_ray.models.foundation import local_folder
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.costs import Budget
from raffm_ray.subnetworks.salience import METRICS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NOT_RUN = {"make demo", "make test", "source .venv/bin/activate"}
