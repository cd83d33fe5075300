"""Activations: what is in memory of one example while a plan's module is trained, by its blocks, or answers. Estimates in closed form."""

from collections import Counter
from functools import lru_cache

from raffm_ray.axes.dim_sizes import kept_length
from raffm_ray.axes.indexing import Plan, kept_size
from raffm_ray.axes.layout import block_of, is_kept
from raffm_ray.models.architecture import Architecture
from raffm_ray.subnetworks.backward_costs import Gradients, gradients

OUTSIDE = ""
"""In place of a block, for what is in none: embeddings, heads, the last norm."""


@lru_cache(maxsize=32)
def _layer_axes(architecture: Architecture) -> frozenset[str]:
    return frozenset(architecture.layout.layer_axes)


def layers_of(architecture: Architecture, plan: Plan) -> Plan:
    """The part of a plan that says which layers stay."""
    return Plan({name: plan[name] for name in _layer_axes(architecture) if name in plan})


@lru_cache(maxsize=256)
def gradients_of(architecture: Architecture, layers: Plan) -> Gradients:
    """What training computes and keeps of a plan with these layers."""
    adapters = architecture.adapters
    return gradients(architecture.layout, layers, dropping=adapters is not None and adapters.dropout > 0)


@lru_cache(maxsize=256)
def recomputed_blocks(architecture: Architecture, layers: Plan) -> frozenset[str]:
    """The blocks of a plan with these layers whose forward pass runs again in the backward pass: those in which anything takes a gradient, where the
    architecture `recomputes` at all."""
    if not architecture.recomputes:
        return frozenset()
    inputs, specs = gradients_of(architecture, layers).inputs, architecture.layout.parameters
    taking = (name for name, spec in specs.items() if is_kept(spec.layer, layers) and (not spec.frozen or name in inputs))
    return frozenset(block_of(name, architecture.layout) for name in taking) - {OUTSIDE}


def activation_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the floats that autograd keeps for one example until the backward pass; `saved` is the family's (see `SavedActivations`).

    Per token and norm: `saved.residual` residual streams (its input, its output) and `saved.norm` single numbers; there is a norm
    before or after every attention and FFN, and one at the end of every stack. `saved.ffn` FFN widths. Query, key, value and context
    of every query head (padded to the larger of the two sizes when they differ, see models/attention.py; keys and values
    that heads share are repeated), a copy of the context and one log-sum-exp a head, `saved.scores` attention matrices, and
    `saved.qk` queries and unrepeated keys. The copy is only made where the sizes differ; it is always counted, so that more units never cost less. `saved.logits` copies of
    the output at every position. Dropout adds what models/saved_activations.py says.

    Where parameters are frozen, what only their gradients need is not kept, nor anything before the first trained one. An adapter keeps what
    its first projection makes, a number a rank; with dropout also what is left of what that reads, and the mask.

    Where blocks are recomputed (Chen et al. 2016, arXiv 1604.06174, section 4.1), what each reads is kept, a residual stream, and all else of
    one block at a time: the largest counts.
    """
    kept, again = _by_block(architecture, plan), recomputed_blocks(architecture, layers_of(architecture, plan))
    streams = {block_of(site.module, architecture.layout): site.queries for site in architecture.layout.attentions}
    read = sum(architecture.positions[streams[block]] for block in again) * kept_size("residual", architecture.layout.axes, plan)
    staying = sum(floats for block, floats in kept.items() if block not in again)
    return staying + read + max((kept.get(block, 0) for block in again), default=0)


def made_floats(architecture: Architecture, plan: Plan) -> int:
    """The same if no block is recomputed."""
    return sum(_by_block(architecture, plan).values())


def _by_block(architecture: Architecture, plan: Plan) -> dict[str, int]:
    """What is kept of every block, if none is recomputed."""
    layout, saved, positions = architecture.layout, architecture.saved, architecture.positions
    needed = gradients_of(architecture, layers_of(architecture, plan))
    residual, total = kept_size("residual", layout.axes, plan), Counter[str]()
    for name in layout.norms:
        count = positions[layout.norm_positions.get(name, "tokens")]
        streams = saved.residual - 1 - saved.gain * layout.parameters[f"{name}.weight"].frozen
        block = block_of(name, layout)
        total[block] += count * (streams * residual + saved.norm) * (name in needed.norms)
        total[block] += count * residual * (name in needed.outputs)
    for site in layout.attentions:
        if not is_kept(site.layer, plan):
            continue
        heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
        queries, keys, larger = positions[site.queries], positions[site.keys], max(qk, vo)
        found, block = needed.sites[site.module], block_of(site.module, layout)
        if found.scores or found.value:
            total[block] += heads * (queries * (2 * larger + 1) + keys * 2 * larger + saved.scores * queries * keys)
        total[block] += heads * queries * min(qk, vo) * found.context_kept
        if saved.qk and found.query_key:
            groups = kept_length(site.groups or site.heads, layout.axes, plan)
            total[block] += (saved.qk - saved.gain * (not found.gains)) * qk * (queries * heads + keys * groups)
        if site.ffn is not None:
            width = queries * kept_length(site.ffn, layout.axes, plan)
            total[block] += (saved.ffn - 1) * width * found.ffn + width * found.ffn_kept
    for name in needed.ranks:
        spec = layout.parameters[name]
        total[block_of(name, layout)] += positions[spec.matmul or ""] * kept_length(spec.dims[1], layout.axes, plan)
    for name, copies in needed.dropped.items():
        spec, width = layout.parameters[name], architecture.shapes[name][1]
        reads = kept_length(spec.dims[1], layout.axes, plan) if spec.dims[1] else width
        total[block_of(name, layout)] += copies * positions[spec.matmul or ""] * reads
    total[OUTSIDE] += saved.logits * output_floats(architecture)
    return total


def output_floats(architecture: Architecture) -> int:
    """Numbers that a model answers one example with: those of matrices whose output no axis cuts."""
    return sum(
        architecture.positions[spec.matmul] * architecture.shapes[name][1 - spec.reads]
        for name, spec in architecture.layout.parameters.items()
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads] and not spec.adapts
    )


def live_floats(architecture: Architecture, plan: Plan) -> int:
    """Estimate of the most activations that are in memory at once while one example is answered, without gradients.

    Where a layer is at work: the residual stream and its normed copy, and the larger of two: queries, keys and values (all padded to the
    larger size where sizes differ) with the context; or the FFN before and after its activation. Or the stream and the output at every
    position. Fused attention keeps no matrix of scores; a cache of keys and values is not counted.
    """
    layout, positions = architecture.layout, architecture.positions
    residual, most = kept_size("residual", layout.axes, plan), 0
    for site in layout.attentions:
        if not is_kept(site.layer, plan):
            continue
        heads, qk, vo = (kept_length(dim, layout.axes, plan) for dim in (site.heads, site.qk, site.vo))
        queries, keys = positions[site.queries], positions[site.keys]
        inside = heads * max(qk, vo) * (2 * queries + 2 * keys)
        ffn = 2 * queries * kept_length(site.ffn, layout.axes, plan) if site.ffn is not None else 0
        most = max(most, 2 * queries * residual + max(inside, ffn))
    for name, spec in layout.parameters.items():
        if spec.matmul and len(spec.dims) == 2 and not spec.dims[1 - spec.reads] and not spec.adapts:
            most = max(most, positions[spec.matmul] * (residual + architecture.shapes[name][1 - spec.reads]))
    return most
