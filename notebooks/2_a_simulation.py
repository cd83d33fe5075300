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
# A hundred devices of five classes fine-tune one small ViT on their own, unequal shares of the digits. `ROUNDS` is small here; the demo has 60.

# %%
import os
import tempfile
from pathlib import Path

from rich.console import Console

from raffm_ray.config import load
from raffm_ray.simulation import simulate

ROUNDS = os.environ.get("NOTEBOOK_ROUNDS", "20")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
experiment = load(experiments / "digits.yaml", ["--rounds", ROUNDS, "--baselines", "[]", "--local.learning_rate", "0.001"])
{name: getattr(experiment, name) for name in ("clients", "strategy", "salience")}

# %% [markdown]
# Any setting of the YAML can be given on the command line, as a flag here, or in the file. Running is one call; the summary is a plain dictionary.

# %%
folder = Path(tempfile.mkdtemp()) / "run"
summary = simulate(experiment, folder, Console())
{name: (round(tier["params_fraction"], 2), round(tier["metric"], 3)) for name, tier in summary["tiers"].items()}

# %% [markdown]
# The same experiment gives the same bits again, with any number of workers, here in this process:

# %%
again = simulate(load(folder / "config.yaml", ["--pool.backend", "in_process"]), folder.parent / "again", Console(quiet=True))
summary["params_sha256"] == again["params_sha256"]

# %% [markdown]
# Records are Parquet: one row a client and round. What a class costs is estimated from its device's data sheet.

# %%
import pyarrow.parquet as pq

clients = pq.read_table(folder / "clients").to_pylist()
clients[-1]

# %% [markdown]
# And the report: `report.html` is one file with everything in it.

# %%
from IPython.display import Image, display

from raffm_ray.report import write_report

image, page = write_report(folder)
display(Image(str(image), width=1000))
display(Image(str(folder / "units.png"), width=1000))

# %% [markdown]
# What comes out is a plain transformers checkpoint:

# %%
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(folder / "checkpoints" / "final")
sum(values.numel() for values in model.parameters()) == summary["params"]
