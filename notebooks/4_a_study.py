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
# Which settings of the compression are worth it? Optuna tries; every trial is a run in a folder of its own. Two objectives: the worst class's
# accuracy, and the bytes that move. `TRIALS` and `ROUNDS` are small here; `experiments/study_digits.yaml` has the whole one.

# %%
import os
import tempfile
from pathlib import Path

import raffm_ray

ROUNDS, TRIALS = int(os.environ.get("NOTEBOOK_ROUNDS", "10")), int(os.environ.get("NOTEBOOK_TRIALS", "6"))
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
study, base = raffm_ray.load_study(
    experiments / "study_digits.yaml",
    ["--trials", str(TRIALS), "--parallel", "1", "--settings.rounds", str(ROUNDS), "--settings.pool.backend", "in_process"],
)
study.space

# %% [markdown]
# The first trial is the configuration as it is; what follows is the sampler's. The study is in a folder: killed, the same call goes on.

# %%
folder = Path(tempfile.mkdtemp()) / "study"
content = raffm_ray.run_study(study, base, folder)
[(trial["number"], trial["values"]) for trial in content["trials"]]

# %% [markdown]
# Of two objectives there is no best trial but a front: those that no other beats in both.

# %%
from IPython.display import Image, display

display(Image(str(folder / "study.png"), width=900))
content["front"]

# %% [markdown]
# What comes out is a configuration that runs as it is:

# %%
best = raffm_ray.load(folder / "best.yaml")
{"every": best.salience.every, "metric": best.salience.metric, "budgets": best.fleet.budgets}
