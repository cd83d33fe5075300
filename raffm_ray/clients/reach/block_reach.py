"""What a block's sum holds: no more than its clients' plans, and their words, can reach of the trained parameters.

Of a round's parameters a block of small plans changes a part, and a full-size sum would move zeros. How a block reaches follows from the round
alone, so both ends know it and only numbers travel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod

import numpy as np
import torch
from torch import Tensor

from raffm_ray.axes.flat_parameters import Flat, as_tensor, views
from raffm_ray.axes.indexing import Indices, Plan, Selections, scatter_add_selected, selected_shape
from raffm_ray.axes.layout import selections
from raffm_ray.axes.nesting import bounding
from raffm_ray.clients.messages import Job, RoundContext
from raffm_ray.clients.reach.own_words import OwnWords
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.word_rows import word_table

LEAST_BYTES = 1 << 20
"""Sums of a model with fewer are whole: cutting them takes longer than moving zeros."""


@lru_cache(maxsize=64)
def _selections(architecture: Architecture, plan: Plan) -> Selections:
    return selections(architecture.shapes, architecture.layout, plan)


@dataclass(frozen=True)
class Reach:
    """`plan`: has all that one of the block's plans has, None where nobody trains; `words`: [words], ascending, the rows that the block's sum has of the table of
    words, None for all."""

    architecture: Architecture
    plan: Plan | None
    words: Indices | None = None

    @property
    def selections(self) -> Selections:
        """What the sum has of every trained parameter."""
        if self.plan is None:
            return {}
        architecture, words = self.architecture, self.words
        found = {name: one for name, one in _selections(architecture, self.plan).items() if name in architecture.trained_shapes}
        if words is not None and (table := word_table(architecture)):
            found[table] = (torch.from_numpy(words), *found[table][1:])
        return found

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every trained parameter in the sum."""
        shapes = self.architecture.trained_shapes
        return {name: selected_shape(shapes[name], selected) for name, selected in self.selections.items()}

    def lengths(self, flat: int, variate: bool) -> tuple[int, int, int]:
        """Numbers in the sum: of the model, of the copies that sizes have of their own, which are whole, and of a control variate. `flat`: in the round's array."""
        model, one = sum(map(prod, self.shapes.values())), sum(map(prod, self.architecture.trained_shapes.values()))
        return model, (flat - one * (1 + variate)) * (self.plan is not None), model * variate

    def add_to(self, total: Tensor, array: Flat, variate: bool) -> None:
        """Adds a block's sum to that of a round, flat, in place."""
        if self.words is None and self.plan == Plan():
            np.add(total.numpy(), array, out=total.numpy())
            return
        part = as_tensor(array)
        model, copies, _ = self.lengths(len(total), variate)
        shapes, chosen = self.architecture.trained_shapes, self.selections
        start = len(total) - variate * sum(map(prod, shapes.values()))
        pairs = [(total[:start], part[:model])] + ([(total[start:], part[model + copies :])] if variate else [])
        for into, of in pairs if chosen else ():
            named = views(into, shapes)
            for name, values in views(of, self.shapes).items():
                scatter_add_selected(named[name], values, chosen[name])
        if copies:
            total[start - copies : start].add_(part[model : model + copies])


def reach_of(context: RoundContext, jobs: Sequence[Job], architecture: Architecture, words: OwnWords | None) -> Reach:
    """Of a block. `words`: of all clients, where they have their own rows alone."""
    if 4 * sum(map(prod, architecture.trained_shapes.values())) < LEAST_BYTES:
        return Reach(architecture, Plan())
    training = [job for job in jobs if job.plan is not None]
    plans = {context.plans[job.plan] for job in training if job.plan is not None}
    if not plans:
        return Reach(architecture, None)
    own = reduce(np.union1d, (words.rows(job.client) for job in training)) if words and word_table(architecture) else None
    return Reach(architecture, bounding(sorted(plans, key=lambda plan: plan.key), architecture.layout), own)
