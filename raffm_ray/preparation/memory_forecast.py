"""How much memory a run takes of this machine, forecast before it starts: the driver's process and a worker's, at their peaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan, kept_size
from raffm_ray.clients.messages import RoundContext
from raffm_ray.clients.stacked_training import stacking_groups
from raffm_ray.data.examples import Examples, Pixels, Ragged
from raffm_ray.models.architecture import FAMILIES, Architecture
from raffm_ray.models.word_rows import word_rows, words_read
from raffm_ray.pool.dispatch import completion_times
from raffm_ray.pool.gpu_sharing import LOSS_COPIES, training_bytes
from raffm_ray.preparation.head_training import COMPUTED_AT_ONCE, feature_bytes, head_examples
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.early_stopping import is_evaluated
from raffm_ray.server.ranking import begin_calibration, plain_state
from raffm_ray.server.residual_pace import with_ruled_pace
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import Round, Setup, with_first_choices
from raffm_ray.server.step_memory import step_copies
from raffm_ray.server.workload import block_costs
from raffm_ray.subnetworks.costs import FLOAT_BYTES, Costs, costs_of

CALIBRATION_BATCH = 32
"""Examples that are calibrated at once."""
ANSWER_COPIES, GRADIENT_COPIES = 2, 1
"""Of the outputs, beside those that are counted, where nothing is trained and where gradients are computed; of a language model they are the largest
of all. Measured, in all: 3.0 times the outputs for an evaluation, 2.2 for a calibration and a step of pretraining."""
LOOKED_AT = 6
"""Rounds that are looked at for what their blocks take: draws differ."""
SPREAD, SPREAD_RETURNED = 1.2, 1.1
"""What a heap takes for a byte that is used, measured: freed memory falls into pieces that a larger array does not fit in; and while a worker calibrates,
when large arrays are returned (`pool.worker`)."""
SPREAD_KEPT = {"train": 2.2, "evaluate": 3.0}
"""The same of a process that keeps freed memory from call to call, as it does where examples are equally large (`pool.worker.leaves_pieces`). What
is live stays the same, but pieces become more with every call, and trimming returns their pages, not their places: a ViT's evaluation took 1.4
times its live bytes in the first calls and 2.7 times after twenty. Returning large arrays would keep to SPREAD, and an evaluation then took
1.3 to 1.5 times as long."""
SPREAD_OUTPUTS = 2.2
"""Of what a training step holds of the outputs of a language model: a few arrays, much larger than all others. Fitted to one LLaMA."""


@dataclass(frozen=True)
class MemoryForecast:
    """Expected peaks of resident memory: of the driver's process, and of one of `workers` processes, 0 of them where the driver trains
    the clients itself. `shared_bytes`: the part of each that is the object store, which is there once."""

    driver_bytes: int
    worker_bytes: int
    workers: int
    shared_bytes: int

    @property
    def together_bytes(self) -> int:
        """Of all processes on one machine."""
        alone = self.worker_bytes - self.shared_bytes
        return self.driver_bytes + self.workers * alone

    def at_least(self, other: "MemoryForecast") -> "MemoryForecast":
        """What suffices for either."""
        return MemoryForecast(
            driver_bytes=max(self.driver_bytes, other.driver_bytes),
            worker_bytes=max(self.worker_bytes, other.worker_bytes),
            workers=self.workers,
            shared_bytes=max(self.shared_bytes, other.shared_bytes),
        )


def longest_examples(prepared: Prepared) -> Architecture:
    """The architecture with the positions of the longest text, which decide about the peak, in place of the mean ones."""
    architecture, task = prepared.setup.architecture, prepared.task
    words = [lengths.max() for part in task.parts.values() if (lengths := part.lengths()) is not None and len(lengths)]
    labels = task.clients.labels
    targets = int(labels.lengths.max()) if isinstance(labels, Ragged) and len(labels) else None
    positions = FAMILIES[architecture.config.model_type].positions
    return replace(architecture, positions=positions(architecture.config, int(max(words)) if words else None, targets))


def data_bytes(examples: Examples) -> int:
    """What the columns of examples take."""
    arrays: list[NDArray[np.generic]] = []
    for column in (*examples.inputs.values(), examples.labels):
        arrays += column.arrays() if isinstance(column, Ragged | Pixels) else [column]
    return sum(values.nbytes for values in arrays)


def waiting_sums(costs: Sequence[float], workers: int) -> int:
    """How many sums of blocks wait at once, at most, to be added: they are added in block order, and the costliest blocks start first."""
    ended, _ = completion_times(costs, lambda call, _: costs[call], [0] * workers, [0] * len(costs))
    added = np.maximum.accumulate(np.array(ended)) if costs else np.zeros(0)
    return max((int(((np.array(ended) <= now) & (added >= now)).sum()) for now in ended), default=0)


@dataclass(frozen=True)
class _Rounds:
    """What is looked at: the calibration, if there is one, and the first rounds with a stand-in for the ranking that is not there yet."""

    calibration: Round | None
    rounds: Sequence[Round]
    plans: Mapping[str, Plan]

    @property
    def all(self) -> list[Round]:
        return [*([self.calibration] if self.calibration else []), *self.rounds]


def _rounds(setup: Setup) -> _Rounds:
    state = with_first_choices(setup, with_ruled_pace(setup, plain_state(setup.architecture)))
    count = min(LOOKED_AT, setup.experiment.rounds)
    found = [begin_round(setup, replace(state, round=number)) for number in range(count)]
    return _Rounds(begin_calibration(setup, state), found, device_type_plans(setup, state))


def _unread_bytes(prepared: Prepared, plan: Plan) -> int:
    """Of a plan's table of words, the rows that no client's texts use, where these are left out of its training."""
    setup, local = prepared.setup, prepared.setup.experiment.local
    largest = max(prepared.shares, key=len)
    words = None if local.weight_decay and setup.words is None else words_read(setup.architecture, prepared.task.clients, largest)
    rows = word_rows(setup.architecture, words, "cpu")
    if rows is None:
        return 0
    return (len(rows.places) - len(rows.rows)) * kept_size("residual", setup.architecture.layout.axes, plan) * FLOAT_BYTES


def _training_bytes(prepared: Prepared, costs: Mapping[Plan, Costs], context: RoundContext, block: Round) -> int:
    """Of the block that takes most: its largest group of clients, and the sums of its plans that wait for the others."""
    most = 0
    for jobs in block.blocks:
        groups = stacking_groups(jobs, context.stack)
        sums = sum(costs[context.plans[plan]].bytes_up for plan in {plan for plan, _ in groups if plan is not None})
        for plan, group in groups:
            if plan is None:
                continue
            own, *smaller = (costs[context.plans[one]] for one in (plan, *group[0].prefixes))
            needed = training_bytes(own, len(group), smaller, group[0].prefix, bool(context.distill))
            if len(group) == 1:
                each = (needed - own.activation_bytes) // max(1, own.bytes)
                needed -= each * _unread_bytes(prepared, context.plans[plan])
            most = max(most, needed + sums * (len(groups) > 1))
    return most


def heap_bytes(prepared: Prepared, seen: "_Rounds") -> dict[str, int]:
    """What a worker has allocated at once, by what it does.

    - train: `gpu_sharing.training_bytes` of the largest group of clients, which is `Costs.memory_bytes` (parameters, gradients, the
      optimizer's state, activations of a batch) and what the trained parameters were before, with the sums of the block;
    - calibrate: the full model, its gradients, and the activations of a batch of CALIBRATION_BATCH examples;
    - evaluate: a subnetwork, and what is live of a batch while it is answered.

    Losses take outputs besides: GRADIENT_COPIES of them in a calibration, ANSWER_COPIES in an evaluation.

    Activations are those of the longest texts; rows of a table of words that no text uses are in no training.
    """
    setup, longest = prepared.setup, longest_examples(prepared)
    local, size = setup.experiment.local, setup.experiment.evaluation.batch_size
    plans = {plan for work in seen.all for plan in work.context.plans} | {Plan(), *seen.plans.values()}
    costs = {plan: costs_of(longest, plan, local.batch_size, local.optimizer) for plan in plans}
    kept, parts = replace(longest, recomputes=False), prepared.parts  # as calibrations keep it
    full = costs_of(kept, Plan(), local.batch_size, local.optimizer)
    shown = min(size, max(len(prepared.task.held_out), sum(len(parts.held_out[one]) for one in parts.measured)))
    outputs = full.output_bytes // local.batch_size
    found = {
        "train": max((_training_bytes(prepared, costs, work.context, work) for work in seen.all), default=0),
        "evaluate": max(
            costs[plan].bytes + shown * (costs[plan].inference_bytes - costs[plan].bytes + ANSWER_COPIES * outputs)
            for plan in (Plan(), *seen.plans.values())
        ),
    }
    if any(job.calibrate for work in seen.all for job in work.jobs):
        batch = min(CALIBRATION_BATCH, setup.experiment.salience.examples)
        found["calibrate"] = 2 * full.bytes + batch * (full.activation_bytes // local.batch_size + GRADIENT_COPIES * outputs)
    return found


def flat_bytes(setup: Setup) -> int:
    """Of the flat trained parameters, copies that sizes have of their own included."""
    own = sum(prod(setup.architecture.shapes[name]) for name in setup.size_specific)
    return setup.costs(Plan()).bytes_up + FLOAT_BYTES * own * max(0, len(setup.budgets) - 1)


def frozen_bytes(setup: Setup) -> int:
    """Of the flat frozen parameters."""
    full = setup.costs(Plan())
    return full.bytes - full.bytes_up


def changed_bytes(setup: Setup) -> int:
    """Of what a rule for adapters adds to the frozen parameters, and of these with it: both of the last round, and of the best one where it is kept,
    and what the next round adds."""
    if not ADAPTER_RULES.chosen(setup.strategy.adapters, setup.experiment.plugin_settings).base:
        return 0
    return (3 + 2 * bool(setup.experiment.evaluation.keep_best)) * frozen_bytes(setup)


def driver_copies(setup: Setup) -> tuple[float, float]:
    """How many arrays as long as the flat parameters the driver holds at most: while clients train, and when it averages their round r.

    The start, which baselines begin from too; the parameters and moments of round r - 1, and those of r - 2 where the evaluation of r - 1 runs
    beside round r; the best round's, where it is kept; and the sum. When it averages, also the coverage, and what the rule and the optimizer make (`step_copies`).
    """
    experiment = setup.experiment
    made, moments = step_copies(setup.strategy.aggregation, experiment.server)
    beside = experiment.evaluation.patience is None
    most = 0
    for number in range(1, experiment.rounds + 1):
        states = {0, number - 1} | ({number - 2} if number > 1 and beside and is_evaluated(experiment, number - 1) else set())
        with_moments = sum(state > 0 for state in states - {0})
        most = max(most, len(states) + moments * with_moments)
    held = most + bool(experiment.evaluation.keep_best) + 1
    return held, held + 1 + made


def pretraining_bytes(prepared: Prepared) -> int:
    """What the driver takes for the public part: to train the full model on it, as a client would with AdamW and GRADIENT_COPIES of the outputs; a new head's
    inputs, and what computing a batch of them takes;
    to calibrate on it, where `salience.source` says so, as in `heap_bytes`; at least two models."""
    settings, longest = prepared.setup.experiment.model.pretrain, replace(longest_examples(prepared), recomputes=False)
    full = costs_of(longest, Plan(), settings.batch_size, "adamw")
    most = full.memory_bytes + GRADIENT_COPIES * full.output_bytes if settings.epochs else 2 * full.bytes
    if settings.head_epochs:
        inputs = head_examples(longest, len(prepared.task.public)) * feature_bytes(longest)
        most = max(most, full.bytes + inputs + COMPUTED_AT_ONCE * (full.inference_bytes - full.bytes))
    if prepared.setup.experiment.salience.source == "public":
        batch = costs_of(longest, Plan(), min(CALIBRATION_BATCH, len(prepared.task.public)))
        most = max(most, 2 * batch.bytes + batch.activation_bytes + GRADIENT_COPIES * batch.output_bytes)
    return most


def memory_forecast(prepared: Prepared, driver_now: int, workers_now: Sequence[int]) -> MemoryForecast:
    """The peaks of a run's processes. `driver_now`, `workers_now`: what the driver and every worker hold now, with libraries and data loaded
    and nothing trained; no workers where the driver trains the clients.

        driver = now + max(pretraining, driver_copies x flat + start + store)
        driver without workers = now + max(pretraining, driver_copies x flat + start, driver_copies x flat + start + heap + waiting sums x flat)
        worker = now + max(spread x (train, evaluate) + 2 x flat, SPREAD_RETURNED x calibrate + flat) + data + store
        store  = flat x max(2, 1 + waiting sums) + frozen

    spread: SPREAD_KEPT on examples of equal size, else SPREAD, and of what a step holds of its outputs, SPREAD_OUTPUTS; flat: `flat_bytes`; frozen: `frozen_bytes`; start: where something is frozen, twice that, in the start of all strategies and apart, and `changed_bytes`; train, evaluate, calibrate: `heap_bytes`, and beside them a block's sum, and the update of who trains the full model. The
    store is what Ray keeps of a round in shared memory: its parameters, and the sums of blocks that wait to be added (`waiting_sums`); every
    process that writes or reads a page of it has it in its resident memory. data: the examples, which lie in the store too. Without
    workers there is no store, and the driver has a worker's heap, and the sums that wait, beside what it holds while clients train.
    """
    setup = prepared.setup
    seen, flat, frozen, task, heap = _rounds(setup), flat_bytes(setup), frozen_bytes(setup), prepared.task, 0
    needed = heap_bytes(prepared, seen)
    outputs = (1 + LOSS_COPIES) * setup.costs(Plan()).output_bytes
    kept = SPREAD_KEPT if task.clients.lengths() is None else {}
    for doing, used in needed.items():
        spread, arrays = (SPREAD_RETURNED, 1) if doing == "calibrate" else (kept.get(doing, SPREAD), 2)
        pieces = max(0.0, SPREAD_OUTPUTS - spread) * outputs if doing == "train" else 0.0
        heap = max(heap, int(spread * used + pieces) + arrays * flat)
    late = max((work.late for work in seen.rounds), default=0)
    training, averaging = (int((copies + late) * flat) + 2 * frozen + changed_bytes(setup) for copies in driver_copies(setup))
    pretraining = pretraining_bytes(prepared)
    waiting = max(waiting_sums(block_costs(setup, work), max(1, len(workers_now))) for work in seen.all)
    if not workers_now:
        return MemoryForecast(driver_now + max(pretraining, averaging, training + heap + waiting * flat), 0, 0, 0)
    store = flat * max(2, 1 + waiting) + frozen
    data = sum(data_bytes(part) for part in (task.clients, task.held_out, task.validation) if part is not None)
    return MemoryForecast(
        driver_bytes=driver_now + max(pretraining, averaging + store),
        worker_bytes=max(workers_now) + heap + data + store,
        workers=len(workers_now),
        shared_bytes=store + data,
    )
