"""Subnetworks that the family's own configuration describes: whole layers dropped, or the FFN of all layers equally narrow.

They are saved as plain checkpoints, which transformers loads without this package.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from raffm_ray.axes.indexing import Plan, dim_axes, kept_size, selected_shape
from raffm_ray.axes.layout import Layout, is_kept, selections
from raffm_ray.models.architecture import FAMILIES, Architecture, architecture_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.subnetworks.extraction import kind_of

GIVEN_BY_US = {
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "problem_type",
    "return_dict",
    "model_type",
}


@dataclass(frozen=True)
class Stock:
    """A stock model that a subnetwork equals. `names`: what each of its parameters is called there."""

    architecture: Architecture
    names: Mapping[str, str]


def stock_form(architecture: Architecture, plan: Plan) -> Stock | None:
    """The stock model that a plan's subnetwork is, None where no configuration of the family describes it."""
    layout, known = architecture.layout, FAMILIES[architecture.config.model_type].stock
    fields = {name: value for name, value in architecture.config.to_dict().items() if name not in GIVEN_BY_US}
    dropped = {axis: set(range(layout.axes[axis].size)) - set(plan[axis].tolist()) for axis in layout.layer_axes if axis in plan}
    widths: dict[str, set[int]] = {}
    for name in layout.axes:
        if name not in layout.layer_axes and _is_present(layout, name, plan):
            widths.setdefault(kind_of(name), set()).add(kept_size(name, layout.axes, plan))
    for name in plan:
        kind = name if name in layout.layer_axes else kind_of(name)
        if kind not in known or len(widths.get(kind, {0})) > 1:
            return None
        fields[known[kind]] = len(plan[name]) if name in layout.layer_axes else plan[name].shape[-1]
    for axis, gone in dropped.items():
        for field, value in fields.items():
            if isinstance(value, list) and len(value) == layout.axes[axis].size and field == "layer_types":
                fields[field] = [one for at, one in enumerate(value) if at not in gone]
    made = architecture_of(parse_config({**fields, "model_type": architecture.config.model_type}), architecture.head)
    chosen = selections(architecture.shapes, layout, plan)
    names = {name: _renamed(name, layout, plan) for name in chosen}
    shapes = {names[name]: selected_shape(architecture.shapes[name], one) for name, one in chosen.items()}
    return Stock(made, names) if shapes == dict(made.shapes) else None


def _is_present(layout: Layout, axis: str, plan: Plan) -> bool:
    """Whether some layer that is kept has the axis."""
    return any(
        is_kept(spec.layer, plan) and any(axis in dim_axes(dim) for dim in spec.dims) for spec in layout.parameters.values()
    )


def _renamed(name: str, layout: Layout, plan: Plan) -> str:
    """A parameter's name when the layers that are kept are numbered anew."""
    layer = layout.parameters[name].layer
    if layer is None or layer[0] not in plan:
        return name
    parts = name.split(".")
    parts[parts.index(str(layer[1]))] = str(sorted(plan[layer[0]].tolist()).index(layer[1]))
    return ".".join(parts)
