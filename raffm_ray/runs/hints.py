"""What a user is told, in one line with the likely cause, where a run learns nothing, or slowly. Pure functions."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np

from raffm_ray.basics.formatting import counted
from raffm_ray.basics.machine import fast_bfloat16
from raffm_ray.data.metrics import METRICS, shown, unit
from raffm_ray.data.tasks import Task
from raffm_ray.models.foundation import Foundation, words_of
from raffm_ray.models.freezing import frozen_in_words
from raffm_ray.pool.worker_pool import device_of
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.runs.client_states.disk_forecast import disk_notes
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.device_type_plans import idle_budgets, memory_notes
from raffm_ray.server.residual_pace import hollow_notes
from raffm_ray.server.state import ServerState
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.task_and_model import ModelSettings

ERRORS = 2.0
"""Within how many standard errors of the most frequent class's share an accuracy counts as chance."""

STILL = 0.02
"""Part of a loss below which its change says nothing of the learning rate."""


def hint_at_start(experiment: Experiment, task: Task, row: RoundRow) -> str | None:
    """About a starting model that answers no better than chance: as if it always named the most frequent class. `row`: of round 0."""
    labels = task.held_out.labels
    if task.metric != "accuracy" or row.metric is None or not isinstance(labels, np.ndarray) or labels.ndim != 1:
        return None
    counts = np.bincount(labels.astype(np.int64))
    share = float(counts.max() / counts.sum())
    if row.metric > share + ERRORS * sqrt(share * (1 - share) / counts.sum()):
        return None
    pretrain, new = experiment.model.pretrain, experiment.model.pretrained is None
    if pretrain.epochs or pretrain.head_epochs:
        more = f"more examples (task.public) or passes (model.pretrain.epochs, now {pretrain.epochs}) may be"
        cause = f"its training on {len(task.public)} public examples was not enough; {more}"
        if not pretrain.epochs:
            cause = f"its head alone, on {len(task.public)} public examples, was not enough; the rounds train the rest too"
    elif new:
        cause = "nothing is trained before round 1 (model.pretrain.epochs: 0)"
    else:
        cause = "its head is new, and is not trained before round 1 (model.pretrain.head_epochs: 0), or was made for other labels"
    number = int(counts.argmax())
    frequent = task.class_names[number] if task.class_names else f"label {number}"
    return (
        f"note: the full model starts at chance, accuracy {shown('accuracy', row.metric)}% where always answering "
        f"{frequent} has {shown('accuracy', share)}%: {cause}"
    )


def hint_at_end(experiment: Experiment, metric: str, first: RoundRow, last: RoundRow) -> str | None:
    """About a run whose full model ends no better than it began. `first`, `last`: its first and last rounds with an evaluation."""
    if first.metric is None or last.metric is None or first.loss is None or last.loss is None or first.round == last.round:
        return None
    if (last.metric > first.metric) if METRICS[metric].higher else (last.metric < first.metric):
        return None
    rate = f"local.learning_rate {experiment.local.learning_rate:g}"
    if abs(last.loss - first.loss) <= STILL * first.loss:
        rounds = counted(last.round, "round")
        cause = f"the loss on held-out examples hardly changed, from {first.loss:.3f} to {last.loss:.3f}: {rounds} may be too few, or {rate} does not suit"
    elif last.loss > first.loss:
        cause = f"the loss on held-out examples rose from {first.loss:.3f} to {last.loss:.3f}: {rate} may be too high"
    else:
        warmup = experiment.local.warmup_rounds or 0
        warm = f", of which {warmup} are warm-up (local.warmup_rounds)" if warmup else ""
        cause = f"the loss on held-out examples only fell from {first.loss:.3f} to {last.loss:.3f}: {rate} may be too low, or {last.round} rounds{warm} too few"
    return (
        f"warning: the run ends no better than it began, {metric} {shown(metric, first.metric)}{unit(metric)} -> "
        f"{shown(metric, last.metric)}{unit(metric)}: {cause}"
    )


def slow_precision(experiment: Experiment) -> str | None:
    """What to tell of a precision that does not pay on this processor, which is taken for the workers'; None of others.

    It is no mistake: the same run may go on elsewhere, and a small part of it be tried here.
    """
    if experiment.local.precision == "float32" or device_of(experiment.pool) != "cpu" or fast_bfloat16():
        return None
    return f"local.precision: {experiment.local.precision} pays on processors with AMX, and on those of AMD with AVX512-BF16; on this one float32 is faster, as far as was measured"


def unused_rows(foundation: Foundation, settings: ModelSettings) -> str | None:
    """What to tell of a new model whose embedding has more rows than the tokenizer has words. Pretrained ones come so: they are padded."""
    if foundation.words is None or foundation.source is not None or "vocab_size" not in settings.config:
        return None
    rows, words = foundation.config.vocab_size, words_of(foundation.words.tokenizer)
    if rows <= words:
        return None
    return f"model.config.vocab_size: the tokenizer has {words:,} words, so {rows - words:,} of the {rows:,} rows are never used"


def start_notes(prepared: Prepared, baselines: Sequence[Prepared], state: ServerState, folder: Path) -> list[str]:
    """What the user should know before a run starts: of its data, its fleet, what is frozen, sizes, memory, disk and precision. `state`: with
    a plain ranking. Raises UserError as `disk_notes`."""
    setup = prepared.setup
    other = slow_precision(setup.experiment), unused_rows(prepared.foundation, setup.experiment.model)
    return [
        *prepared.task.notes,
        *idle_budgets(setup),
        *frozen_in_words(setup.architecture),
        *hollow_notes(setup, state),
        *memory_notes(setup, state),
        *(line for line in other if line),
        *(line for one in (prepared, *baselines) for line in disk_notes(one.setup, state, folder)),
    ]
