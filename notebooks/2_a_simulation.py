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
# # A simulation and its report
#
# A hundred devices of five types fine-tune one small ViT on their own, unequal shares of the digits. `ROUNDS` is small here; the demo has 100.

# %%
import os
import tempfile
from pathlib import Path

from IPython.display import Image
from transformers import AutoModelForImageClassification

import raffm_ray

ROUNDS, BACKEND = int(os.environ.get("NOTEBOOK_ROUNDS", "20")), os.environ.get("NOTEBOOK_BACKEND", "ray")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# An experiment is a YAML file, or is built from keyword arguments (`raffm_ray.Experiment`). Here: the file, with a few other settings.

# %%
experiment = raffm_ray.load(experiments / "digits.yaml").with_settings(
    rounds=ROUNDS, baselines=[], local={"learning_rate": 0.001}, pool={"backend": "in_process"}
)
experiment.fleet.budgets

# %% [markdown]
# Running is one call (the first one also pretrains the model, which is kept for the next). What it leaves is a folder, and an object that
# shows the table of results: the full model and the subnetwork of every device type, before and after training.

# %%
run = raffm_ray.run(
    experiment, folder / "run", on_round=lambda row: row.metric and print(row.round, f"{row.metric:.3f}"), quiet=True
)
run

# %% [markdown]
# ## The report
#
# `report.html` is one file with everything in it; these are two of its pictures.

# %%
page = run.report()
Image(page.with_name("report.png"), width=1100)

# %% [markdown]
# Which heads and neurons each device type keeps, and how much of the training reached them:

# %%
Image(folder / "run" / "units.png", width=900)

# %% [markdown]
# ## The records
#
# Tables of pandas, one row a round, and one row a client and round. Bytes are counted; seconds and joules are estimated from the device's
# data sheet.

# %%
run.clients[["round", "client", "device", "examples", "loss", "bytes_up", "round_seconds", "energy_joules"]].tail(3)

# %%
run.rounds.set_index("round").filter(like="device_type_metrics").dropna()

# %% [markdown]
# ## The model
#
# In any size, as a model of transformers. The full one is also a plain checkpoint in the folder:

# %%
small = run.model(budget={"layer_params": 0.35})
model = AutoModelForImageClassification.from_pretrained(folder / "run" / "checkpoints" / "final")
assert model.num_parameters() == run.summary["params"]
type(model).__name__, model.num_parameters(), small.num_parameters()

# %% [markdown]
# ## Again, elsewhere
#
# The folder holds its configuration. Run again, now on Ray with a worker for every core, it gives the same bits (`simulate` is the run alone,
# without its report):

# %%
again = raffm_ray.load(folder / "run" / "config.yaml").with_settings(pool={"backend": BACKEND})
same = raffm_ray.simulate(again, folder / "again")["params_sha256"] == run.summary["params_sha256"]
assert same
same
