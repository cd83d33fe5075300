"""Kinds of tasks: how rows of texts or images become a model's inputs and labels, and how its answers are scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError, shortened
from raffm_ray.data.encoding import Columns, Pictures, Words, chunks, spans
from raffm_ray.data.examples import IGNORED, Column, Examples, Ragged, ragged
from raffm_ray.data.metrics import METRICS, Answers, Writing
from raffm_ray.data.packing import packed
from raffm_ray.data.sources import Rows


@dataclass(frozen=True)
class Loading:
    """What reading a task's rows takes: its columns by role, and how this model wants its words or images. `no_answer_threshold`: by how much
    no answer must outscore the best one to be the answer."""

    name: str
    columns: Mapping[str, str]
    words: Words | None = None
    pictures: Pictures | None = None
    classes: tuple[str, ...] | None = None
    first_target: int | None = None
    stride: int = 0
    no_answer_threshold: float = 0.0

    def text(self) -> Words:
        """The tokenizer. Raises UserError where the model has none."""
        if self.words is None:
            raise UserError(
                f"task {self.name!r} holds texts, and the model has no tokenizer: set model.tokenizer to a folder or hub name"
            )
        return self.words

    def writing(self) -> Writing:
        """How a model writes an answer, of at most as many tokens as a text has."""
        assert self.first_target is not None
        return Writing(self.first_target, self.text().tokenizer.eos_token_id, self.text().length)


def _labels(rows: Rows, loading: Loading) -> NDArray[np.int64]:
    values = [value for (part,) in chunks(rows, loading.columns["label"]) for value in part]
    if loading.classes and any(isinstance(value, str) for value in values):
        code = {name: number for number, name in enumerate(loading.classes)}
        for row, value in enumerate(values):
            if value not in code:
                raise UserError(f"task.columns.label: expected the name of a class, got {shortened(value)} in row {row}")
        return np.array([code[value] for value in values], dtype=np.int64)
    for row, value in enumerate(values):
        if not isinstance(value, (int, np.integer)) or not -(2**63) <= value < 2**63:
            raise UserError(f"task.columns.label: expected classes (whole numbers or names), got {shortened(value)} in row {row}")
    return np.array(values, dtype=np.int64)


def _texts(rows: Rows, loading: Loading) -> Columns:
    roles = ("text", "text_pair") if "text_pair" in loading.columns else ("text",)
    return loading.text().texts(rows, loading.columns, *roles)


def _text_classes(rows: Rows, loading: Loading) -> Columns:
    return {**_texts(rows, loading), "labels": _labels(rows, loading)}


def _text_numbers(rows: Rows, loading: Loading) -> Columns:
    values = [value for (part,) in chunks(rows, loading.columns["label"]) for value in part]
    try:
        numbers = np.array(values, dtype=np.float32)
    except (TypeError, ValueError):
        numbers = np.array([np.nan], dtype=np.float32)
    if not np.isfinite(numbers).all():
        raise UserError(f"task.columns.label: expected finite numbers in {loading.columns['label']!r}")
    return {**_texts(rows, loading), "labels": numbers}


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
    optional: tuple[str, ...] = ("group",)
    read_packed: Callable[[Rows, Loading], Columns] | None = None


_TEXT = {"text": "text", "label": "label"}
_OPTIONAL = ("text_pair", "group")
_OF_CLASSES = ("accuracy", "f1", "f1_macro", "f1_weighted", "matthews")
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


def scorer(metric: str, rows: Rows, loading: Loading, held_out: tuple[Examples, Columns]) -> Callable[[Answers], float]:
    """What turns the answers of all held-out examples into the metric; of answers in words, each row's likeliest counts. Where some questions have
    no answer (SQuAD 2, Rajpurkar et al. 2018), a row is left unanswered if that scores higher.

    `held_out`: the examples, and the columns beside them that lead from tokens back to the words of `rows`.
    """
    examples, beside = held_out
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
