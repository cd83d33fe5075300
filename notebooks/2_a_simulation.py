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

import pyarrow.parquet as pq
from IPython.display import Image
from transformers import AutoModelForImageClassification

import raffm_ray

ROUNDS, BACKEND = os.environ.get("NOTEBOOK_ROUNDS", "20"), os.environ.get("NOTEBOOK_BACKEND", "ray")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# An experiment is a YAML file. Any setting in it can be given as a flag instead, here as on the command line.

# %%
flags = ["--rounds", ROUNDS, "--baselines", "[]", "--local.learning_rate", "0.001", "--pool.backend", "in_process"]
experiment = raffm_ray.load(experiments / "digits.yaml", flags)
experiment.fleet.budgets

# %% [markdown]
# Running is one call (the first one also pretrains the model, which is kept for the next). What it leaves is a folder, and a summary: here
# the part of the parameters that each device type keeps, and its subnetwork's held-out accuracy before and after training.

# %%
summary = raffm_ray.simulate(
    experiment, folder / "run", on_round=lambda row: row.metric and print(row.round, f"{row.metric:.3f}")
)
{
    name: tuple(round(one[key], 3) for key in ("params_fraction", "start", "metric"))
    for name, one in summary["device_types"].items()
}

# %% [markdown]
# ## The report
#
# `report.html` is one file with everything in it; these are two of its pictures.

# %%
image, page = raffm_ray.write_report(folder / "run")
Image(image, width=1100)

# %% [markdown]
# Which heads and neurons each device type keeps, and how much of the training reached them:

# %%
Image(folder / "run" / "units.png", width=900)

# %% [markdown]
# ## The records
#
# Parquet, one row a client and round. Bytes are counted; seconds and joules are estimated from the device's data sheet.

# %%
rows = pq.read_table(folder / "run" / "clients").to_pylist()
{key: rows[-1][key] for key in ("round", "client", "device", "examples", "loss", "bytes_up", "round_seconds", "energy_joules")}

# %% [markdown]
# ## The model
#
# A plain transformers checkpoint:

# %%
model = AutoModelForImageClassification.from_pretrained(folder / "run" / "checkpoints" / "final")
assert model.num_parameters() == summary["params"]
type(model).__name__, model.num_parameters()

# %% [markdown]
# ## Again, elsewhere
#
# The folder holds its configuration. Run again, now on Ray with a worker for every core, it gives the same bits:

# %%
again = raffm_ray.load(folder / "run" / "config.yaml", ["--pool.backend", BACKEND])
same = raffm_ray.simulate(again, folder / "again")["params_sha256"] == summary["params_sha256"]
assert same
same
