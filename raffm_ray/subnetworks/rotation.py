"""Exact changes of basis inside attention heads, after which the leading query/key and value dimensions carry the most.

A head's scores q'k and its output O c (c: the context, its weighted mean of values) do not change when q <- A q, k <- A^-T k,
v <- M v, O <- O M^-1 for any invertible A and M. With calibrated second moments, the basis of the singular value decomposition is the
one in which keeping the first dimensions loses least, for every size at once (Eckart and Young 1936, as in ASVD and SVD-LLM):

- query/key: with Cq = E[q q'], Ck = Cov(k) and Cq^1/2 Ck^1/2 = U S V', A = S^1/2 U' Cq^-1/2 and A^-T = S^1/2 V' Ck^-1/2. The mean of
  the keys is left out because it adds the same to every score of a query, which softmax does not see;
- value/output: with C = Cov(c) and O C^1/2 = U S V', M = S^1/2 V' C^-1/2.

Moments are sums over positions that clients may report and the server adds. Without them the covariances are those of the weights
under inputs of mean 0 and covariance 1. What is rotated follows from the layout alone: which parameters write and read an axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raffm_ray.axes.dim_sizes import dim_products, innermost
from raffm_ray.axes.indexing import dim_size
from raffm_ray.axes.layout import Layout
from raffm_ray.basics.errors import UserError, look_up
from raffm_ray.models.hooks import observe, real_positions
from raffm_ray.subnetworks.calibration import Statistics

RIDGE = 1e-6  # added to covariances, as a fraction of the mean square: a head of deficient rank stays invertible
SMALLEST = 1e-3  # value dimensions are scaled as if no singular value were below this fraction of its head's largest


@dataclass(frozen=True)
class Place:
    """Where an axis occurs: at a `position` of a parameter's shape, in that `part` of the dim if it is fused."""

    parameter: str
    position: int
    part: int | None = None

    @property
    def module(self) -> str:
        """The path of the layer that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Ends:
    """The parameters that carry an axis.

    `writers`: the linear layers that produce it, in the model's order (of queries and keys, queries come first), each as its
    weight and, where it has them, its bias and its adapter's. `readers`: the linear layers contracted with it; `followers`: their adapters';
    `others`: all else, such as norms.
    """

    writers: tuple[tuple[Place, ...], ...]
    readers: tuple[Place, ...]
    followers: tuple[Place, ...]
    others: tuple[Place, ...]


def ends(layout: Layout, name: str) -> Ends:
    """Who writes and who reads an axis."""
    places = {
        Place(key, position, part if len(dim_products(dim)) > 1 else None): spec
        for key, spec in layout.parameters.items()
        for position, dim in enumerate(spec.dims)
        for part, product in enumerate(dim_products(dim))
        if name in product
    }
    linear = {one: spec for one, spec in places.items() if spec.matmul and len(spec.dims) == 2 and not spec.adapts}
    followers = tuple(one for one, spec in places.items() if spec.adapts and one.position == spec.reads)
    within = {one: (spec.adapts or one.parameter).rpartition(".")[0] for one, spec in places.items() if one not in followers}
    writers = tuple(
        (one, *(other for other in within if other not in linear and within[other] == one.module and other.part == one.part))
        for one, spec in linear.items()
        if one.position != spec.reads
    )
    readers = tuple(one for one, spec in linear.items() if one.position == spec.reads)
    known = (*sum(writers, ()), *readers, *followers)
    return Ends(writers, readers, followers, tuple(one for one in places if one not in known))


def _ancestors(layout: Layout, name: str) -> list[str]:
    """The axes that an axis is nested in, outermost first."""
    parent = layout.axes[name].parent
    return [*_ancestors(layout, parent), parent] if parent else []


def axis_view(values: Tensor, layout: Layout, name: str, place: Place, position: int | None = None) -> Tensor:
    """The part of a tensor in which an axis occurs, as a view of shape [ancestors..., size, rest...].

    `rest` is every other dim of the tensor and every other axis of the dim (the query heads of a key/value group). `values` is the
    parameter of `place`, or, with `position`, any tensor that has the parameter's dim there, such as its layer's activations.
    """
    dim = layout.parameters[place.parameter].dims[place.position]
    position = place.position if position is None else position
    products = dim_products(dim)
    if place.part is not None:
        sizes = [dim_size(tuple(product), layout.axes) for product in products]
        values = values.narrow(position, sum(sizes[: place.part]), sizes[place.part])
    inside = products[place.part or 0]
    values = values.unflatten(position, [layout.axes[one].size for one in inside])
    front = [position + inside.index(one) for one in (*_ancestors(layout, name), name)]
    return values.movedim(front, tuple(range(len(front))))


def _columns(view: Tensor, layout: Layout, name: str) -> Tensor:
    """A view of `axis_view` as float64 [ancestors..., size, everything else]."""
    return view.double().reshape(*view.shape[: len(_ancestors(layout, name)) + 1], -1)


def rotatable(layout: Layout) -> dict[str, str | None]:
    """For "qk" and "vo": None where the model's dimensions of that kind can be rotated, else the reason why they cannot."""
    if not layout.attentions:
        return dict.fromkeys(("qk", "vo"), "the model has no attention")
    found = {
        "qk": [_qk_reason(layout, innermost(site.qk)) for site in layout.attentions],
        "vo": [_vo_reason(layout, innermost(site.vo)) for site in layout.attentions],
    }
    return {kind: next(filter(None, reasons), None) for kind, reasons in found.items()}


def _qk_reason(layout: Layout, name: str) -> str | None:
    found = ends(layout, name)
    if not layout.axes[name].parent:
        return f"{name!r} is nested in no axis of heads: its indices are rotary pairs, or have one order for all heads"
    if strangers := (*found.others, *found.readers):
        return f"{name!r} is also in {strangers[0].parameter}, which is not a projection to queries or keys"
    return _shape_reason(layout, name, found, writers=2)


def _vo_reason(layout: Layout, name: str) -> str | None:
    found = ends(layout, name)
    if found.others:
        return f"{name!r} is also in {found.others[0].parameter}, which is neither a projection to values nor one from them"
    return _shape_reason(layout, name, found, writers=1) if found.readers else f"{name!r} is read by no projection"


def _shape_reason(layout: Layout, name: str, found: Ends, writers: int) -> str | None:
    if len(found.writers) != writers:
        return f"{name!r} is written by {len(found.writers)} projections, not {writers}"
    outside = _ancestors(layout, name)
    for place in (*sum(found.writers, ()), *found.readers):
        product = dim_products(layout.parameters[place.parameter].dims[place.position])[place.part or 0]
        if not set(outside) <= set(product):
            return f"{name!r} does not stand inside {outside} in {place.parameter}"
    return None


def _roles(layout: Layout) -> list[tuple[str, str, Place, bool]]:
    """(axis, role, place, whether it is measured at the layer's input) of all activations that calibrate a rotation."""
    kinds = _chosen(layout, None)
    pairs = [(name, ends(layout, name).writers) for name in _names(layout, kinds, "qk")]
    roles = [(name, role, one[0], False) for name, pair in pairs for role, one in zip(("query", "key"), pair, strict=True)]
    return roles + [(name, "context", ends(layout, name).readers[0], True) for name in _names(layout, kinds, "vo")]


def _names(layout: Layout, kinds: Iterable[str], kind: str) -> list[str]:
    """The axes of one kind, if it is among those asked for."""
    return list(dict.fromkeys(innermost(getattr(site, kind)) for site in layout.attentions)) if kind in kinds else []


def _chosen(layout: Layout, kinds: Sequence[str] | None) -> list[str]:
    reasons = rotatable(layout)
    if kinds is None:
        return [kind for kind, reason in reasons.items() if reason is None]
    for kind in kinds:
        if reason := look_up(reasons, kind, "kind of dimensions to rotate"):
            raise UserError(f"the {kind} dimensions of this model cannot be rotated: {reason}; leave {kind!r} out")
    return list(kinds)


def collect_moments(model: nn.Module, layout: Layout, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums over positions of x x' with x = (activation, 1), for the query, key and context of every head; float64, on the CPU.

    Shapes: [ancestors..., size + 1, size + 1]; the last row holds the sum of the activations and the count. Only kinds that can be
    rotated are measured. Positions that a batch's `attention_mask` (or `decoder_attention_mask`) calls padding are left out where
    its shape is that of the positions. The sums of two sets of batches add (`salience.add_statistics`).
    """
    totals: dict[str, Tensor] = {}
    batch: dict[str, Tensor] = {}

    def measure(name: str, role: str, place: Place, states: Tensor) -> None:
        rows = real_positions(states.detach(), batch, layout.parameters[place.parameter].matmul)
        values = _columns(axis_view(rows, layout, name, place, position=1), layout, name)
        values = torch.cat([values, torch.ones_like(values[..., :1, :])], dim=-2)
        sums, key = (values @ values.mT).cpu(), f"moments@{name}@{role}"
        totals[key] = totals.get(key, torch.zeros_like(sums)) + sums

    handles: list[RemovableHandle] = []
    for name, role, place, at_input in _roles(layout):
        module, caught = model.get_submodule(place.module), partial(measure, name, role, place)
        # `caught` is bound now: a closure would see the last one in every hook.
        if at_input:
            handles.append(module.register_forward_pre_hook(lambda _, inputs, caught=caught: caught(inputs[0])))
        else:
            handles.append(module.register_forward_hook(lambda _, __, output, caught=caught: caught(output)))
    observe(model, handles, batches, batch)
    return totals


def rotate(
    layout: Layout, parameters: Mapping[str, Tensor], moments: Statistics | None = None, kinds: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The full model's parameters in the singular basis of every head, leading dimensions first: the same function, to rounding.

    `moments`: of `collect_moments`; None rotates by the weights alone. `kinds`: of "qk" and "vo", by default all that can be rotated.
    Parameters that do not change are those given, not copies. Orders, statistics and optimizer state of the old basis do not fit
    the new one. Raises UserError for a kind that cannot be rotated, or moments that are missing, of another shape or not finite.
    """
    kinds = _chosen(layout, kinds)
    rotated: dict[str, Tensor] = {}  # float64: a basis and its inverse cancel to 1e-5 only there

    def view(name: str, place: Place) -> Tensor:
        if place.parameter not in rotated:
            rotated[place.parameter] = parameters[place.parameter].detach().double().clone()
        return axis_view(rotated[place.parameter], layout, name, place)

    def gram(name: str, place: Place) -> Tensor:
        return (values := _columns(view(name, place), layout, name)) @ values.mT

    def apply(name: str, places: Iterable[Place], matrix: Tensor) -> None:
        for place in places:
            part = view(name, place)
            part.copy_((matrix @ _columns(part, layout, name)).reshape(part.shape))

    for name in _names(layout, kinds, "qk"):
        query, key = ends(layout, name).writers
        forward, inverse_transposed = _score_basis(
            _covariance(moments, name, "query", gram(name, query[0]), centered=False),
            _covariance(moments, name, "key", gram(name, key[0]), centered=True),
        )
        apply(name, query, forward)
        apply(name, key, inverse_transposed)
    for name in _names(layout, kinds, "vo"):
        found = ends(layout, name)
        context = _covariance(moments, name, "context", gram(name, found.writers[0][0]), centered=True)
        forward, inverse = _output_basis(context, torch.stack([gram(name, place) for place in found.readers]).sum(0))
        apply(name, found.writers[0], forward)
        apply(name, (*found.readers, *found.followers), inverse.mT)
    return {name: rotated[name].to(values.dtype) if name in rotated else values for name, values in parameters.items()}


def _covariance(moments: Statistics | None, name: str, role: str, of_weights: Tensor, centered: bool) -> Tensor:
    """E[x x'] or Cov(x) plus a ridge, positive definite, [ancestors..., size, size]; the identity for a head that is dead."""
    square = covariance = of_weights
    if moments is not None:
        if f"moments@{name}@{role}" not in moments:
            raise UserError(f"the moments have no {role} of {name!r}: collect them from this model")
        sums = moments[f"moments@{name}@{role}"].to(of_weights)
        shape = (*of_weights.shape[:-2], of_weights.shape[-2] + 1, of_weights.shape[-1] + 1)
        if tuple(sums.shape) != shape or not sums.isfinite().all():
            raise UserError(f"moments of the {role} of {name!r}: expected finite numbers of shape {shape}")
        means = sums / sums[..., -1:, -1:].clamp(min=1)
        square, mean = means[..., :-1, :-1], means[..., :-1, -1:]
        covariance = square - mean @ mean.mT if centered else square
    scale = square.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = torch.where(scale > torch.finfo(torch.float32).tiny, RIDGE * scale, torch.ones_like(scale))
    return covariance + ridge[..., None, None] * torch.eye(square.shape[-1]).to(square)


def _roots(square: Tensor) -> tuple[Tensor, Tensor]:
    """C^1/2 and C^-1/2."""
    values, vectors = torch.linalg.eigh(square)
    roots = values.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    return (vectors * roots[..., None, :]) @ vectors.mT, (vectors / roots[..., None, :]) @ vectors.mT


def _score_basis(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """A and A^-T of the module's docstring, from Cq and Ck."""
    (query_root, query_inverse), (key_root, key_inverse) = _roots(query), _roots(key)
    left, values, right = torch.linalg.svd(query_root @ key_root)
    scale = values.sqrt()[..., None]
    return scale * (left.mT @ query_inverse), scale * (right @ key_inverse)


def _output_basis(context: Tensor, reading: Tensor) -> tuple[Tensor, Tensor]:
    """M and M^-1 of the module's docstring, from C and O'O (a sum over readers, and over the query heads of a group)."""
    root, inverse = _roots(context)
    values, vectors = torch.linalg.eigh(root @ reading @ root)
    values, vectors = values.flip(-1).clamp(min=0).sqrt(), vectors.flip(-1)
    # Any positive scale is exact; that of a direction that nobody reads must not be zero.
    scale = torch.where(values[..., :1] > 0, values.maximum(SMALLEST * values[..., :1]), 1.0).sqrt()
    return scale[..., None] * (vectors.mT @ inverse), (root @ vectors) / scale[..., None, :]
