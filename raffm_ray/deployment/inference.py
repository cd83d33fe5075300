"""Measures a deployed model: its metric on held-out examples, and its latency on this machine."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.data.tasks import Task
from raffm_ray.models.objectives import OBJECTIVES, Objective
from raffm_ray.models.writing import write_greedily

Answer = Callable[[Mapping[str, Tensor]], Any]
"""Inputs by name -> the head's output, with what transformers calls `logits`, or `start_logits` and `end_logits`."""
WARM, LEAST, MOST = 5, 30, 400
"""Calls before times count, and how many are timed at least and at most."""


def torch_answer(model: nn.Module) -> Answer:
    """Answers of a module."""

    def answer(inputs: Mapping[str, Tensor]) -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return answer


def metric_of(answer: Answer, task: Task, batch_size: int, objective: Objective | None = None) -> float:
    """The task's metric on its held-out part. `objective`: what the model is measured by, if not its head's."""
    objective, given = objective or OBJECTIVES[task.head], []
    for start in range(0, len(task.held_out), batch_size):
        batch = task.held_out.batch(slice(start, min(start + batch_size, len(task.held_out))))
        labels = batch.pop("labels")
        if task.writing is None:
            answers = objective.answers(answer(batch), labels)
        else:
            answers = write_greedily(lambda **given: answer(given), batch, task.writing)
        given.append(answers.double().numpy())
    return task.score(np.concatenate(given))


def typical_inputs(task: Task, examples: int = 1) -> dict[str, Tensor]:
    """Inputs of held-out examples of middling length."""
    lengths = task.held_out.lengths()
    order = np.arange(len(task.held_out)) if lengths is None else np.argsort(lengths, kind="stable")
    start = max(0, (len(order) - examples) // 2)
    return {name: values for name, values in task.held_out.batch(order[start : start + examples]).items() if name != "labels"}


def extreme_inputs(task: Task) -> list[dict[str, Tensor]]:
    """Inputs of the two held-out examples with the shortest texts, and of the two with the longest; of any where they hold none."""
    lengths = task.held_out.lengths()
    order = np.arange(len(task.held_out)) if lengths is None else np.argsort(lengths, kind="stable")
    batches = (task.held_out.batch(part) for part in (order[:2], order[-2:]))
    return [{name: values for name, values in batch.items() if name != "labels"} for batch in batches]


def latencies(
    answers: Mapping[str, Answer], inputs: Mapping[str, Tensor], seconds: float = 1.0
) -> dict[str, tuple[float, float]]:
    """(median, 95th percentile) of the milliseconds of an answer, by name, in turns, so that what else the machine does meets all alike.

    `seconds`: about how long each is timed. With one torch thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        taken: dict[str, list[float]] = {name: [] for name in answers}
        for turn in range(WARM + MOST):
            for name, answer in answers.items():
                start = perf_counter()
                answer(inputs)
                if turn >= WARM:
                    taken[name].append(1e3 * (perf_counter() - start))
            if turn >= WARM + LEAST and sum(map(sum, taken.values())) > 1e3 * seconds * len(answers):
                break
    finally:
        torch.set_num_threads(threads)
    return {name: (float(np.median(times)), float(np.percentile(times, 95))) for name, times in taken.items()}
