"""Kinds of tasks: how rows of texts or images become a model's inputs and labels, and how its answers are scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.data.encoding import Columns, Pictures, Words, cached, spans, values_of
from raffm_ray.data.examples import IGNORED, Column, Examples, Indices, Ragged, owner_of, ragged
from raffm_ray.data.metrics import F1, METRICS, Answers, Writing, defined, f1_of
from raffm_ray.data.packing import packed
from raffm_ray.data.sources import ABOUT, Rows, told_about


@dataclass(frozen=True)
class Loading:
    """What reading a task's rows takes: its columns by role, and how this model wants its words or images. `numbers`: what
    the data calls the classes, where that is not 0, 1, ...; `no_answer_threshold`: by how much no answer must outscore the best one to be the answer."""

    name: str
    columns: Mapping[str, str]
    words: Words | None = None
    pictures: Pictures | None = None
    classes: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None
    first_target: int | None = None
    stride: int = 0
    no_answer_threshold: float = 0.0

    def text(self) -> Words:
        """The tokenizer. Raises UserError where the model has none."""
        if self.words is None:
            raise UserError(
                f"task {self.name!r} holds texts, and the model has no tokenizer: set model.tokenizer to a folder or hub name, or to "
                "all-MiniLM-L6-v2, which a Python package carries"
            )
        return self.words

    def writing(self) -> Writing:
        """How a model writes an answer, of at most as many tokens as a text has."""
        assert self.first_target is not None
        return Writing(self.first_target, self.text().tokenizer.eos_token_id, self.text().length)


def _labels(rows: Rows, loading: Loading) -> NDArray[np.int64]:
    values = values_of(rows, loading.columns["label"])
    if loading.classes and not loading.numbers and any(isinstance(value, str) for value in values):
        code = {name: number for number, name in enumerate(loading.classes)}
        for row, value in enumerate(values):
            if value not in code:
                raise rows.mistake("label", row, f"expected the name of a class, got {shortened(value)}")
        return np.array([code[value] for value in values], dtype=np.int64)
    numbers = [whole(value) for value in values]
    for row, number in enumerate(numbers):
        if number is None:
            raise rows.mistake("label", row, f"expected classes (whole numbers or names), got {shortened(values[row])}")
    known = None if loading.numbers is None else {number: place for place, number in enumerate(loading.numbers)}
    return np.array(numbers if known is None else [known[number] for number in numbers if number is not None], dtype=np.int64)


def whole(value: Any) -> int | None:
    """The whole number of 64 bits that a value is, however it is stored; None where it is none."""
    if isinstance(value, float | np.floating | Decimal):
        if not isfinite(value) or value != int(value):
            return None
        value = int(value)
    return int(value) if isinstance(value, int | np.integer) and -(2**63) <= value < 2**63 else None


def _texts(rows: Rows, loading: Loading) -> Columns:
    roles = ("text", "text_pair") if "text_pair" in loading.columns else ("text",)
    return loading.text().texts(rows, loading.columns, *roles)


def _text_classes(rows: Rows, loading: Loading) -> Columns:
    return {**_texts(rows, loading), "labels": _labels(rows, loading)}


def _text_numbers(rows: Rows, loading: Loading) -> Columns:
    name = loading.columns["label"]
    numbers = [_number(value) for value in values_of(rows, name)]
    for row, number in enumerate(numbers):
        if not isfinite(number):
            raise rows.mistake("label", row, f"expected a finite number in {name!r}")
    return {**_texts(rows, loading), "labels": np.array(numbers, dtype=np.float32)}


def _number(value: Any) -> float:
    """A number as float32 has it; not a number where it is none."""
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(value))
    except (TypeError, ValueError):
        return np.nan


def _image_classes(rows: Rows, loading: Loading) -> Columns:
    if loading.pictures is None:
        raise UserError(f"task {loading.name!r} holds images, and the model does not take any")
    return {**loading.pictures.images(rows, loading.columns["image"]), "labels": _labels(rows, loading)}


def _answers(rows: Rows, loading: Loading) -> Columns:
    return spans(rows, loading.columns, loading.text(), loading.stride)


def _next_words(rows: Rows, loading: Loading) -> Columns:
    words = loading.text().texts(rows, loading.columns, "text")["input_ids"]
    assert isinstance(words, Ragged)
    long_enough = words.part(np.flatnonzero(words.lengths > 1))
    # One word has no next one; the rows that are left are told, for what else is known of a row.
    rows_left = np.flatnonzero(words.lengths > 1)
    return {"row": rows_left, "input_ids": long_enough, "labels": Ragged(long_enough.values, long_enough.edges, IGNORED)}


def _blocks(rows: Rows, loading: Loading) -> Columns:
    return packed(rows, loading.columns, loading.text())


def _target_words(rows: Rows, loading: Loading) -> Columns:
    source = loading.text().texts(rows, loading.columns, "source")
    target = loading.text().texts(rows, loading.columns, "target")["input_ids"]
    assert isinstance(target, Ragged)
    if not isinstance(loading.first_target, int):
        raise UserError(
            "model.config: decoder_start_token_id, a token's number, is needed for a sequence-to-sequence task, got "
            f"{loading.first_target!r}"
        )
    pieces = [target.values[start:stop] for start, stop in zip(target.edges, target.edges[1:], strict=False)]
    shifted = ragged(([loading.first_target, *piece[:-1]] for piece in pieces), target.fill)
    return {**source, "decoder_input_ids": shifted, "labels": Ragged(target.values, target.edges, IGNORED)}


@dataclass(frozen=True)
class TaskType:
    """A row of `TASK_TYPES`. `columns`: the column of every role that it needs, unless the task names another; `metrics`: default first;
    `read_packed`: stands in for `read` with `task.pack`, None where texts are never joined."""

    head: str
    columns: Mapping[str, str]
    read: Callable[[Rows, Loading], Columns]
    metrics: tuple[str, ...]
    optional: tuple[str, ...] = ("group", "time")
    read_packed: Callable[[Rows, Loading], Columns] | None = None


_TEXT = {"text": "text", "label": "label"}
_OPTIONAL = ("text_pair", "group", "time")
_OF_CLASSES = ("accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted", "matthews")
TASK_TYPES: dict[str, TaskType] = {
    "text_classification": TaskType(
        head="sequence_classification", columns=_TEXT, read=_text_classes, metrics=_OF_CLASSES, optional=_OPTIONAL
    ),
    "text_regression": TaskType(
        head="sequence_classification", columns=_TEXT, read=_text_numbers, metrics=("pearson", "spearman"), optional=_OPTIONAL
    ),
    "image_classification": TaskType(
        head="image_classification", columns={"image": "image", "label": "label"}, read=_image_classes, metrics=_OF_CLASSES
    ),
    "question_answering": TaskType(
        head="question_answering",
        columns={name: name for name in ("question", "context", "answers")},
        read=_answers,
        metrics=("span_f1", "exact_match", "has_answer_f1", "has_answer_exact", "no_answer"),
    ),
    "language_modelling": TaskType(
        head="causal_language_modelling",
        columns={"text": "text"},
        read=_next_words,
        metrics=("perplexity",),
        read_packed=_blocks,
    ),
    "sequence_to_sequence": TaskType(
        head="sequence_to_sequence",
        columns={"source": "source", "target": "target"},
        read=_target_words,
        metrics=("perplexity", "rouge_l"),
    ),
}


def scorer(
    metric: str, rows: Rows, loading: Loading, held_out: tuple[Examples, Columns], positive: int = 1
) -> Callable[[Answers], float]:
    """What turns the answers of all held-out examples into the metric; of answers in words, each row's likeliest counts. Where some questions have
    no answer (SQuAD 2, Rajpurkar et al. 2018), a row is left unanswered if that scores higher.

    `held_out`: the examples, and the columns beside them that lead from tokens back to the words of `rows`; `positive`: the class that `f1` is of.
    """
    examples, beside = held_out
    if metric == F1:
        return lambda answers: f1_of(positive, answers, examples.labels)
    if METRICS[metric].written:
        return _score_of_texts(metric, rows, loading, beside["order"])
    if "first" not in beside:
        return lambda answers: METRICS[metric].score(answers, examples.labels)

    truth = [answer["text"] for answer in rows.table[loading.columns["answers"]]]
    always_answered = all(truth)

    def score(answers: Answers) -> float:
        texts, best = [""] * len(rows), np.full(len(rows), -np.inf)
        empty = np.full(len(rows), np.inf)  # the lowest score of no answer among a row's parts, as SQuAD 2 takes it
        contexts = rows.table[loading.columns["context"]]
        first, last, row_of = beside["first"], beside["last"], beside["row"]
        assert isinstance(first, Ragged)
        assert isinstance(last, Ragged)
        assert isinstance(row_of, np.ndarray)
        for feature, (start, stop, sure, *none) in enumerate(answers):
            row = int(row_of[feature])
            empty[row] = min(empty[row], none[0] if none else -np.inf)
            inside = int(start) < first.lengths[feature] and int(stop) < last.lengths[feature]
            begin = int(first.values[first.edges[feature] + int(start)]) if inside else -1
            end = int(last.values[last.edges[feature] + int(stop)]) if inside else -1
            if sure > best[row] and 0 <= begin < end:
                best[row], texts[row] = sure, contexts[row][begin:end]
        if not always_answered:
            texts = ["" if empty[row] - best[row] > loading.no_answer_threshold else text for row, text in enumerate(texts)]
        return METRICS[metric].score(texts, truth)  # type: ignore[arg-type]  # of words, for metrics of words

    return score


def client_scorer(
    metric: str, rows: Rows, loading: Loading, clients: tuple[Examples, Columns], positive: int = 1
) -> Callable[[Answers, Indices], float | None]:
    """As `scorer`, of answers on any of the clients' examples, told by their indices; None where the metric is not defined on these."""
    examples, beside = clients

    def score(answers: Answers, indices: Indices) -> float | None:
        part, own, there = Examples({}, examples.labels_of(indices)), rows, Columns()
        if METRICS[metric].written:
            own, there = rows.select(indices), {"order": np.arange(len(indices))}
        elif "first" in beside:
            first, last, row_of = (beside[name] for name in ("first", "last", "row"))
            assert isinstance(first, Ragged)
            assert isinstance(last, Ragged)
            assert isinstance(row_of, np.ndarray)
            places, again = np.unique(row_of[indices], return_inverse=True)
            own, there = rows.select(places), {"first": first.part(indices), "last": last.part(indices), "row": again}
        return defined(metric, part.labels, lambda: scorer(metric, own, loading, (part, there), positive)(answers))

    return score


def _score_of_texts(metric: str, rows: Rows, loading: Loading, order: Column) -> Callable[[Answers], float]:
    """What compares the tokens that a model wrote, [examples, positions] with -1 behind them, with the whole targets of the rows in this order."""
    assert isinstance(order, np.ndarray)
    targets = list(rows.table[loading.columns["target"]])
    truth = [[targets[row]] for row in order]

    def score(answers: Answers) -> float:
        tokens = [one[one >= 0].astype(int).tolist() for one in answers]
        texts = loading.text().tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return METRICS[metric].score(texts, truth)

    return score


def examples_of(rows: Rows, kind: TaskType, loading: Loading) -> tuple[Examples, Columns]:
    """The rows as examples, from the cache where they were read before, and the columns that are not for the model."""
    form = loading.pictures if loading.words is None else loading.words.key
    key = [rows.key, kind.read.__name__, loading.columns, loading.classes, loading.first_target, loading.stride, form]
    columns = cached([*key, *([loading.numbers] if loading.numbers else [])], lambda: kind.read(rows, loading))
    beside: Columns = {name: columns.pop(name) for name in ("row", "first", "last") if name in columns}
    if isinstance(kept := beside.get("row"), np.ndarray) and "first" not in beside:
        rows = rows.select(kept)
    labels = columns.pop("labels")
    about = {role: values_of(rows, loading.columns[role]) for role in ABOUT if role in loading.columns}
    if "group" in about:
        about["group"] = [owner_of(value) or "" for value in about["group"]]
    if about and len(rows) != len(labels):
        raise UserError(f"task.columns.{next(iter(about))}: only for tasks in which every row is one example")
    return Examples(columns, labels, **told_about({role: np.array(values) for role, values in about.items()})), beside


def by_length(examples: Examples, beside: Columns) -> tuple[Examples, Columns]:
    """Held-out texts from short to long, so that evaluating pads little; where answers lead back to rows, as they are."""
    lengths = examples.lengths()
    if lengths is None or "first" in beside:
        return examples, beside
    order = np.argsort(lengths, kind="stable")
    return examples.part(order), {**beside, "order": order}
