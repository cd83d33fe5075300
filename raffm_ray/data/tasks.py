"""Tasks: a data set as arrays, divided into public, clients', validation and held-out examples.

`TASK_TYPES` says how rows of a kind of task become a model's inputs; `TASKS` names data sets of such a kind, their columns and metric.
A task on data of one's own is a kind by its name, with `task.data` and `task.columns`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.basics.registry import Table
from raffm_ray.basics.seeding import generator
from raffm_ray.data.encoding import Pictures, Words
from raffm_ray.data.examples import Examples, Indices, Ragged, batch_length, sorted_batch_length
from raffm_ray.data.labels import classes_of, label_count, notes_on_classes, positive_class
from raffm_ray.data.layouts import Splits, in_memory
from raffm_ray.data.metrics import F1, METRICS, Answers, Writing
from raffm_ray.data.own_data import digits, own_rows, parts_of_arrays, ready_splits, splits_of
from raffm_ray.data.sources import Rows, divide, open_splits, split_of
from raffm_ray.data.task_types import TASK_TYPES, Loading, TaskType, by_length, client_scorer, examples_of, scorer
from raffm_ray.settings.task_and_model import TaskSettings


@dataclass(frozen=True)
class Task:
    """A task. `public` is for pretraining and calibration at the server, `clients` is divided over clients, `held_out` evaluates.

    `labels`: how many classes, 1 for a number, None where the head has none. `score`: answers on the held-out part -> the metric.
    `validation`: examples that nobody trains on either, by which a run may stop or choose its best round, and their score.
    `notes`: what a user should know about the data. `writing`: how answers in words are written, None where the metric takes others.
    `client_score`: answers on some of the clients' examples and their indices -> the metric, None where it is not defined on these;
    `client_rows`: the row that each was cut from, None where every row is one.
    """

    name: str
    head: str
    labels: int | None
    metric: str
    public: Examples
    clients: Examples
    held_out: Examples
    score: Callable[[Answers], float]
    class_names: tuple[str, ...] = ()
    validation: Examples | None = None
    validation_score: Callable[[Answers], float] | None = None
    notes: tuple[str, ...] = ()
    writing: Writing | None = None
    client_score: Callable[[Answers, Indices], float | None] | None = None
    client_rows: Indices | None = None

    @property
    def parts(self) -> dict[str, Examples]:
        """All parts that there are, by name."""
        parts = {"public": self.public, "clients": self.clients, "held-out": self.held_out}
        return parts if self.validation is None else {**parts, "validation": self.validation}

    def positions(self, batch_size: int, share: int | None = None) -> dict[str, int | None]:
        """How many tokens a batch of clients' texts is padded to on average, and its targets; None where there are none. `share`: how many
        examples a client has whose batches are of like length, None where they are not."""
        words = self.clients.lengths()
        targets = self.clients.labels.lengths if isinstance(self.clients.labels, Ragged) else None
        if words is not None and share is not None:
            tokens: int | None = sorted_batch_length(words, batch_size, share)
        else:
            tokens = None if words is None else batch_length(words, batch_size)
        return {
            "tokens": tokens,
            "targets": None if targets is None else batch_length(targets, batch_size),
        }


def check_labels(task: Task, labels: int) -> None:
    """Raises UserError when a part is empty, or a class lies outside 0..labels-1."""
    for part, examples in task.parts.items():
        if len(examples) == 0:
            raise UserError(f"task {task.name!r}: the {part} part is empty")
        if task.labels is None or not isinstance(examples.labels, np.ndarray) or examples.labels.dtype.kind == "f":
            continue
        low, high = int(examples.labels.min()), int(examples.labels.max())
        if low < 0 or high >= labels:
            raise UserError(
                f"task {task.name!r}: labels of the {part} part run from {low} to {high}, but the model has {labels} (0..{labels - 1})"
            )


@dataclass(frozen=True)
class Recipe:
    """A row of `TASKS`: a data set of a kind; what the settings name comes first. `rows`: a function that gives the data, instead of a
    file; `ready`: whether it gives the model's inputs and not yet rows of the kind."""

    kind: str
    data: str | None = None
    subset: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    held_out: str | None = None
    metric: str | None = None
    rows: Callable[[TaskSettings, np.random.Generator], Any] | None = None
    ready: bool = False


def _row(rows: Any, like: Recipe | None, **others: Any) -> Recipe:
    """Raises UserError for a kind that there is not."""
    row = replace(like, rows=rows, **others) if like else Recipe(**{**others, "rows": rows})
    look_up(TASK_TYPES, row.kind, "kind of task")
    return row


def _glue(
    subset: str, first: str, second: str | None, metric: str, kind: str = "text_classification", split: str = "validation"
) -> Recipe:
    columns = {"text": first} | ({"text_pair": second} if second else {})
    return Recipe(kind=kind, data="nyu-mll/glue", subset=subset, columns=columns, held_out=split, metric=metric)


_TASKS = {
    # GLUE (Wang et al. 2019, table 1): its nine tasks, columns and metrics.
    "cola": _glue("cola", "sentence", None, "matthews"),
    "sst2": _glue("sst2", "sentence", None, "accuracy"),
    "mrpc": _glue("mrpc", "sentence1", "sentence2", "f1"),
    "qqp": _glue("qqp", "question1", "question2", "f1"),
    "stsb": _glue("stsb", "sentence1", "sentence2", "pearson", "text_regression"),
    "mnli": _glue("mnli", "premise", "hypothesis", "accuracy", split="validation_matched"),
    "mnli_mismatched": _glue("mnli", "premise", "hypothesis", "accuracy", split="validation_mismatched"),
    "qnli": _glue("qnli", "question", "sentence", "accuracy"),
    "rte": _glue("rte", "sentence1", "sentence2", "accuracy"),
    "wnli": _glue("wnli", "sentence1", "sentence2", "accuracy"),
    "squad": Recipe("question_answering", "rajpurkar/squad", held_out="validation"),
    "squad_v2": Recipe("question_answering", "rajpurkar/squad_v2", held_out="validation"),
    "cifar10": Recipe("image_classification", "uoft-cs/cifar10", columns={"image": "img"}, held_out="test"),
    **{kind: Recipe(kind) for kind in TASK_TYPES},
}
TASKS: Table[Recipe] = Table("task", _TASKS, function="rows", make=_row, signatures={"rows": own_rows})
EMBEDDED = "digits"


def task_names() -> list[str]:
    """Every name that `task.name` may have."""
    return [EMBEDDED, *TASKS]


def needs_words(name: str) -> bool:
    """Whether a task's examples are texts. Raises UserError for an unknown name."""
    row = _recipe(name)
    return not row.ready and TASK_TYPES[row.kind].head != "image_classification"


def head_of(name: str) -> str:
    """The task head that a task needs. Raises UserError for an unknown name."""
    return TASK_TYPES[_recipe(name).kind].head


def is_packed(settings: TaskSettings) -> bool:
    """Whether the task's texts are joined into blocks. Raises UserError for an unknown name."""
    return settings.pack and TASK_TYPES[_recipe(settings.name).kind].read_packed is not None


def hub_name(settings: TaskSettings) -> str | None:
    """Where a task's data is, a local place or a name on the hub; None for the embedded task, and where the settings must name it."""
    return None if settings.name == EMBEDDED else settings.data or _recipe(settings.name).data


def _recipe(name: str) -> Recipe:
    return look_up({EMBEDDED: Recipe("image_classification", ready=True), **TASKS}, name, "task")


def load_task(
    settings: TaskSettings,
    rng: np.random.Generator,
    words: Words | None = None,
    pictures: Pictures | None = None,
    first_target: int | None = None,
    own: Mapping[str, Any] | None = None,
) -> Task:
    """The task that the settings describe, read and split; what was tokenized before comes from the cache. `own`: settings of plug-ins.

    Raises UserError for whatever is not there or does not fit, before anything is trained.
    """
    recipe = _recipe(settings.name)
    if settings.name == EMBEDDED:
        _refuse_for_digits(settings)
        fraction = settings.held_out if isinstance(settings.held_out, float) else 0.25
        parts = parts_of_arrays(settings, recipe.kind, {settings.train: digits()}, fraction, "accuracy", rng)
        return Task(name=settings.name, head=head_of(settings.name), metric="accuracy", **parts)
    kind = TASK_TYPES[recipe.kind]
    if settings.pack and kind.read_packed:
        kind = replace(kind, read=kind.read_packed)
    data, held_out = settings.data or recipe.data, recipe.held_out or 0.25 if settings.held_out is None else settings.held_out
    if recipe.rows is not None and settings.data:
        raise UserError(f"task.data: {data!r} cannot be set for task {settings.name!r}, whose data a function gives")
    if data is None and recipe.rows is None:
        raise UserError(f"task.data: task {settings.name!r} needs a data set: a local file or folder, or a name on the hub")
    columns = _columns(settings, recipe, kind)
    metric = settings.metric or recipe.metric or kind.metrics[0]
    metrics = [*kind.metrics, *(name for name, row in METRICS.items() if recipe.kind in row.kinds)]
    if metric not in metrics:
        raise UserError(f"task.metric: {metric!r} is not for {recipe.kind}{near_miss(metric, metrics, listed=True)}")
    if held_out == settings.train:
        raise UserError(f"task.held_out: {held_out!r} is also task.train: what evaluates must not be trained on")
    subset = settings.subset or (recipe.subset if settings.data is None else None)
    splits: Splits
    if recipe.rows is not None:
        rows_of = TASKS.chosen(settings.name, own or {}).rows
        assert rows_of is not None
        given = rows_of(settings, generator(settings.split_seed, "rows of a task"))
        if recipe.ready:
            parts = parts_of_arrays(settings, recipe.kind, ready_splits(settings.name, given), held_out, metric, rng)
            return Task(name=settings.name, head=kind.head, metric=metric, **parts)
        tables_given, key = splits_of(settings.name, given, list(kind.columns))
        splits = in_memory(tables_given)
    else:
        splits, key = open_splits(data or "", subset, settings.revision)
    rows = split_of(splits, key, settings.train, "task.train")
    held = split_of(splits, key, held_out, "task.held_out") if isinstance(held_out, str) else held_out
    tables = [rows, held] if isinstance(held, Rows) else [rows]
    for role, name in columns.items():
        for one in tables:
            one.column(role, name)
    named = "label" in columns and kind.head != "question_answering" and recipe.kind != "text_regression"
    classes, numbers = classes_of(tables, columns["label"]) if named else (None, None)
    shown, owned, testing, validating = divide(
        rows=rows, held_out=held, public=settings.public, limit=settings.examples, rng=rng, validation=settings.validation
    )
    stride = min(128, settings.max_length // 4)
    loading = Loading(
        name=settings.name,
        columns=columns,
        words=words,
        pictures=pictures,
        classes=classes,
        numbers=numbers,
        first_target=first_target,
        stride=stride,
        no_answer_threshold=settings.no_answer_threshold,
    )
    public, clients, held_part = (examples_of(part, kind, loading) for part in (shown, owned, testing))
    held_part = by_length(*held_part)
    validation = by_length(*examples_of(validating, kind, loading)) if validating else None
    everything = [part[0] for part in (public, clients, held_part, validation) if part]
    positive, told = positive_class(everything, classes) if metric == F1 else (1, ())
    labels = label_count(kind, recipe.kind, classes, everything)
    return Task(
        name=settings.name,
        head=kind.head,
        labels=labels,
        metric=metric,
        public=public[0],
        clients=clients[0],
        held_out=held_part[0],
        score=scorer(metric, testing, loading, held_part, positive),
        class_names=tuple(classes or ()),
        validation=validation[0] if validation else None,
        validation_score=scorer(metric, validating, loading, validation, positive) if validation and validating else None,
        notes=(*notes_on_classes(everything, classes, numbers), *told) if labels and recipe.kind != "text_regression" else (),
        writing=loading.writing() if METRICS[metric].written else None,
        client_score=client_scorer(metric, owned, loading, clients, positive),
        client_rows=row_of if "first" in clients[1] and isinstance(row_of := clients[1]["row"], np.ndarray) else None,
    )


def _refuse_for_digits(settings: TaskSettings) -> None:
    given = {
        name: getattr(settings, name)
        for name in ("data", "subset", "revision", "columns", "metric", "examples")
        if getattr(settings, name)
    }
    if isinstance(settings.held_out, str):
        given["held_out"] = settings.held_out
    if settings.train != "train":
        given["train"] = settings.train
    for name, value in given.items():
        raise UserError(
            f"task.{name}: {value!r} cannot be set for the embedded task {EMBEDDED!r}; other tasks: {', '.join(TASKS)}"
        )


def _columns(settings: TaskSettings, recipe: Recipe, kind: TaskType) -> dict[str, str]:
    roles = [*kind.columns, *kind.optional]
    for role in settings.columns:
        if role not in roles:
            raise UserError(f"task.columns: {role!r} is no role of a {recipe.kind} task{near_miss(role, roles, listed=True)}")
    return {**kind.columns, **recipe.columns, **settings.columns}
