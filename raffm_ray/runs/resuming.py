"""Resuming a run: which checkpoint fits its records, and whether it is still the same run."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from hashlib import sha256
from pathlib import Path
from sys import intern
from typing import Any, get_type_hints

import pyarrow as pa
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import check_no_links, check_path
from raffm_ray.basics.plugins import label_of
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.runs import checkpoint
from raffm_ray.runs.checkpoint import Checkpoint
from raffm_ray.runs.client_states.store import first_broken
from raffm_ray.runs.extending import MAY_CHANGE, check_goes_on, differing, earlier_experiments
from raffm_ray.runs.reader import SUMMARY
from raffm_ray.runs.recorder import Past, Recorder
from raffm_ray.runs.records.record_files import digests_by_round, last_packed
from raffm_ray.runs.records.record_tables import tables
from raffm_ray.runs.records.totals import totals_upto
from raffm_ray.runs.rounds.client_totals import ClientTotals
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.state import ServerState
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.former_values import with_former_values
from raffm_ray.settings.loading import load_recorded, pairs_of, with_unsaid

Tell = Callable[[str], None]
PLACES = ("task.data", "model.pretrained", "model.tokenizer", "fleet.profiles", "clock.trace")
"""Settings that name a file or folder: it may be in another place, if what is there is what it was (`origin_of`, and the model that the run
began with)."""
FREE = (
    *("pool.backend", "pool.workers", "pool.attempts", "pool.patience_seconds", "pool.metrics"),
    "checkpoint.every",
    "checkpoint.keep",
    "server.bad_updates",
    "pool.gpus_per_worker",
    "pool.gpu_memory_bytes",
    "pool.device",
    "pool.placement",
    "pool.deterministic",
    "loggers",
    *PLACES,
)
"""Settings that change no result: a run may go on with others than it began with. Of another device, the last bits may be others."""
OF_CLASSES = ("local.label_skew",)
FREE_BEFORE_CLASSES = (*FREE, *OF_CLASSES)
"""Those of runs from before something could be done about clients' unequal classes."""
OF_SMALLER = ("local.gradient_checkpointing", "strategy.vocabulary", *OF_CLASSES)
FREE_BEFORE_SMALLER = (*FREE, *OF_SMALLER)
"""Those of runs from before blocks could be computed again, and clients could have the rows of their own words alone."""
FREE_WITHOUT_PLACES = tuple(name for name in FREE if name not in PLACES)
"""Those of runs whose checkpoints hold a digest of the places too."""
OF_ADAPTERS = ("model.adapters", "strategy.adapters", "strategy.factors", "evaluation.aggregation_error", *OF_SMALLER)
FREE_BEFORE_ADAPTERS = (*FREE, *OF_ADAPTERS)
"""Those of runs from before there were adapters."""
OF_EACH_CLIENT = (
    *("clients.selection", "server.fair_exponent", "server.agnostic_rate", "evaluation.tune", "strategy.personal", *OF_ADAPTERS),
)
FREE_BEFORE_EACH_CLIENT = (*FREE, *OF_EACH_CLIENT)
"""Those of runs from before clients were chosen in other ways than uniformly, and remembered anything."""
OF_CLIENTS = ("clients.held_out", "clients.unseen", "evaluation.clients", *OF_EACH_CLIENT)
FREE_BEFORE_OWN_PARTS = (*FREE, *OF_CLIENTS)
"""Those of runs from before clients had held-out examples of their own."""
LATER = ("fleet.keeps_frozen", "local.batches", "model.frozen_precision", *OF_CLIENTS)
FREE_BEFORE_KEPT = (*FREE, *LATER)
"""Those of runs from before there were these settings."""
ADDED = ("model.seed", "plugin_settings", "task.objective", "local.client_update", "clients.missing_group", *LATER)
FREE_SINCE_PLUGINS = (*FREE_BEFORE_KEPT, "clients.missing_group")
"""Those of runs from after there were plug-ins, and before there was this setting."""
FREE_BEFORE_PLUGINS = (*FREE, *ADDED)
"""Those of runs from before there were these settings, whose checkpoints hold a digest of the rest."""
FREE_AT_FIRST = (
    *FREE[:8],
    "pool.deterministic",
    "loggers",
    "task.revision",
    "task.no_answer_threshold",
    "model.revision",
    "model.new_head",
    "local.warmup_rounds",
    "model.pretrain.head_epochs",
    "model.pretrain.head_learning_rate",
    "task.pack",
    "task.class_weights",
    "local.crop_padding",
    "local.flip",
    "extraction.reserves",
    "extraction.pace",
    "local.attention",
    *ADDED,
)
"""Those of earlier versions, and what they had not: their checkpoints hold a digest of the rest."""
_EVERY_FREE = (
    *(FREE, FREE_BEFORE_CLASSES, FREE_BEFORE_SMALLER, FREE_BEFORE_ADAPTERS),
    FREE_BEFORE_EACH_CLIENT,
    FREE_BEFORE_OWN_PARTS,
    FREE_BEFORE_KEPT,
    FREE_SINCE_PLUGINS,
    FREE_BEFORE_PLUGINS,
    FREE_WITHOUT_PLACES,
    FREE_AT_FIRST,
)


def experiment_digest(experiment: Experiment, free: Sequence[str] = FREE, former: bool = False) -> str:
    """Digest of every setting that a result depends on. `former`: with the values as earlier versions called them."""
    values = experiment.model_dump(mode="json")
    del values["plugins"]  # `origin_of` has what is in them, wherever they are
    if former:
        values = with_former_values(values)
    for key in free:
        *sections, name = key.split(".")
        within = reduce(lambda inner, section: inner[section], sections, values)
        within.pop(name)
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def origin_of(prepared: Prepared) -> dict[str, str]:
    """Digests of what an experiment is made from besides its settings, by the setting that names it."""
    setup, task = prepared.setup, prepared.task
    trace, shares = setup.experiment.clock.trace, sha256()
    for share in (*prepared.shares, *(part for part in prepared.parts.held_out if len(part))):
        shares.update(share.tobytes() + b"|")
    fleet = repr([dict(setup.devices), dict(setup.budgets), list(setup.device_types)])
    return {
        "task.data": sha256("".join(part.digest() for part in task.parts.values()).encode()).hexdigest(),
        "clients.partition": shares.hexdigest(),
        "fleet.profiles": sha256(fleet.encode()).hexdigest(),
        "clock.trace": sha256(Path(trace).read_bytes()).hexdigest() if trace else "",
        **{f"plugins.{label_of(one.name)}": one.sha256 or "" for one in setup.experiment.plugins},
    }


def experiment_in(folder: Path, flags: Sequence[str] = (), plugins: Sequence[str] = ()) -> Experiment:
    """The experiment of a run's folder. `flags`: `--key value` pairs for settings of `FREE`, and of `extending.MAY_CHANGE`; `plugins`: where
    its plug-ins are now, if not where they were. Raises UserError for others, and where something there is a symbolic link.

    Settings that a run of an earlier version does not say are what it did (`former_values.UNSAID`).
    """
    check_path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run here to go on with (config.yaml is missing)")
    check_no_links(folder)
    for flag, _ in pairs_of(flags):
        if not any(f"{flag}.".startswith(f"--{key}.") for key in (*FREE, *MAY_CHANGE)):
            raise UserError(
                f"resume: {flag}: a run goes on as it began; only {', '.join(FREE)} may be others, and rounds may be more"
            )
    return with_unsaid(load_recorded(path, flags, plugins))


def opened(folder: Path, experiment: Experiment, tell: Tell, begun: Experiment | None = None) -> Recorder:
    """A recorder for a run that is not finished: after its newest whole checkpoint whose records are whole too, from the beginning where
    none was ever written, or of a new run where the folder holds none.

    `begun`: the experiment in the folder, finished or not, where the run is to be extended: a checkpoint counts only if the longer run had
    come there, too. Raises UserError when none of its checkpoints can be used, or the run is of another experiment.
    """
    digest = {"config.yaml": experiment_digest(experiment)}
    if not (folder / "config.yaml").is_file():
        recorder = Recorder(folder, experiment)
        recorder.made_from(digest)
        return recorder
    past = _past(folder, tell) if begun is None else _common_past(folder, begun, experiment, tell)
    recorder = Recorder(folder, experiment, past)
    before = begun or experiment
    same = [experiment, before, *earlier_experiments(folder, before)]
    if recorder.origin.get("config.yaml") in {
        experiment_digest(one, free, former) for one in same for free in _EVERY_FREE for former in (False, True)
    }:
        recorder.origin |= digest
    recorder.made_from(digest)
    if recorder.rounds:
        tell(f"{folder}: goes on after round {recorder.rounds[-1].round}")
    else:
        tell(f"{folder}: no checkpoint was written: the run begins again")
    return recorder


def check_fits(state: ServerState, start: ServerState, folder: Path) -> None:
    """Raises UserError where a checkpoint's arrays, whose digests may be right, have other names, sizes or kinds than those of the state
    that the run began with."""
    for one in (state, state.best.state if state.best else None):
        if one is not None and (
            _form(one) != _form(start)
            or any(kept.shape != start.parameters.shape for kept in one.moments.values())
            or (one.reached and _shapes(one.reached) != _shapes(start.reached))
            or (one is state and _remembers(one) != _remembers(start))
        ):
            raise UserError(f"{folder}: the run cannot go on: what its checkpoint holds is not of this model")


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(values.dtype), values.shape) for name, values in arrays.items()}


def _remembers(state: ServerState) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Which records of clients and weights of device types there are; of every round so far, there is one number besides."""
    parts = [vars(one) for one in (state.records, state.mixture) if one is not None]
    kept = {name: values for part in parts for name, values in part.items() if name != "gained"}
    return tuple(sorted((f"{name} {values.dtype}", values.shape) for name, values in kept.items()))


def _form(state: ServerState) -> tuple[Any, ...]:
    return (
        state.parameters.dtype,
        state.parameters.shape,
        {name: (one.dtype.kind, one.shape) for name, one in state.scores.items()},
    )


def _pasts(folder: Path, tell: Tell) -> Iterator[Past]:
    """What can be gone on from, the newest first; `tell` is given a line about what cannot."""
    places = folder / "checkpoints"
    digests, packed = digests_by_round(folder), last_packed(folder)
    for kept in checkpoint.whole(places, tell):
        number = kept.state.round
        if len(digests) <= number or digests[number] != kept.records:
            tell(f"{places}: records up to round {number} are missing or damaged, the checkpoint before is used")
            continue
        if broken := first_broken(folder, kept.state.memory, checkpoint.oldest(places)):
            tell(f"{broken}; the checkpoint before is used")
            continue
        if number < packed:
            tell(f"{places}: round {number} is within packed records, which a run cannot go back into")
            continue
        _tell_versions(kept, tell)
        yield Past(kept, recorded_rounds(folder, number), _totals(folder, number))


def _past(folder: Path, tell: Tell) -> Past:
    for past in _pasts(folder, tell):
        return past
    if checkpoint.exist(folder / "checkpoints"):
        raise UserError(f"{folder}: the run cannot go on: none of its checkpoints is whole with the records that belong to it")
    return Past(None)


def _common_past(folder: Path, begun: Experiment, experiment: Experiment, tell: Tell) -> Past:
    """What a run and a longer one have in common. Raises UserError where that is nothing, since something is spread over all rounds."""
    told = f"{folder}: cannot be extended from {begun.rounds} to {experiment.rounds} rounds"
    if (folder / SUMMARY).is_file() and not checkpoint.exist(folder / "checkpoints"):
        raise UserError(f"{told}: it has no checkpoint (of checkpoint.every 0, an earlier version, a comparison or a study)")
    reasons: list[str] = []
    for past in _pasts(folder, tell):
        reasons = differing(begun, experiment, past.rounds)
        if past.checkpoint is not None and not reasons:
            check_goes_on(past.checkpoint.state, experiment, folder)
            return past
    if reasons:
        raise UserError(f"{told}: that is not the run that one of {experiment.rounds} would have been: {'; '.join(reasons)}")
    return _past(folder, tell)


def recorded_rounds(folder: Path, upto: int | None = None) -> list[RoundRow]:
    """The rounds that are recorded in a run's folder, all or up to one: equal to those written, floats are stored whole. Raises UserError for
    a record that is damaged."""
    maps = {name for name, hint in get_type_hints(RoundRow).items() if getattr(hint, "__origin__", None) is dict}
    rows: Iterator[dict[str, Any]] = (row for table in tables(folder, "rounds", upto=upto) for row in table.to_pylist())
    try:
        return [RoundRow(**(row | {name: _shared(row[name]) for name in maps & row.keys()})) for row in rows]
    except (ValueError, TypeError) as error:
        raise _other_version(folder / "rounds", error) from None


def _shared(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping whose keys are in memory once, however many rounds have them."""
    return {intern(key): value for key, value in pairs}


def _totals(folder: Path, upto: int) -> ClientTotals:
    """What clients did up to a round."""
    try:
        return totals_upto(folder, upto)
    except (ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise _other_version(folder / "clients", error) from None


def _other_version(place: Path, error: Exception) -> UserError:
    return UserError(f"{place}: not records of this version: {in_short(error)}")


def _tell_versions(kept: Checkpoint, tell: Tell) -> None:
    changed = [
        f"{name} {before} is {now} now"
        for name, now in checkpoint.versions().items()
        if (before := kept.versions.get(name, "missing")) != now
    ]
    if changed:
        tell(f"note: {', '.join(changed)}: the last bits may not be those of a run that was never interrupted")
