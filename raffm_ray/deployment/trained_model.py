"""The model to deploy: that of a finished run with its ranking, or a plain checkpoint that is ranked on public examples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from raffm_ray.axes.flat_parameters import flatten
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError, in_short, near_miss
from raffm_ray.basics.formatting import counted
from raffm_ray.basics.profiling import Stopwatch
from raffm_ray.clients.client_state import ClientState, own_parameters
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.models.architecture import unadapted
from raffm_ray.models.foundation import PACKAGED
from raffm_ray.preparation.pace_search import with_best_pace
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.public_calibration import public_statistics
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.reader import SUMMARY, how_to_resume, read_summary
from raffm_ray.runs.recorder import check_origin
from raffm_ray.runs.resuming import PLACES, experiment_in, origin_of
from raffm_ray.server.device_type_plans import copies, device_type_plans, view_of
from raffm_ray.server.ranking import rank_again
from raffm_ray.server.state import ServerState, parameters_of, starting_state
from raffm_ray.settings.loading import override, pairs_of, parse
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.norm_correction import correct_norms, norm_factors
from raffm_ray.subnetworks.rotation import rotatable
from raffm_ray.subnetworks.salience import METRICS
from raffm_ray.subnetworks.standalone_config import MODEL_TYPES

DATA = ("--task.name", "--task.kind", "--task.data")
"""Of these flags, one says what a checkpoint is ranked and measured on."""
ANY_TASK: dict[str, Any] = {
    "name": "deployed",
    "model": {"pretrain": {"epochs": 0}},
    "clients": {"count": 1, "per_round": 1, "partition": "iid"},
    "salience": {"source": "public"},
    "extraction": {"floors": {}},
}
"""A plain checkpoint as an experiment: flags name its data; nothing of it is trained."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that subnetworks are cut from. `origin`: what it came from, in words; `least_params`: parameters of the smallest subnetwork that
    a device type was trained with, 0 where none was; `own`: what a client keeps, whose model it is. Raises UserError for parameters that are not finite."""

    prepared: Prepared
    state: ServerState
    origin: str
    least_params: int = 0
    own: ClientState | None = None

    def __post_init__(self) -> None:
        if not bool(self.state.parameters.isfinite().all()):
            raise UserError(f"{self.origin}: its parameters are not finite numbers")

    def plan(self, budget: Budget) -> Plan:
        """The subnetwork that the run's strategy has for a budget. Raises TooSmallError below its smallest one."""
        return self._plan(self.state, budget)

    def _plan(self, state: ServerState, budget: Budget) -> Plan:
        setup = self.prepared.setup
        plan = setup.strategy.deploy(view_of(setup, state, state.round), budget, -1)
        assert plan is not None
        return plan

    def paced_for(self, budget: Budget) -> "TrainedModel":
        """This model, with the residual stream cut at the pace that suits a budget best (`with_best_pace`). Raises TooSmallError."""
        state = with_best_pace(self.prepared, self.state, lambda state: [(budget, self._plan(state, budget))])
        return replace(self, state=state)

    def cut(self, plan: Plan) -> dict[str, Tensor]:
        """A plan's parameters, by name, its norms corrected and its own copies in place."""
        setup, state = self.prepared.setup, self.state
        (copy,) = copies(setup, state, [plan])
        named = parameters_of(setup, state, copy)
        layout = setup.architecture.layout
        cut = correct_norms(take_all(named, layout, plan), norm_factors(plan, layout, state.norms))
        if self.own is not None:
            mine = {name: values for name, values in cut.items() if name in setup.architecture.trained_shapes}
            factory = ModuleFactory(setup.architecture, Stopwatch())
            cut = {**cut, **own_parameters(self.own, plan, mine, named, factory)}
        return {name: values.clone() for name, values in cut.items()}


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        arrays: dict[str, Tensor] = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {in_short(error)}") from None
    return arrays


def of_run(folder: Path, flags: Sequence[str] = (), plugins: Sequence[str] = ()) -> TrainedModel:
    """What a finished run left. `flags`: other places of its files; `plugins`: of its plug-ins. Raises UserError for a folder that is none, and for files that are
    damaged, of another model, or not what they were."""
    experiment = experiment_in(folder, flags, plugins)
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder}: the run is not finished: only what it ends with can be deployed{how_to_resume(folder)}")
    summary, final = read_summary(folder), folder / "checkpoints" / "final"
    prepared = prepare(experiment)
    if flags:
        check_origin(folder, summary["made_from"], origin_of(prepared))
    architecture = prepared.setup.architecture
    named, ranked = _arrays(final / "model.safetensors"), _arrays(final / "salience.safetensors")
    shapes = {name: tuple(values.shape) for name, values in named.items()}
    if shapes != dict(architecture.shapes):
        wrong = next(name for name in {*shapes, *architecture.shapes} if shapes.get(name) != architecture.shapes.get(name))
        raise UserError(f"{final / 'model.safetensors'}: {wrong} is not as the run's configuration says")
    names = rankable(architecture.layout)
    if lacking := [name for name in names if name not in ranked]:
        raise UserError(f"{final / 'salience.safetensors'}: no ranking of {lacking[0]}")
    scores = {name: ranked.pop(name).numpy() for name in names}
    flat = flatten(named, architecture.shapes)
    state = replace(
        starting_state(prepared.setup, flat),
        round=int(summary["rounds"]),
        scores=scores,
        norms=ranked,
        pace=float(summary.get("residual_pace", 0.0)),
    )
    if (own := final / "own.safetensors").is_file():
        state = _with_own(prepared, state, _arrays(own))
    trained = device_type_plans(prepared.setup, state).values()
    least = min(costs_of(*unadapted(architecture, plan)).params for plan in trained)
    told = f"{counted(summary['rounds'], 'round')}, {counted(summary['clients'], 'client')}"
    return TrainedModel(prepared, state, f"the run {experiment.name!r} ({told})", least)


def _with_own(prepared: Prepared, state: ServerState, own: dict[str, Tensor]) -> ServerState:
    """The state with the copies that sizes have of their own parameters."""
    setup = prepared.setup
    state = replace(state, parameters=state.parameters.clone())
    plans = device_type_plans(setup, state)
    used = dict(zip(plans, copies(setup, state, list(plans.values())), strict=True))
    for key, values in own.items():
        device, _, name = key.partition("/")
        if device not in used or name not in setup.size_specific:
            raise UserError(f"checkpoints/final/own.safetensors: {key} is not of this run")
        parameters_of(setup, state, used[device])[name].copy_(values)
    return state


def _what_it_is(folder: Path) -> str:
    if (folder / "elastic.json").is_file():
        return "; it holds all sizes of a model (raffm_ray.open_supernet reads them): what it was made of can be deployed"
    if (folder / "sizes.json").is_file():
        return "; it holds sizes already: what they were cut out of can be deployed"
    runs = [parent for parent in folder.resolve().parents[:2] if (parent / SUMMARY).is_file()]
    return f"; it is a part of the run {runs[0]}" if runs else ""


def of_checkpoint(place: str, flags: Sequence[str], plugins: Sequence[str] = ()) -> TrainedModel:
    """A transformers checkpoint, brought into the basis in which its parts can best be told apart and ranked on the public part of the task
    that `flags` name. Raises UserError where it or its data cannot be used."""
    if not any(flag.split("=")[0] in DATA for flag in flags):
        raise UserError(
            f"{place}: a checkpoint is ranked and measured on data: name it by --task.name, or --task.kind and --task.data{_what_it_is(Path(place))}"
        )
    values = override(ANY_TASK, ["--model.pretrained", place, *flags])
    settings = parse(values, plugins)
    if settings.salience.source != "public" and METRICS[settings.salience.metric].statistic:
        raise UserError("salience.source: a plain checkpoint has no clients: it must be public")
    prepared = prepare(settings)
    if "rotation" not in values["salience"] and not all(rotatable(prepared.setup.architecture.layout).values()):
        settings = parse(override(values, ["--salience.rotation", "calibrated"]), plugins)
        prepared = replace(prepared, setup=replace(prepared.setup, experiment=settings))
    state = starting_state(prepared.setup, starting_parameters(prepared, lambda *_: None, lambda _: None))
    statistic = METRICS[settings.salience.metric].statistic
    state = rank_again(prepared.setup, state, public_statistics(prepared, state, statistic or "square"))
    state = replace(state, pace=prepared.setup.cutting.pace)  # no device type was trained whose budget would matter
    return TrainedModel(
        prepared, state, f"{Path(place).name}, ranked on {len(prepared.task.public)} examples of {settings.task.name}"
    )


def _is_subnetwork(folder: Path) -> bool:
    try:
        described = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False  # whoever reads it says why
    return isinstance(described, dict) and described.get("model_type") in MODEL_TYPES


def find_trained_model(source: str, flags: Sequence[str], plugins: Sequence[str] = ()) -> TrainedModel:
    """A run's folder, or a checkpoint. Raises UserError as `of_run` and `of_checkpoint`."""
    folder = Path(source).expanduser()
    if not folder.is_dir() and source not in PACKAGED and (folder.parent.is_dir() or source.count("/") != 1):
        beside = [str(one) for one in folder.parent.iterdir() if one.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"{source}: no such folder{near_miss(str(folder), beside) if beside else ''}")
    if (folder / "config.yaml").is_file() or (folder / "rounds").is_dir():
        for flag, _ in pairs_of(flags):
            if flag.removeprefix("--") not in PLACES:
                raise UserError(f"{flag}: a run is deployed as it is; only {', '.join(PLACES)} may be in another place")
        return of_run(folder, flags, plugins)
    if _is_subnetwork(folder):
        raise UserError(f"{source}: is a subnetwork already; another size is deployed from what it was cut out of")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{source}: neither a finished run nor a checkpoint: it holds no config.json{_what_it_is(folder)}")
    torch.manual_seed(0)
    return of_checkpoint(source, flags, plugins)
