"""How large a plan leaves each dim. No index is touched here."""

from math import prod

from raffm_ray.axes.indexing import Axes, Dim, Plan, dim_axes, kept_size


def dim_products(dim: Dim) -> list[tuple[str, ...]]:
    """A dim as a sum of products of axes: one product, or one for each part of a fused dim."""
    if dim and not isinstance(dim[0], str):
        return [axes for part in dim if not isinstance(part, str) for axes in dim_products(part)]
    return [tuple(dim_axes(dim))]


def kept_length(dim: Dim, axes: Axes, plan: Plan) -> int:
    """How long the plan leaves a dim; 1 for the dim of no axis."""
    return sum(prod(kept_size(name, axes, plan) for name in names) for names in dim_products(dim))


def innermost(dim: Dim) -> str:
    """The last axis of a product: that of a head's own dimensions."""
    return dim_axes(dim)[-1]
