"""Runs whose clients make up their updates: all that a server does, hardly any time."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from conftest import tiny_experiment
from numpy.typing import NDArray

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.client_state import ClientState, state_of
from raffm_ray.clients.evaluation.own_model import OwnModel
from raffm_ray.clients.messages import Job, Report, RoundContext, Update
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.settings.experiment import Experiment


class Quick(ClientRunner):
    """A client's change follows from its round, number and the parameters; an evaluation from the parameters."""

    def block(
        self,
        context: RoundContext,
        flat: NDArray[np.float32],
        jobs: Sequence[Job],
        states: Mapping[int, ClientState] | None = None,
    ) -> tuple[Update, NDArray[np.float32]]:
        total, weights, reports, statistics = np.zeros_like(flat), dict[int, float](), [], None
        kept = dict[int, ClientState]()
        for job in jobs:
            if job.calibrate and context.statistic:
                statistics = self._client(
                    self._parameters(flat, context, None), context, Job(job.client, None, calibrate=True), None
                )[2]
                self.module_factory.release()
            if job.plan is not None:
                rng = generator(context.seed, "quick", context.round, job.client)
                change = np.float32(0.01) * rng.standard_normal(len(flat), dtype=np.float32) - np.float32(0.1) * flat
                if states is not None:
                    had = states[job.client].tensors["quick/value"] if job.client in states else torch.zeros(3)
                    kept[job.client] = state_of(Plan(), {"quick": {"value": had / 2 + float(change[0])}}, {})
                    change += np.float32(had[1])
                total += np.float32(job.weight) * change
                weights[job.plan] = weights.get(job.plan, 0.0) + job.weight
            examples = len(self.shares[job.client])
            reports.append(
                Report(
                    client=job.client,
                    plan=job.plan,
                    examples=examples,
                    steps=1,
                    loss=float(np.abs(total).sum()),
                    seconds=0.1,
                    received_loss=1.0 + job.client % 3,
                    state_bytes=kept[job.client].nbytes if job.client in kept else None,
                )
            )
        return Update(weights, tuple(reports), statistics, kept), total

    def evaluate(
        self, context: RoundContext, flat: NDArray[np.float32], plan: int, start: int, stop: int, validating: bool = False
    ) -> tuple[tuple[NDArray[np.float64], float, int], None]:
        classes = np.floor(10 * np.abs(np.sin(1e4 * (plan + 1) * float(flat[:10].sum()) * np.arange(start + 1, stop + 1))))
        return (classes[:, None], float(np.abs(flat).sum()), stop - start), None

    def evaluate_client(self, context: RoundContext, flat: Any, asked: OwnModel, batches: Sequence[NDArray[np.int64]]) -> Any:
        own = 0.0 if asked.state is None else float(asked.state.tensors["quick/value"].sum())
        return self.evaluate_clients(context, flat + np.float32(own), asked.plan + asked.tune_steps, np.concatenate(batches))

    def evaluate_clients(
        self, context: RoundContext, flat: NDArray[np.float32], plan: int, indices: NDArray[np.int64]
    ) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], None]:
        classes = np.floor(10 * np.abs(np.sin(1e4 * (plan + 1) * float(flat[:10].sum()) * (indices + 1))))
        return (classes[:, None], np.stack([np.abs(classes), np.ones(len(indices))], axis=1)), None


RICH: dict[str, Any] = {
    "rounds": 3,
    "model": {"freeze": ["*embeddings*"]},
    "clients": {"count": 12, "per_round": 4, "held_out": 0.2, "unseen": 0.1, "selection": "oort"},
    "task": {"validation": 20},
    "evaluation": {"every": 1, "keep_best": True, "sizes": 1, "clients": "all"},
    "server": {"optimizer": "adam", "learning_rate": 0.01, "agnostic_rate": 0.1},
    "clock": {"late": "accept", "over_selection": 1.75, "dropout": 0.1},
    "salience": {"every": 2, "until": 1.0, "clients": 1, "examples": 8},
}
"""Settings under which a state has something of everything."""


REMEMBERING: dict[str, Any] = RICH | {
    "evaluation": RICH["evaluation"] | {"keep_best": False, "tune": {"steps": 2}},
    "strategy": {"name": "raffm", "prefix": "none", "personal": ["classifier"]},
    "local": {"client_update": "scaffold", "optimizer": "sgd", "learning_rate": 0.05},
    "server": RICH["server"] | {"agnostic_rate": 0.0},
    "clock": RICH["clock"] | {"staleness": 0.0},
}
"""The same with clients that keep parameters and control variates. A run that keeps the best round would need the states of that round, and
the mean of control variates needs weights that stay the clients' own."""


@cache
def _prepared(text: str) -> tuple[Prepared, Any]:
    prepared = prepare(Experiment.model_validate_json(text))
    return prepared, starting_parameters(prepared, lambda *_: None, lambda *_: None)


def quick(**changes: Any) -> tuple[Prepared, Any, InProcessPool]:
    """A prepared experiment, what it starts from, and a pool of clients that do nothing."""
    experiment = tiny_experiment(**changes)
    prepared, start = _prepared(experiment.model_dump_json())
    plain = prepared.runner()
    runner = Quick(plain.architecture, plain.examples, plain.shares, plain.held_out, plain.validation)
    return prepared, start, InProcessPool(runner)
