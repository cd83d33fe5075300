"""Makes the modules of subnetworks in a worker. Between blocks it caches only modules without weights and the indices of cuts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from raffm_ray.axes.indexing import Plan, Selections, selected_shape, take_selected
from raffm_ray.axes.layout import selections
from raffm_ray.axes.nesting import cut_layout, within
from raffm_ray.basics.profiling import Stopwatch
from raffm_ray.clients.local_training import Prefix
from raffm_ray.models.architecture import Architecture, skeleton, skeleton_key, with_sketches
from raffm_ray.models.first_position import compute_first_position
from raffm_ray.models.freezing import ALIGNMENT, only_trained
from raffm_ray.models.modules import install, recompute_blocks
from raffm_ray.models.stacked_modules import StackedModule, stacked_skeleton
from raffm_ray.models.word_rows import WordRows, look_up_places, use_rows
from raffm_ray.subnetworks.calibration import Statistics
from raffm_ray.subnetworks.norm_correction import correct_norms, norm_factors, relative_factors

T = TypeVar("T")
Parameters = Mapping[str, Tensor]
REMEMBERED = 32
"""Modules without weights, and cuts, that a worker keeps for reuse."""
FROZEN_BYTES = 1 << 30
"""Of frozen parameters, cut for plans, that a worker keeps at most; those of the plan at work stay in any case."""


def _is_aligned(values: Tensor) -> bool:
    return values.data_ptr() % ALIGNMENT == 0


def _own_bytes(cut: Parameters) -> int:
    """Of tensors that are no views: what a plan keeps whole takes no memory of its own."""
    return sum(values.nbytes for values in cut.values() if values._base is None)


def _remember(memory: dict[object, T], key: object, make: Callable[[], T]) -> T:
    """`memory[key]`, made where it is missing; the one not used for longest is dropped beyond a fixed number."""
    value = memory.pop(key) if key in memory else make()
    memory[key] = value
    if len(memory) > REMEMBERED:
        memory.pop(next(iter(memory)))
    return value


@dataclass
class Skeleton:
    """A module for plans of the same widths, and the weightless parameters that it holds while it is not used."""

    architecture: Architecture
    module: nn.Module
    empty: dict[str, Tensor]

    def release(self) -> None:
        """Takes weights and gradients out of the module."""
        install(self.module, self.empty)
        use_rows(self.architecture, self.module, None)


@dataclass
class ModuleFactory:
    """Makes the modules of one architecture's plans on one device, and remembers their skeletons, the last used ones. `watch`: counts
    the time that it takes. Of the modules that it makes next: `attention`, None for the architecture's own; `precision`, in which they compute;
    `sketched`, whether k of r ranks count r / k; `recomputes`, whether blocks are computed again in the backward pass."""

    architecture: Architecture
    watch: Stopwatch
    device: str = "cpu"
    attention: str | None = None
    precision: str = "float32"
    sketched: bool = False
    recomputes: bool = False
    skeletons: dict[object, Skeleton] = field(default_factory=dict)
    stacks: dict[object, StackedModule] = field(default_factory=dict)
    cuts: dict[object, Selections] = field(default_factory=dict)
    inner_cuts: dict[object, Selections] = field(default_factory=dict)
    in_use: list[Skeleton | StackedModule] = field(default_factory=list)
    frozen_cuts: dict[object, dict[str, Tensor]] = field(default_factory=dict)
    frozen_place: int = 0

    @property
    def asked(self) -> Architecture:
        """The architecture as modules are made of it next."""
        return with_sketches(self.architecture, self.sketched)

    def selections(self, plan: Plan) -> Selections:
        """What a plan keeps of every parameter."""
        return _remember(
            self.cuts, plan.key, lambda: self._placed(selections(self.architecture.shapes, self.architecture.layout, plan))
        )

    def selections_within(self, plan: Plan, outer: Plan) -> Selections:
        """What a plan keeps of every parameter of a larger plan's."""
        layout, shapes = self.architecture.layout, self.architecture.shapes

        def found() -> Selections:
            sizes = {name: selected_shape(shapes[name], selected) for name, selected in self.selections(outer).items()}
            return self._placed(selections(sizes, cut_layout(layout, outer), within(plan, outer, layout)))

        return _remember(self.inner_cuts, (plan.key, outer.key), found)

    def _placed(self, chosen: Selections) -> Selections:
        """Indices where they are used, so that no step waits for them."""
        return {
            name: tuple(None if index is None else index.to(self.device) for index in selected)
            for name, selected in chosen.items()
        }

    def cut(self, parameters: Parameters, plan: Plan, norms: Statistics) -> dict[str, Tensor]:
        """A plan's parameters, its norms corrected by these statistics; some may share memory with the given ones, and frozen ones with those
        of another cut."""
        frozen, chosen = self._frozen_cut(parameters, plan), self.selections(plan)
        cut = {name: frozen[name] if name in frozen else take_selected(parameters[name], chosen[name]) for name in chosen}
        return correct_norms(cut, norm_factors(plan, self.architecture.layout, norms))

    def _frozen_cut(self, parameters: Parameters, plan: Plan) -> dict[str, Tensor]:
        """A plan's frozen parameters, cut once as long as they are the same array."""
        names = self.architecture.frozen_shapes
        if not names:
            return {}
        if (place := parameters[next(iter(names))].data_ptr()) != self.frozen_place:
            self.frozen_cuts.clear()
            self.frozen_place = place
        key, chosen = (plan.key, self.precision), self.selections(plan)
        cut = self.frozen_cuts.pop(key, None) or {
            name: self._computable(name, take_selected(parameters[name], selected))
            for name, selected in chosen.items()
            if name in names
        }
        self.frozen_cuts[key] = cut
        while len(self.frozen_cuts) > 1 and sum(map(_own_bytes, self.frozen_cuts.values())) > FROZEN_BYTES:
            self.frozen_cuts.pop(next(iter(self.frozen_cuts)))
        return cut

    def _computable(self, name: str, values: Tensor) -> Tensor:
        """Frozen values in the type that they are computed with: in float32, but matrices in `precision` where they are kept in it."""
        matrix = self.architecture.layout.parameters[name].matmul is not None and values.dim() > 1
        return values if matrix and values.dtype == getattr(torch, self.precision) else values.float()

    def module(
        self, parameters: Parameters, plan: Plan, norms: Statistics, observed: bool = False, rows: WordRows | None = None
    ) -> nn.Module:
        """The plan's module with its own copy of the trained weights, until `release`; nobody writes to the frozen ones, which may be the given.

        `observed`: it computes all activations, also those that nobody but hooks reads. `rows`: what it has of its table of words, None for all.
        """
        with self.watch.during("cut"):
            cut = self.cut(parameters, plan, norms)
            if rows is not None:
                cut[rows.table] = cut[rows.table][rows.rows]
            shared = self.architecture.frozen_shapes
            owned = {
                name: values.to(self.device, copy=values is parameters[name] and not (name in shared and _is_aligned(values)))
                for name, values in cut.items()
            }
            return self._installed(plan, owned, rows, observed)

    def _installed(self, plan: Plan, parameters: Parameters, rows: WordRows | None, observed: bool = False) -> nn.Module:
        key = (self.attention, self.sketched, self.recomputes, observed, skeleton_key(self.architecture, plan))
        chosen = _remember(self.skeletons, key, lambda: self._skeleton(plan, observed))
        self.in_use.append(chosen)
        use_rows(self.architecture, chosen.module, rows)
        return install(chosen.module, parameters)

    def _skeleton(self, plan: Plan, observed: bool) -> Skeleton:
        module = look_up_places(self.architecture, skeleton(self.asked, plan, self.attention))
        if not observed:
            compute_first_position(self.architecture, plan, module)
            if self.recomputes:
                recompute_blocks(module, self.architecture.layout)
        return Skeleton(self.architecture, module, dict(module.named_parameters()))

    def stacked(self, plan: Plan) -> StackedModule:
        """The plan's module for several clients at once; it takes its weights with every call."""
        key = (self.attention, self.sketched, skeleton_key(self.architecture, plan))
        chosen = _remember(self.stacks, key, lambda: stacked_skeleton(self.asked, plan, self.attention))
        self.in_use.append(chosen)
        return chosen

    def inside(
        self, plan: Plan, outer: Plan, own: Parameters, norms: Statistics, rows: WordRows | None = None
    ) -> tuple[nn.Module, Prefix]:
        """The module of a plan inside `outer`, whose parameters are `own`, with these rows of words, and how it shares them. It has no values
        until they are read."""
        prefix = self.prefix(plan, outer, own, norms)
        prefix.read()
        module = self._installed(plan, prefix.parameters, rows).train()
        prefix.free()
        return module, prefix

    def prefix(self, plan: Plan, outer: Plan, own: Parameters, norms: Statistics, rows: Tensor | None = None) -> Prefix:
        """How a plan's parameters share those of a larger plan, `own`: of all, or of these `rows` of a stack."""
        layout, stacked = self.architecture.layout, rows is not None
        chosen = self.selections_within(plan, outer)
        device = next(iter(own.values())).device
        kind = torch.Tensor if stacked else nn.Parameter  # a stacked module takes its weights as plain tensors
        theirs = {name: kind(torch.empty(0, device=device)) for name in chosen}
        factors = relative_factors(*(norm_factors(one, layout, norms) for one in (plan, outer)))
        corrected = [
            (theirs[f"{name}.weight"], theirs.get(f"{name}.bias"), scale, shift)
            for name, (scale, shift) in factors.items()
            if f"{name}.weight" in theirs
        ]
        only_trained(theirs, layout)
        for gain, bias, *_ in corrected:
            if bias is not None and gain.requires_grad:
                bias.requires_grad_()  # a shifted bias depends on the gain, also where it is frozen itself
        shared = [(own[name], values, ((rows, *chosen[name]) if stacked else chosen[name])) for name, values in theirs.items()]
        return Prefix(theirs, shared, corrected)

    def release(self) -> None:
        """Takes the weights and gradients out of the modules used, so that only skeletons stay in memory."""
        while self.in_use:
            self.in_use.pop().release()
