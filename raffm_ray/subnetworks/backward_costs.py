"""The costs of a backward pass with frozen parameters: which gradients it computes and which activations it needs. No module is built.

Autograd computes a parameter's gradient where it is trained, and that of what it reads where something trained lies before. A walk
along the model tells which these are, and has to know one order only: along each stream, norms N and sublayers S (attention, FFN)
alternate, N S N S ... N, whether the first norm is the embeddings' or the last one the stack's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from raffm_ray.axes.dim_sizes import dim_products, innermost
from raffm_ray.axes.indexing import Plan, dim_axes
from raffm_ray.axes.layout import Attention, Layout, is_kept, module_of

ROOT, HEAD = ("root", ""), ("head", "")
Part = tuple[str, str]
"""What a parameter belongs to: what streams begin with (`ROOT`), a norm, the attention or the FFN of a site, or the `HEAD`."""


@dataclass
class SiteGradients:
    """Of an attention module and the FFN behind it. `query_key`: how many of query and key take a gradient; `value`, `scores`: whether
    values and attention matrices do; `gains`: whether norms of queries and keys are trained; `ffn`: whether the FFN's activation does. `context_kept`, `ffn_kept`: whether what the last
    projection of either reads is needed for that projection's own gradient."""

    query_key: int = 0
    value: bool = False
    scores: bool = False
    gains: bool = False
    context_kept: bool = False
    ffn: bool = False
    ffn_kept: bool = False


@dataclass
class Gradients:
    """`inputs`: parameters of matrix products whose input takes a gradient; `sites`: by attention module; `norms`: those that keep what
    they read; `outputs`: those of which trained projections keep what they return; `ranks`: second projections of adapters that keep what they
    read; `dropped`: first ones -> how many copies of what they read are kept where dropout leaves out some of it, the mask included."""

    inputs: set[str] = field(default_factory=set)
    sites: dict[str, SiteGradients] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    ranks: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)


def parts(layout: Layout) -> dict[Part, list[str]]:
    """The parameters of every part, in the model's order."""
    by_axis: dict[str, Part] = {}
    for site in layout.attentions:
        own = (site.heads, site.qk, site.vo, site.groups or ())
        by_axis |= dict.fromkeys(chain(*map(dim_axes, own)), ("attention", site.module))
        by_axis |= dict.fromkeys(dim_axes(site.ffn or ()), ("ffn", site.module))
    of_module: dict[str, Part] = {}
    for name, spec in layout.parameters.items():
        if spec.adapts:
            continue
        module = module_of(name)
        around = [site.module for site in layout.attentions if name.startswith(f"{site.module}.")]
        if owners := [by_axis[axis] for dim in spec.dims for axis in dim_axes(dim) if axis in by_axis]:
            of_module[module] = owners[0]
        elif module in layout.norms:
            of_module[module] = ("norm", module)
        elif around and module not in of_module:  # a table of position biases
            of_module[module] = ("attention", around[0])
        elif spec.matmul and not spec.raw and spec.module in (None, module):
            of_module[module] = HEAD
    found: dict[Part, list[str]] = {}
    for name, spec in layout.parameters.items():
        found.setdefault(of_module.get(module_of(spec.adapts or name), ROOT), []).append(name)
    return found


class _Walk:
    """`flows`: by stream, whether it takes a gradient so far; `waiting`: its norms still to come; `last`: the one before; `biased`:
    streams whose self-attention adds position biases that are trained."""

    def __init__(self, layout: Layout, layers: Plan, dropping: bool) -> None:
        self.specs, self.parts, self.found, self.dropping = layout.parameters, parts(layout), Gradients(), dropping
        self.kept = {name for name, spec in self.specs.items() if is_kept(spec.layer, layers)}
        self.waiting: dict[str, list[str]] = {}
        for name in layout.norms:
            self.waiting.setdefault(layout.norm_positions.get(name, "tokens"), []).append(name)
        self.flows = dict.fromkeys(self.waiting, self.trains(self.of(ROOT)))
        self.last: dict[str, str] = {}
        self.biased: set[str] = set()
        self.adapters: dict[str, list[str]] = {}
        for name, spec in layout.parameters.items():
            if spec.adapts:
                self.adapters.setdefault(spec.adapts, []).append(name)

    def of(self, part: Part, weights: bool = False) -> list[str]:
        """The parameters of a part that the plan keeps; `weights`: only those in matrix products, without adapters."""
        own = [name for name in self.parts.get(part, []) if name in self.kept]
        return [name for name in own if self.specs[name].matmul and not self.specs[name].adapts] if weights else own

    def trains(self, names: Iterable[str]) -> bool:
        return any(not self.specs[name].frozen for name in names)

    def reads(self, weight: str) -> bool:
        """Whether the gradient of a weight, or of the adapter's projection that reads the same, needs what both read."""
        return self.trains([weight] if self.dropping else [weight, *self.adapters.get(weight, [])[:1]])

    def project(self, weight: str, part: Part, flows: bool, stream: str | None = None) -> bool:
        """Whether the result of a projection takes a gradient, if what it reads, of a stream or not, does."""
        down_up = self.adapters.get(weight, [])
        if flows:
            self.found.inputs |= {weight, *down_up[:1]}
        if flows or self.trains(down_up[:1]):
            self.found.inputs |= {*down_up[1:]}
        if self.dropping:
            self.found.dropped |= {name: self.trains([name]) + flows for name in down_up[:1]}
        self.found.ranks |= {name for name in down_up[1:] if self.trains([name])}
        if stream in self.last and self.reads(weight):
            self.found.outputs.add(self.last[stream])
        own = (name for name in self.of(part) if module_of(self.specs[name].adapts or name) == module_of(weight))
        return flows or self.trains(own)

    def norm(self, stream: str) -> None:
        name = self.waiting[stream].pop(0)
        if names := self.of(("norm", name)):
            self.last[stream] = name
            self.flows[stream] |= self.trains(names)
            if self.flows[stream]:
                self.found.norms.add(name)

    def end(self, stream: str) -> None:
        while self.waiting[stream]:
            self.norm(stream)

    def attention(self, site: Attention, part: Part) -> SiteGradients:
        qk, vo, weights = innermost(site.qk), innermost(site.vo), self.of(part, weights=True)
        outwards = [name for name in weights if vo in dim_axes(self.specs[name].dims[self.specs[name].reads])]
        query_key, value = [], False
        for name in weights:
            spec = self.specs[name]
            if name not in outwards:
                stream = str(spec.matmul)
                flows = self.project(name, part, self.flows[stream], stream)
                made = [axes[-1] for axes in dim_products(spec.dims[1 - spec.reads])]
                query_key += [flows] * made.count(qk)
                value |= flows and vo in made
        alone = [name for name in self.of(part) if not self.specs[name].adapts and module_of(name) not in map(module_of, weights)]
        normed = [name for name in alone if qk in chain(*map(dim_axes, self.specs[name].dims))]  # the query's norm, the key's
        query_key = [flows or self.trains(normed[at : at + 1]) for at, flows in enumerate(query_key)]
        if self.trains(name for name in alone if name not in normed):
            self.biased.add(site.queries)
        scores = any(query_key) or (site.queries == site.keys and site.queries in self.biased)
        for name in outwards:
            self.project(name, part, scores or value)
        return SiteGradients(
            query_key=sum(query_key),
            value=value,
            scores=scores,
            gains=self.trains(normed),
            context_kept=any(map(self.reads, outwards)),
        )

    def ffn(self, site: Attention, part: Part, found: SiteGradients) -> None:
        weights, inside = self.of(part, weights=True), dim_axes(site.ffn or ())
        down = [name for name in weights if dim_axes(self.specs[name].dims[self.specs[name].reads]) == inside]
        for name in weights:
            if name not in down:
                found.ffn |= self.project(name, part, self.flows[site.queries], site.queries)
        found.ffn_kept = any(map(self.reads, down))
        for name in down:
            self.project(name, part, found.ffn)

    def site(self, site: Attention) -> None:
        attention, ffn, stream = ("attention", site.module), ("ffn", site.module), site.queries
        if site.keys != stream:
            self.end(site.keys)
        self.norm(stream)
        found = SiteGradients()
        if self.of(attention):
            found = self.found.sites[site.module] = self.attention(site, attention)
            self.flows[stream] |= found.scores or found.value or self.trains(self.of(attention))
        if site.ffn is not None:
            self.norm(stream)
            if self.of(ffn):
                self.ffn(site, ffn, found)
                self.flows[stream] |= self.trains(self.of(ffn))


def gradients(layout: Layout, layers: Plan, dropping: bool = False) -> Gradients:
    """What training computes and keeps; of a plan only its `layers` matter: the axes that count layers. `dropping`: whether adapters leave out some of
    what they read."""
    walk = _Walk(layout, layers, dropping)
    for site in layout.attentions:
        walk.site(site)
    for stream in walk.waiting:
        walk.end(stream)
    written = layout.attentions[-1].queries
    tied = [name for name in walk.of(ROOT, weights=True) if not layout.parameters[name].raw]
    flows, stream = walk.flows[written], written
    for name in [*walk.of(HEAD, weights=True), *tied]:
        flows, stream = walk.project(name, HEAD, flows, stream), ""
    return walk.found
