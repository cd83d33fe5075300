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
# # Deploying
#
# After training, any device, seen or not, gets the part that fits it, with no further training. First, something to deploy:

# %%
import os
import tempfile
from pathlib import Path

from transformers import AutoModelForImageClassification

import raffm_ray

ROUNDS = os.environ.get("NOTEBOOK_ROUNDS", "10")
BACKEND = os.environ.get("NOTEBOOK_BACKEND", "ray")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())
folder = Path(tempfile.mkdtemp())
flags = ["--rounds", ROUNDS, "--baselines", "[]", "--local.learning_rate", "0.001", "--pool.backend", BACKEND]
run = raffm_ray.run(raffm_ray.load(experiments / "digits.yaml", flags), folder / "run", quiet=True)
run

# %% [markdown]
# A budget may be in parameters, bytes, multiply-accumulates, memory or milliseconds. Here: two fifths of the parameters, a size that
# nobody trained. The folder that comes out stands alone.

# %%
told = raffm_ray.deploy(folder / "run", folder / "small", {"params": 0.4})
sorted(path.name for path in (folder / "small").iterdir()), told["params_fraction"], told["forms"]["torch"]

# %% [markdown]
# What every layer kept of it. Salience decides, so layers differ:

# %%
told["widths"]

# %% [markdown]
# transformers loads it: `import raffm_ray` has told it of such models.

# %%
model = AutoModelForImageClassification.from_pretrained(folder / "small")
sum(parameter.numel() for parameter in model.parameters())

# %% [markdown]
# A device gets what its budget allows, or as many milliseconds as it has, measured here:

# %%
{name: raffm_ray.deploy(folder / "run", folder / name, device=name)["params"] for name in ("raspberry_pi_4", "laptop")}

# %%
fast = raffm_ray.deploy(folder / "run", folder / "fast", {"latency_ms": 20})
fast["params_fraction"], fast["forms"]["torch"]["median_ms"]

# %% [markdown]
# `raffm-ray deploy compare` puts sizes side by side, as PyTorch, ONNX and 8 bit integers.
