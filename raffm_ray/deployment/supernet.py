"""A sorted supernet: one file of which every beginning is a subnetwork. A device reads or downloads only its part.

The entries of all parameters stand in the order in which the ranked list first needs them: those of the smallest subnetwork, then what
the first unit adds, and so on. A subnetwork is the beginning of the file. Nothing is sorted twice and no index is stored: which entries
come when follows from the list and the orders of the axes, which stand before them. Adapters are kept apart from what they adapt, since their
ranks are units too; the model that is read has them merged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from raffm_ray.axes.flat_parameters import flatten
from raffm_ray.axes.indexing import Axes, Dim, Plan, dim_axes
from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import write_atomically
from raffm_ray.deployment.partial_safetensors import Place, places, read
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.models.architecture import Architecture, adapted, architecture_of
from raffm_ray.models.model_config import parse_config
from raffm_ray.server.device_type_plans import view_of
from raffm_ray.server.state import parameters_of
from raffm_ray.server.strategies import ranked
from raffm_ray.subnetworks.budgets import budget_from
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.costs import FLOAT_BYTES, costs_of
from raffm_ray.subnetworks.extraction import longest, plan_of
from raffm_ray.subnetworks.norm_correction import correct_norms, norm_factors
from raffm_ray.subnetworks.salience import Orders, rank
from raffm_ray.subnetworks.standalone import load_standalone, save_standalone

FILE, DESCRIBED, PARAMETERS, SCHEMA = "elastic.safetensors", "elastic.json", "parameters", 1
Levels = Mapping[str, NDArray[np.int32]]
"""By axis, [size] or [parent size, size]: how long the shortest prefix of the list is that keeps an index."""


def levels_of(orders: Orders, floors: Mapping[str, int], units: Sequence[tuple[str, int]]) -> Levels:
    """The levels of every axis that has an order; 0 where an index always stays."""
    kept, by_rank = dict(floors), {name: np.zeros(np.shape(order)[-1], dtype=np.int32) for name, order in orders.items()}
    for length, (name, count) in enumerate(units, 1):
        by_rank[name][kept[name] : count] = length
        kept[name] = count
    found = {}
    for name, order in orders.items():
        rows = np.broadcast_to(by_rank[name], np.shape(order))
        found[name] = np.empty(np.shape(order), dtype=np.int32)
        np.put_along_axis(found[name], np.asarray(order), rows, axis=-1)
    return found


def dim_levels(dim: Dim, axes: Axes, levels: Levels, plan: Plan) -> NDArray[np.int32]:
    """[kept length]: the levels of what a plan keeps of a dim, in the plan's order."""
    if dim and not isinstance(dim[0], str):
        return np.concatenate([dim_levels(part, axes, levels, plan) for part in dim if not isinstance(part, str)])
    result, at = np.zeros(1, dtype=np.int32), dict[str, NDArray[np.int64]]()
    for name in dim_axes(dim):
        axis = axes[name]
        kept = plan.get(name, np.arange(axis.size))
        rows = kept[at[axis.parent]] if kept.ndim == 2 and axis.parent else np.broadcast_to(kept, (len(result), len(kept)))
        own = np.zeros(rows.shape, dtype=np.int32)
        if name in levels:
            known = levels[name]
            own = known[at[axis.parent][:, None], rows] if known.ndim == 2 and axis.parent else known[rows]
        result = np.maximum(result[:, None], own).reshape(-1)
        at = {outer: np.repeat(index, rows.shape[1]) for outer, index in at.items()} | {name: rows.reshape(-1)}
    return result


def entry_levels(architecture: Architecture, levels: Levels, plan: Plan) -> NDArray[np.int32]:
    """[entries]: the levels of all entries of a plan's subnetwork, parameter after parameter."""
    layout, found = architecture.layout, []
    for name, shape in architecture.shapes.items():
        total = np.zeros((), dtype=np.int32)
        for size, dim in zip(shape, layout.parameters[name].dims, strict=True):
            own = dim_levels(dim, layout.axes, levels, plan) if dim else np.zeros(size, dtype=np.int32)
            total = np.maximum(total[..., None], own)
        found.append(total.reshape(-1))
    return np.concatenate(found)


@dataclass(frozen=True)
class Supernet:
    """What stands before the parameters of such a file: enough to choose any subnetwork and to know where its entries go."""

    folder: Path
    architecture: Architecture
    orders: Orders
    floors: Mapping[str, int]
    units: Sequence[tuple[str, int]]
    norms: Mapping[str, Tensor]
    parameters: Place

    @cached_property
    def levels(self) -> Levels:
        """The levels of every axis."""
        return levels_of(self.orders, self.floors, self.units)

    def plan_at(self, length: int) -> Plan:
        """The subnetwork of the first `length` units."""
        return plan_of({**self.floors, **dict(self.units[:length])}, self.orders, self.architecture.layout)

    def length(self, budgets: Mapping[str, float]) -> int:
        """How many units a budget allows. Raises UserError for an unknown kind, TooSmallError below the smallest subnetwork."""
        budget = budget_from(budgets, costs_of(self.architecture, Plan()))
        plan = longest(len(self.units), self.plan_at, lambda plan: costs_of(self.architecture, plan), budget)
        fitting = (at for at in range(len(self.units), -1, -1) if self.plan_at(at) == plan)
        return next(fitting)

    def file_bytes(self, budgets: Mapping[str, float]) -> int:
        """How many of the file's first bytes hold the subnetwork that fits: all of the file that a device needs for it."""
        return self.parameters.start + FLOAT_BYTES * costs_of(self.architecture, self.plan_at(self.length(budgets))).params

    def read(self, budgets: Mapping[str, float]) -> tuple[nn.Module, int]:
        """The subnetwork that fits, the model that `deploy` writes, ready to answer, and how many bytes of parameters were read for it: no
        others are. Raises UserError where the file ends before them."""
        length = self.length(budgets)
        plan = self.plan_at(length)
        entries = entry_levels(self.architecture, self.levels, plan)
        try:
            found = read(self.folder / FILE, self.parameters, len(entries))
        except (OSError, EOFError) as error:
            raise UserError(f"{self.folder / FILE}: cannot be read: {in_short(error)}") from None
        flat = torch.empty(len(entries))
        flat[torch.from_numpy(np.argsort(entries, kind="stable"))] = found
        tensors, start, layout = {}, 0, self.architecture.layout
        for name, shape in self.architecture.shapes.items():
            dims = layout.parameters[name].dims
            sizes = [len(dim_levels(dim, layout.axes, {}, plan)) if dim else size for size, dim in zip(shape, dims, strict=True)]
            stop = start + int(np.prod(sizes))
            tensors[name], start = flat[start:stop].view(sizes).clone(), stop
        tensors = correct_norms(tensors, norm_factors(plan, layout, self.norms))
        with TemporaryDirectory() as place:  # by way of a folder: the class, and the configuration, are those of a deployed one
            save_standalone(Path(place), self.architecture, plan, tensors)
            return load_standalone(Path(place), self.architecture.head), 4 * len(entries)


def usual_budget(architecture: Architecture) -> str:
    """The kind of budget that examples of reading a file have: one that its smallest units answer."""
    return "adapter_params" if architecture.adapters else "layer_params"


def check_supernet(trained: TrainedModel) -> None:
    """Raises UserError where a run's plans are no prefixes of one list."""
    setup = trained.prepared.setup
    if setup.strategy.deploy is not ranked or setup.experiment.extraction.kind != "ranked_list":
        raise UserError(
            f"--elastic: strategy {setup.experiment.strategy.name!r} has no ranked list whose prefixes are its subnetworks"
        )
    if setup.size_specific:
        raise UserError("--elastic: sizes have parameters of their own (strategy.own), which no prefix of one file can hold")


def write_supernet(trained: TrainedModel, folder: Path) -> Path:
    """Writes the file, and what describes the model beside it. Raises UserError as `check_supernet`."""
    check_supernet(trained)
    setup, state = trained.prepared.setup, trained.state
    architecture, view = setup.architecture, view_of(setup, state, state.round)
    units, cutting = view.units, view.cutting
    floors = {name: cutting.floor(name, architecture.layout) for name in cutting.axes(architecture.layout)}
    orders = {name: order for name, order in rank(state.scores).items() if name in floors}
    levels = entry_levels(architecture, levels_of(orders, floors, units), Plan())
    flat = flatten(parameters_of(setup, state), architecture.shapes)
    stored = {PARAMETERS: flat[torch.from_numpy(np.argsort(levels, kind="stable"))].contiguous()}
    # Numbers of eight bytes come first in a safetensors file, so the parameters are its end.
    stored |= {f"orders/{name}": torch.from_numpy(np.array(order, dtype=np.int64)) for name, order in orders.items()}
    stored |= {f"norms/{name}": values.double() for name, values in state.norms.items()}
    save_file(stored, folder / FILE, {"format": "pt"})
    described = {
        "front_bytes": places(folder / FILE)[PARAMETERS].start,
        "schema": SCHEMA,
        "head": architecture.head,
        "config": _plain_config(architecture),
        "positions": dict(architecture.positions),
        "floors": floors,
        "units": units,
        "adapters": architecture.adapters and asdict(architecture.adapters),
    }
    write_atomically(folder / DESCRIBED, json.dumps(described).encode())
    (folder / FILE).chmod((folder / DESCRIBED).stat().st_mode)  # the library lets nobody else read what it writes
    return folder / FILE


def _plain_config(architecture: Architecture) -> dict[str, Any]:
    dropped = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "problem_type", "return_dict"}
    return {name: value for name, value in architecture.config.to_dict().items() if name not in dropped}


def open_supernet(folder: Path | str) -> Supernet:
    """What `write_supernet` wrote; no parameter is read, and none need be there: the first `front_bytes` of the file do. Raises UserError for a folder that holds none, or a damaged one."""
    folder = Path(folder)
    try:
        described = json.loads((folder / DESCRIBED).read_bytes())
        if described["schema"] != SCHEMA:
            raise UserError(f"{folder / DESCRIBED}: its schema is {described['schema']}, and this version reads {SCHEMA}")
        lying = places(folder / FILE)
        parameters = lying.pop(PARAMETERS)
        stored = {name: read(folder / FILE, place) for name, place in lying.items()}
        units = [(str(name), int(count)) for name, count in described["units"]]
        floors = {str(name): int(count) for name, count in described["floors"].items()}
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}: no supernet that can be read: {type(error).__name__}: {in_short(error)}") from None
    architecture = _with_adapters(
        architecture_of(parse_config(described["config"]), described["head"]), described.get("adapters"), folder
    )
    architecture = replace(architecture, positions=described["positions"])
    orders = {name.partition("/")[2]: values.numpy() for name, values in stored.items() if name.startswith("orders/")}
    norms = {name.partition("/")[2]: values for name, values in stored.items() if name.startswith("norms/")}
    supernet = Supernet(
        folder=folder, architecture=architecture, orders=orders, floors=floors, units=units, norms=norms, parameters=parameters
    )
    _check(supernet)
    return supernet


class _Described(NamedTuple):
    """Adapters of a file, as `adapted` asks for them."""

    rank: int
    targets: tuple[str, ...]
    alpha: float = 1.0
    scaling: str = "lora"
    dropout: float = 0.0


def _with_adapters(architecture: Architecture, described: Mapping[str, Any] | None, folder: Path) -> Architecture:
    """The architecture with the adapters that a file describes, if any. Raises UserError where they do not fit the model."""
    if described is None:
        return architecture
    try:
        found = adapted(architecture, _Described(int(described["rank"]), tuple(map(str, described["modules"]))))
        assert found.adapters is not None
        adapters = replace(found.adapters, scale=float(described["scale"]), sketched=bool(described["sketched"]))
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: no supernet that can be read: its adapters: {in_short(error)}") from None
    return replace(found, adapters=adapters)


def _check(supernet: Supernet) -> None:
    """Raises UserError for a list or orders that are not of the model, or a file that holds another number of parameters."""
    layout = supernet.architecture.layout
    known = {name: layout.axes[name].size for name in rankable(layout)}
    wrong = [name for name in {*supernet.floors, *supernet.orders, *(name for name, _ in supernet.units)} if name not in known]
    if wrong or set(supernet.floors) != set(supernet.orders):
        raise UserError(f"{supernet.folder}: {(wrong or ['its list'])[0]} is not of its model")
    for name, order in supernet.orders.items():
        if not np.array_equal(np.sort(order, axis=-1), np.broadcast_to(np.arange(known[name]), order.shape)):
            raise UserError(f"{supernet.folder}: the order of {name} is none")
    kept = dict(supernet.floors)
    for name, count in supernet.units:
        if not 0 < kept[name] < count <= known[name]:
            raise UserError(
                f"{supernet.folder}: its list keeps {count} of {name} after {kept[name]}, and there are {known[name]}"
            )
        kept[name] = count
    found, needed = prod(supernet.parameters.shape), costs_of(supernet.architecture, Plan()).params
    if found != needed or supernet.parameters.dtype is not np.float32:
        raise UserError(f"{supernet.folder / FILE}: {found:,} parameters, and its model has {needed:,} as 32 bit floats")
