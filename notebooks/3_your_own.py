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
# # A strategy and a salience metric of your own
#
# Both are a function with a decorator, which adds a row to a table. Nothing else knows them by name.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import raffm_ray
from raffm_ray.axes.indexing import Plan
from raffm_ray.server.plans.view import StrategyView
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.salience import METRICS, Scores

ROUNDS = os.environ.get("NOTEBOOK_ROUNDS", "20")
experiments = next(folder / "experiments" for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "experiments").is_dir())


def run(*flags: str) -> dict:
    """The summary of a short run in this process."""
    common = ["--rounds", ROUNDS, "--baselines", "[]", "--local.learning_rate", "0.001", "--pool.backend", "in_process"]
    experiment = raffm_ray.load(experiments / "digits.yaml", [*common, *flags])
    return raffm_ray.simulate(experiment, Path(tempfile.mkdtemp()) / "run")


# %% [markdown]
# ## A strategy
#
# It says what a client trains in a round: a function of the view (the model, the ranking, the round) and the client's budget. This one takes
# turns: in even rounds what RaFFM ranks first, in odd ones what FedRolex rolls to. What a device type gets afterwards is the ranked list's.


# %%
@raffm_ray.strategy("taking_turns", like="raffm", nested=False, prefix="none")
def taking_turns(view: StrategyView, budget: Budget, client: int) -> Plan | None:
    """Even rounds as raffm, odd ones as fedrolex."""
    name = "raffm" if view.round % 2 == 0 else "fedrolex"
    return STRATEGIES[name].train(view, budget, client)


mine, theirs = run("--strategy.name", "taking_turns"), run()
{
    name: (round(one["full_model"], 3), round(one["worst_device_type"]["metric"], 3))
    for name, one in (("mine", mine), ("raffm", theirs))
}

# %% [markdown]
# ## A salience metric
#
# It scores every unit of every axis: more is more salient. This one likes best what the L1 norm of the weights likes least.


# %%
@raffm_ray.salience("upside_down")
def upside_down(layout, parameters, statistics, rng: np.random.Generator) -> Scores:
    """The least of the L1 norm first."""
    return {name: -values for name, values in METRICS["l1"].score(layout, parameters, statistics, rng).items()}


device_types = {
    metric: run("--rounds", "1", "--salience.metric", metric)["device_types"] for metric in ("upside_down", "l1", "fisher")
}

# %% [markdown]
# Cut before any training, a subnetwork of the least salient units knows least:

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for metric, own in device_types.items():
    sizes = [100 * one["params_fraction"] for one in own.values()]
    axes.plot(sizes, [100 * one["start"] for one in own.values()], marker="o", label=metric)
axes.set(xlabel="parameters kept (%)", ylabel="held-out accuracy before training (%)")
axes.legend()
plt.show()
