# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A study
#
# Which settings of the compression are worth it? Optuna tries; every trial is a run in a folder of its own. Two objectives: the worst device type's
# accuracy, and the bytes that move. `TRIALS` and `ROUNDS` are small here; `raffm-ray study experiments/study_digits.yaml` is the whole one.

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import Image
from rich.console import Console

import raffm_ray

ROUNDS, TRIALS = os.environ.get("NOTEBOOK_ROUNDS", "10"), os.environ.get("NOTEBOOK_TRIALS", "10")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# A study is a YAML file too. It names the settings to search, each with its choices or its range:

# %%
flags = ["--trials", TRIALS, "--parallel", "1", "--settings.rounds", ROUNDS, "--settings.pool.backend", "in_process"]
study, base = raffm_ray.load_study(experiments / "study_digits.yaml", flags)
study.space

# %% [markdown]
# The first trial is the configuration as it is; what follows is the sampler's choice. Interrupted, the same call goes on.

# %%
content = raffm_ray.run_study(study, base, folder / "study", Console(force_jupyter=False))

# %% [markdown]
# Of two objectives there is no best trial but a front: those that no other beats in both.

# %%
Image(folder / "study" / "study.png", width=1000)

# %%
{row["number"]: row["values"] for row in content["trials"] if row["number"] in content["front"]}

# %% [markdown]
# One of them is written out, as a configuration that `raffm-ray run` takes as it is. What the study changed in it:

# %%
best = raffm_ray.load(folder / "study" / "best.yaml")
next(row["settings"] for row in content["trials"] if row["number"] == content["best"])

# %% [markdown]
# With few rounds and few trials, on one seed, this is a look at the tool and no finding: `trials`, `settings.rounds` and `seeds` are what
# makes it one.
