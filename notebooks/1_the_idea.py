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
import torch
from transformers import BertConfig

from raffm_ray.architectures import architecture_of, build, new_model
from raffm_ray.axes import Plan
from raffm_ray.layout import take_all

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
# Every parameter says which axes its dimensions are made of. The value projection of layer 0 reads the residual stream and writes, for every
# head, that head's value dimensions:

# %%
{name: spec.dims for name, spec in layout.parameters.items() if "layer.0" in name and name.endswith("weight")}

# %% [markdown]
# A plan keeps indices, in any order. Here: two of three heads in layer 0, and a quarter of the neurons of layer 1. What it does not name stays whole.

# %%
model = new_model(architecture, seed=0).eval()
parameters = dict(model.named_parameters())
plan = Plan({"0/heads": [2, 0], "1/ffn": [7, 30, 1, 12, 3, 22, 8, 9, 10, 39]})
cut = take_all(parameters, layout, plan)
{
    name: (tuple(parameters[name].shape), tuple(values.shape))
    for name, values in cut.items()
    if values.shape != parameters[name].shape
}

# %% [markdown]
# The part is a model of its own: really smaller, nothing is masked. It computes what the full model does with the other entries set to zero.

# %%
part = build(architecture, cut, plan).eval()
words = {"input_ids": torch.randint(2, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}

from raffm_ray.axes import coverage
from raffm_ray.layout import is_kept

masked = {
    name: values * coverage(values.shape, layout.parameters[name].dims, layout.axes, plan)
    if is_kept(layout.parameters[name].layer, plan)
    else torch.zeros_like(values)
    for name, values in parameters.items()
}
whole = build(architecture, masked, Plan()).eval()
with torch.no_grad():
    difference = (part(**words).logits - whole(**words).logits).abs().max().item()
sum(values.numel() for values in part.parameters()), sum(values.numel() for values in model.parameters()), difference

# %% [markdown]
# Which indices are worth keeping is *salience*. The simplest metric is the L1 norm of a unit's weights; better ones are measured on data
# (`salience.metric: fisher` is the default). All layers' units share one ranked list.

# %%
import numpy as np

from raffm_ray.extraction import Cutting, longest_prefix, ranked_list
from raffm_ray.salience import METRICS, rank

scores = METRICS["l1"].score(layout, parameters, {}, np.random.default_rng(0))
cutting = Cutting({"heads": 1, "ffn": 4}, {})
units = ranked_list(architecture, scores, cutting)
units[:5], len(units)

# %% [markdown]
# A device's budget takes the longest prefix of that list which fits. Smaller budgets give plans that are nested in larger ones.

# %%
from raffm_ray.costs import Budget, costs_of

plans = {
    share: longest_prefix(
        architecture, units, rank(scores), cutting, Budget(params=int(share * costs_of(architecture, Plan()).params))
    )
    for share in (0.8, 0.9, 1.0)
}
{share: (costs_of(architecture, one).params, {name: len(kept) for name, kept in one.items()}) for share, one in plans.items()}

# %% [markdown]
# Clients of unlike plans send what changed. Adding back is the adjoint of cutting: a change lands on the entries it was cut from, and every
# entry is divided by the weight of those who trained it.

# %%
from raffm_ray.axes import scatter_add_selected
from raffm_ray.layout import selections

shapes = architecture.shapes
summed = {name: torch.zeros(shape) for name, shape in shapes.items()}
weight = {name: torch.zeros(shape) for name, shape in shapes.items()}
for client, one in enumerate(plans.values(), 1):
    for name, chosen in selections(shapes, layout, one).items():
        change = torch.full_like(take_all(parameters, layout, one)[name], float(client))  # as if every entry had changed by this
        scatter_add_selected(summed[name], change, chosen)
        scatter_add_selected(weight[name], torch.ones_like(change), chosen)
mean = {name: summed[name] / weight[name].clamp(min=1) for name in summed}
sorted({value for values in mean.values() for value in values.unique().tolist()})

# %% [markdown]
# Entries that all three trained moved by (1 + 2 + 3) / 3, those that only the larger two trained by (2 + 3) / 2, those of the largest alone by 3.
# That is one round. `2_a_simulation` runs a hundred devices.
