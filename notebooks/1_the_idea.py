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
# # The idea, on a model that one can see
#
# A transformer is described by named *axes*: heads, neurons, the width of the residual stream. A *plan* says which indices of each axis a
# device keeps. Cutting a model by a plan, training the part, and adding back what changed is all there is to it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import BertConfig

from raffm_ray.axes.indexing import Plan, coverage, scatter_add_selected
from raffm_ray.axes.layout import selections, take_all
from raffm_ray.models.architecture import architecture_of, build, new_model
from raffm_ray.reports.unit_picture import picture_of_units
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.extraction import Cutting, longest_prefix, ranked_list
from raffm_ray.subnetworks.salience import METRICS, rank
from raffm_ray.subnetworks.unit_coverage import add_reached, units_of

# %% [markdown]
# ## 1. Axes
#
# A BERT of two layers, each with three heads and forty neurons.

# %%
config = BertConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=20,
    num_labels=3,
)
architecture = architecture_of(config, "sequence_classification", tokens=12)
layout = architecture.layout
{name: axis.size for name, axis in layout.axes.items() if not axis.fixed}

# %% [markdown]
# Every parameter says which axes its dimensions are made of. The value projection of layer 0 writes, for every head, that head's value
# dimensions (rows), and reads the residual stream (columns):

# %%
{name.rsplit("layer.")[1]: spec.dims for name, spec in layout.parameters.items() if "layer.0" in name and name.endswith("weight")}

# %% [markdown]
# ## 2. Cutting
#
# A plan keeps indices, in any order: here two of three heads of layer 0, and ten of forty neurons of layer 1. What it does not name stays whole.

# %%
model = new_model(architecture, seed=0).eval()
parameters = dict(model.named_parameters())
plan = Plan({"0/heads": [2, 0], "1/ffn": [7, 30, 1, 12, 3, 22, 8, 9, 10, 39]})
cut = take_all(parameters, layout, plan)

name = "bert.encoder.layer.1.intermediate.dense.weight"
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
left.imshow(parameters[name].detach(), cmap="RdBu", aspect="auto", vmin=-0.06, vmax=0.06)
right.imshow(cut[name].detach(), cmap="RdBu", aspect="auto", vmin=-0.06, vmax=0.06)
left.set(title="layer 1: 40 neurons", ylabel="neurons", xlabel="residual stream")
right.set(
    title="the ten that the plan keeps, in its order", xlabel="residual stream", yticks=range(10), yticklabels=plan["1/ffn"]
)
plt.show()

# %% [markdown]
# The part is a model of its own, really smaller: nothing is masked. It computes what the full model does with the other entries set to zero.

# %%
part = build(architecture, cut, plan).eval()
words = {"input_ids": torch.randint(2, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
masked = {
    name: values * coverage(values.shape, layout.parameters[name].dims, layout.axes, plan) for name, values in parameters.items()
}
whole = build(architecture, masked, Plan()).eval()
with torch.no_grad():
    difference = (part(**words).logits - whole(**words).logits).abs().max().item()
assert difference < 1e-5
{"parameters of the part": part.num_parameters(), "of the full model": model.num_parameters(), "largest difference": difference}

# %% [markdown]
# ## 3. Salience
#
# Which indices are worth keeping? The simplest metric is the L1 norm of a unit's weights; better ones are measured on data (`fisher` is the
# default). All layers' heads and blocks of neurons share one ranked list; this is its top, with how many units of an axis are kept from there on:

# %%
scores = METRICS["l1"].score(layout, parameters, {}, np.random.default_rng(0))
cutting = Cutting({"heads": 1, "ffn": 4}, {})
units = ranked_list(architecture, scores, cutting)
units[:5]

# %% [markdown]
# A device's budget takes the longest prefix of the list that fits. So the plan of a small device is nested in that of a larger one:

# %%
full = costs_of(architecture, Plan()).params
shares = {"phone": 0.8, "laptop": 0.9, "server": 1.0}
plans = {
    device: longest_prefix(architecture, units, rank(scores), cutting, Budget(params=int(share * full)))
    for device, share in shares.items()
}
{device: (costs_of(architecture, one).params, {name: len(kept) for name, kept in one.items()}) for device, one in plans.items()}

# %% [markdown]
# ## 4. Adding back
#
# Clients of unlike plans send what changed. Adding back is the adjoint of cutting: a change lands on the entries it was cut from, and every
# entry is divided by the weight of those who trained it. Here every entry of client 1 has changed by 1, of client 2 by 2, of client 3 by 3.

# %%
shapes = architecture.shapes
summed = {name: torch.zeros(shape) for name, shape in shapes.items()}
weight = {name: torch.zeros(shape) for name, shape in shapes.items()}
for client, one in enumerate(plans.values(), 1):
    for name, chosen in selections(shapes, layout, one).items():
        change = torch.full_like(take_all(parameters, layout, one)[name], float(client))
        scatter_add_selected(summed[name], change, chosen)
        scatter_add_selected(weight[name], torch.ones_like(change), chosen)
mean = {name: summed[name] / weight[name].clamp(min=1) for name in summed}
values = sorted({value for values in mean.values() for value in values.unique().tolist()})
assert values == [2.0, 2.5, 3.0]
values

# %% [markdown]
# Entries that all three trained moved by (1 + 2 + 3) / 3, those that only the larger two trained by (2 + 3) / 2, those of the largest alone by 3.
# Seen by unit: which devices keep each head and neuron, and how much of the training reached it.

# %%
reached = add_reached({}, {0: 1.0, 1: 1.0, 2: 1.0}, list(plans.values()), layout)
picture_of_units(units_of(layout, reached, 3.0, plans))
plt.show()

# %% [markdown]
# That is one round. [2 a simulation](2_a_simulation.ipynb) runs a hundred devices.
