"""Metrics: functions of a model's answers and the true answers."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.registry import Table

Answers = NDArray[np.float64]
F1 = "f1"
"""The metric that is of one of two classes."""


@dataclass(frozen=True)
class Metric:
    """A row of `METRICS`. `score(answers, truth)`: answers [examples, k] as the head's objective gives them (objectives.py).

    `percent`: whether it is a fraction that people read in %. `higher`: whether more is better. `written`: whether answers are tokens that the
    model writes, see `Writing`, instead of what the objective gives. `kinds`: the kinds of tasks that it is for, besides those that name it.
    `contrasts`: whether it compares true answers that differ, so that it says nothing of examples whose true answers are all the same.
    """

    score: Callable[[Answers, Any], float]
    percent: bool = True
    higher: bool = True
    written: bool = False
    kinds: tuple[str, ...] = ()
    contrasts: bool = False


@dataclass(frozen=True)
class Writing:
    """How a model writes an answer in words. `first`: the token that it starts from; `end`: the token that ends an answer, None where there is
    none; `most`: how many tokens an answer has at most."""

    first: int
    end: int | None
    most: int


def accuracy(answers: Answers, truth: NDArray[Any]) -> float:
    """Fraction of right classes."""
    return float(np.mean(answers[:, 0] == truth))


def f1(answers: Answers, truth: NDArray[Any]) -> float:
    """Harmonic mean of precision and recall of class 1 (GLUE: MRPC, QQP); 0 where nothing of it was found."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, answers[:, 0].astype(int), zero_division=0.0))


def f1_of(positive: int, answers: Answers, truth: Any) -> float:
    """`f1` of any class: what the metric is where that is not class 1."""
    return METRICS[F1].score(answers == positive, np.equal(truth, positive))


def _f1_of_classes(answers: Answers, truth: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each class's F1, 2 right / (answered + true), and how many examples have it, of all classes that somebody has or answers. Written out: a
    client's own few examples take scikit-learn a hundred times as long, and there are thousands of clients."""
    classes, places = np.unique(np.concatenate([truth, answers[:, 0].astype(int)]), return_inverse=True)
    true, answered = places[: len(truth)], places[len(truth) :]
    counts, given, right = (np.bincount(one, minlength=len(classes)) for one in (true, answered, true[true == answered]))
    return 2 * right / (counts + given), counts


def f1_macro(answers: Answers, truth: NDArray[Any]) -> float:
    """Mean over classes of each class's F1, all classes alike; of a class that nobody has or answers, 0 (scikit-learn's `macro`)."""
    return float(_f1_of_classes(answers, truth)[0].mean())


def f1_micro(answers: Answers, truth: NDArray[Any]) -> float:
    """F1 of all classes' decisions counted together (scikit-learn's `micro`); where every example has one class, the accuracy."""
    return float((answers[:, 0].astype(int) == truth).mean())


def f1_weighted(answers: Answers, truth: NDArray[Any]) -> float:
    """Mean over classes of each class's F1, weighted by how many examples it has (scikit-learn's `weighted`)."""
    each, counts = _f1_of_classes(answers, truth)
    return float(each @ counts / counts.sum())


def matthews(answers: Answers, truth: NDArray[Any]) -> float:
    """Matthews correlation (GLUE: CoLA)."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(truth, answers[:, 0].astype(int)))


def pearson(answers: Answers, truth: NDArray[Any]) -> float:
    """Pearson correlation (GLUE: STS-B); 0 where the answers are all the same."""
    given = answers[:, 0]
    return float(np.corrcoef(given, truth)[0, 1]) if given.std() > 0 and truth.std() > 0 else 0.0


def spearman(answers: Answers, truth: NDArray[Any]) -> float:
    """Spearman's rank correlation, ties at their mean rank (GLUE: STS-B); 0 where the answers are all the same."""
    from scipy.stats import rankdata

    return pearson(rankdata(answers[:, :1], axis=0), rankdata(truth))


def perplexity(answers: Answers, truth: Any) -> float:
    """exp of the mean negative log-likelihood of a token; answers: [examples, (sum, tokens)]."""
    with np.errstate(over="ignore"):
        return float(np.exp(answers[:, 0].sum() / max(answers[:, 1].sum(), 1.0)))


def _plain(text: str) -> str:
    """A text as SQuAD compares it: lower case, without punctuation, articles and extra spaces (Rajpurkar et al. 2016, script)."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def text_f1(given: str, true: str) -> float:
    """F1 of the words that two texts share (Rajpurkar et al. 2016, section 6.1)."""
    first, second = _plain(given).split(), _plain(true).split()
    if not first or not second:
        return float(first == second)
    shared = sum((Counter(first) & Counter(second)).values())
    return 2 * shared / (len(first) + len(second))


def rouge_l(given: str, true: str) -> float:
    """ROUGE-L of two texts: F of the longest common subsequence of words (Lin 2004, equations 2 to 4 with beta 1); 0 where either is empty.

    Words are runs of letters and digits, in lower case and not stemmed; for ASCII texts they are those of the package `rouge-score`.
    """
    first, second = (re.findall(r"[^\W_]+", text.lower()) for text in (given, true))
    common = [0] * (len(second) + 1)  # by how much of the second text
    for word in first:
        before = 0
        for at, other in enumerate(second, 1):
            before, common[at] = common[at], before + 1 if word == other else max(common[at], common[at - 1])
    return 2 * common[-1] / max(1, len(first) + len(second))


def _best(compare: Callable[[str, str], float]) -> Callable[[Any, Any], float]:
    def score(given: Sequence[str], truth: Sequence[Sequence[str]]) -> float:
        return float(
            np.mean([max(compare(one, true) for true in (wanted or [""])) for one, wanted in zip(given, truth, strict=True)])
        )

    return score


def _of_those(answered: bool, compare: Callable[[str, str], float]) -> Callable[[Any, Any], float]:
    """Of the questions that have an answer, or of those that have none (Rajpurkar et al. 2018). Raises UserError where there is no such one."""

    def score(given: Sequence[str], truth: Sequence[Sequence[str]]) -> float:
        kept = [(one, wanted) for one, wanted in zip(given, truth, strict=True) if bool(wanted) == answered]
        if not kept:
            raise UserError(f"task.metric: the data has no questions {'with' if answered else 'without'} an answer")
        return _best(compare)(*zip(*kept, strict=True))

    return score


def _same_text(given: str, true: str) -> float:
    return float(_plain(given) == _plain(true))


_METRICS = {
    "accuracy": Metric(accuracy),
    F1: Metric(f1, contrasts=True),
    "matthews": Metric(matthews, contrasts=True),
    "f1_macro": Metric(f1_macro, contrasts=True),
    "f1_micro": Metric(f1_micro),
    "f1_weighted": Metric(f1_weighted, contrasts=True),
    "pearson": Metric(pearson, contrasts=True),
    "spearman": Metric(spearman, contrasts=True),
    "perplexity": Metric(perplexity, percent=False, higher=False),
    # Of answers in words: one text an example, against any of several true ones.
    "span_f1": Metric(_best(text_f1)),
    "exact_match": Metric(_best(_same_text)),
    "has_answer_f1": Metric(_of_those(True, text_f1)),
    "has_answer_exact": Metric(_of_those(True, _same_text)),
    "rouge_l": Metric(_best(rouge_l), written=True),
    "no_answer": Metric(_of_those(False, _same_text)),
}
METRICS: Table[Metric] = Table(
    "metric", _METRICS, without_settings="a metric has no settings: another one is a function with another name"
)


def defined(metric: str, truth: Any, score: Callable[[], float]) -> float | None:
    """`score()`, None where the metric is not defined on these true answers: it contrasts answers and they are all the same, or there are
    none of the kind that it is about."""
    if METRICS[metric].contrasts and len(np.unique(truth)) < 2:
        return None
    try:
        value = score()
    except UserError:  # as `_of_those` says it
        return None
    return None if isnan(value) else value


def shown(metric: str, value: float) -> str:
    """0.9694 accuracy -> `96.9`; 12.345 perplexity -> `12.3`."""
    return f"{100 * value:.1f}" if METRICS[metric].percent else f"{value:.4g}"


def scaled(metric: str, value: float) -> float:
    """The value as people read it: in % or as it is."""
    return 100 * value if METRICS[metric].percent else value


def unit(metric: str) -> str:
    """`%` where people read it so."""
    return "%" if METRICS[metric].percent else ""


def worst_name(metric: str, named: Mapping[str, float]) -> str:
    """The first name with the worst value."""
    return (min if METRICS[metric].higher else max)(named, key=named.__getitem__)


def worst(metric: str, values: Sequence[float]) -> float:
    """The worst of several values."""
    return min(values) if METRICS[metric].higher else max(values)
