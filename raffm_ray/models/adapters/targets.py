"""The projections of a layout by what they are for, whatever the family calls them, and those that settings name."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from raffm_ray.axes.dim_sizes import dim_products, innermost
from raffm_ray.axes.indexing import dim_axes
from raffm_ray.axes.layout import Attention, Layout, Parameter, module_of
from raffm_ray.basics.errors import UserError, near_miss

KINDS = ("query", "key", "value", "output", "gate", "up", "down")
"""What a projection of an attention, or of the FFN behind it, is for."""
ALL = "all"


def linear_weights(layout: Layout) -> dict[str, Parameter]:
    """The weights of linear layers that are nothing else too, such as a table of words, by name."""
    return {
        name: spec
        for name, spec in layout.parameters.items()
        if spec.matmul and len(spec.dims) == 2 and spec.module is None and not spec.raw and not spec.adapts
    }


def _of_site(site: Attention, linear: Mapping[str, Parameter]) -> Iterator[tuple[str, str]]:
    """(kind, weight), in the model's order: of those that make dimensions of queries and keys the first makes queries; of two that make an
    FFN's neurons the first is the gate. A fused projection is of several kinds."""
    qk, vo = innermost(site.qk), innermost(site.vo)
    made = [(axes[-1], name) for name, spec in linear.items() for axes in dim_products(spec.dims[1 - spec.reads]) if axes]
    neurons = [name for name, spec in linear.items() if site.ffn and spec.dims[1 - spec.reads] == site.ffn]
    yield from zip(("query", "key"), (name for axis, name in made if axis == qk), strict=True)
    yield from (("value", name) for axis, name in made if axis == vo)
    yield from zip(("gate", "up")[2 - len(neurons) :], neurons, strict=True)
    for name, spec in linear.items():
        read = spec.dims[spec.reads]
        if vo in dim_axes(read):
            yield "output", name
        elif site.ffn and read == site.ffn:
            yield "down", name


def projections(layout: Layout) -> dict[str, tuple[str, ...]]:
    """The weight of every projection of an attention or FFN -> its kinds, in the model's order."""
    linear, found = linear_weights(layout), dict[str, tuple[str, ...]]()
    for site in layout.attentions:
        for kind, name in _of_site(site, linear):
            found[name] = (*found.get(name, ()), kind)
    return {name: found[name] for name in linear if name in found}


def adapted_weights(layout: Layout, targets: Sequence[str]) -> list[str]:
    """The weights that `targets` name, in the model's order: by kind of projection, `all` of them, or patterns of names of modules (as of
    `fnmatch`). Raises UserError for one that names none."""
    linear, kinds = linear_weights(layout), projections(layout)
    chosen = set[str]()
    for target in targets:
        if target == ALL:
            named = set(kinds)
        elif target in KINDS:
            named = {name for name, of in kinds.items() if target in of}
        else:
            named = {name for name in linear if fnmatchcase(module_of(name), target)}
        if not named:
            there = [ALL, *dict.fromkeys(kind for of in kinds.values() for kind in of)]
            known = near_miss(target, there if target.isidentifier() else [*map(module_of, linear)])
            raise UserError(
                f"model.adapters.targets: {target!r} names no linear layer of this model{known} (kinds: {', '.join(there)}; or a pattern of "
                "names of modules)"
            )
        chosen |= named
    return [name for name in linear if name in chosen]
