"""A block's sum holds what its plans' trained entries can reach: fewer numbers, the same round to the bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_experiment
from plans import masks, random_cut
from realistic_models import ALL
from round_states import context_of, state_of

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.nesting import bounding, within
from raffm_ray.basics.errors import ClientError
from raffm_ray.benchmarks.rounds import Rounds, numpy_of, starting_flat
from raffm_ray.benchmarks.synthetic_data import synthetic
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.messages import Job
from raffm_ray.clients.reach import block_reach
from raffm_ray.clients.reach.block_reach import reach_of
from raffm_ray.pool.worker_pool import open_pool
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import ServerState

TEXTS = {key: value for key, value in TINY["bert"].items() if key != "num_labels"} | {
    "vocab_size": 2500,
    "max_position_embeddings": 40,
}
SHARES: dict[str, Any] = {"budgets": {"raspberry_pi_5": {"params": 0.99}}, "mix": "medium"}
CASES: dict[str, dict[str, Any]] = {
    "nested": {},
    "stacked": {"pool": {"stack_clients": 4}},
    "several plans a block": {"pool": {"block_clients": 3}},
    "copies of norms": {"strategy": {"own": ["norms"]}, "pool": {"block_clients": 2}},
    "a control variate": {"local": {"client_update": "scaffold"}, "strategy": {"prefix": "none"}},
    "rolling windows": {"strategy": {"name": "fedrolex"}, "pool": {"block_clients": 3}},
    "random plans": {"strategy": {"name": "federated_dropout"}, "pool": {"block_clients": 3}},
    "layers": {
        "strategy": {"name": "depth"},
        "pool": {"block_clients": 3},
    },
    "late": {"clock": {"late": "accept", "over_selection": 2.0}, "clients": {"count": 12, "per_round": 3}},
    "frozen": {"model": {"freeze": ["vit.embeddings*"]}},
}


def digits(**changes: Any) -> Prepared:
    values = {key: {**value} for key, value in changes.items()}
    values["pool"] = {"backend": "in_process", "stack_clients": 1, **values.get("pool", {})}
    return prepare(tiny_experiment(salience={"metric": "l1"}, **values))


def texts(**changes: Any) -> Prepared:
    pool = {"backend": "in_process", "stack_clients": 1, **changes.pop("pool", {})}
    local = {"batch_size": 4, "steps": 2, "learning_rate": 1e-2}
    strategy = {"name": "full", "vocabulary": "own", **changes.pop("strategy", {})}
    return synthetic(TEXTS, "texts", clients=6, per_round=6, local=local, examples=8, pool=pool, strategy=strategy, **changes)


def started(prepared: Prepared, runner: ClientRunner) -> Rounds:
    """A federation with a ranking, which ends with its test."""
    return Rounds(prepared.setup, open_pool(runner, prepared.setup.experiment.pool), state_of(prepared))


def after_two(prepared: Prepared, least: int, monkeypatch: pytest.MonkeyPatch) -> tuple[ServerState, list[int]]:
    """The state after two rounds with sums that are whole below so many bytes, and the lengths of all sums."""
    lengths: list[int] = []
    monkeypatch.setattr(block_reach, "LEAST_BYTES", least)
    runner = prepared.runner()
    real = runner.block

    def block(*given: Any) -> Any:
        update, part = real(*given)
        lengths.append(len(part))
        return update, part

    monkeypatch.setattr(runner, "block", block)
    rounds = started(prepared, runner)
    rounds.run(2)
    return rounds.state, lengths


@pytest.mark.parametrize("case", CASES)
def test_a_round_is_the_same_to_the_bit(case, monkeypatch) -> None:
    (cut, lengths), (whole, full) = (after_two(digits(**CASES[case]), least, monkeypatch) for least in (0, 1 << 60))
    assert cut.parameters.numpy().tobytes() == whole.parameters.numpy().tobytes()
    assert cut.memory.variate.numpy().tobytes() == whole.memory.variate.numpy().tobytes()
    assert len(lengths) == len(full)
    assert len(set(full)) == 1
    assert sum(lengths) < 0.99 * sum(full)


@pytest.mark.parametrize("pool", [{"block_clients": 1}, {"block_clients": 4}, {"stack_clients": 3}], ids=str)
def test_sums_of_texts_have_the_rows_that_their_clients_read(pool, monkeypatch) -> None:
    (cut, lengths), (whole, full) = (after_two(texts(pool=pool), least, monkeypatch) for least in (0, 1 << 60))
    assert cut.parameters.numpy().tobytes() == whole.parameters.numpy().tobytes()
    prepared = texts(pool=pool)
    work, words = begin_round(prepared.setup, state_of(prepared)), prepared.setup.words
    assert words is not None
    read = [np.unique(np.concatenate([words.rows(job.client) for job in block])) for block in work.blocks]
    assert sorted(lengths[: len(read)]) == sorted(full[0] - 24 * (2500 - len(one)) for one in read)


def test_who_only_calibrates_returns_nothing(monkeypatch) -> None:
    prepared = digits()
    monkeypatch.setattr(block_reach, "LEAST_BYTES", 0)
    state = state_of(prepared)
    context = context_of(prepared, state, Plan(), statistic="square", calibration_examples=4)
    update, part = prepared.runner().block(context, numpy_of(state.parameters), [Job(0, None, calibrate=True)])
    assert update.statistics
    assert part.shape == (0,)


def test_control_a_sum_that_reaches_elsewhere_is_refused_or_another(monkeypatch) -> None:
    prepared = digits()
    monkeypatch.setattr(block_reach, "LEAST_BYTES", 0)
    runner, real = prepared.runner(), reach_of
    monkeypatch.setattr(
        "raffm_ray.runs.rounds.run_round.reach_of",
        lambda context, jobs, *others: real(context, [replace(job, plan=0) for job in jobs], *others),
    )
    with pytest.raises(ClientError, match=r"its sum is float32 \(\d+,\), not float32"):
        started(prepared, runner).run()


@pytest.mark.parametrize("seed", range(3))
def test_what_bounds_plans_has_them_all_and_no_axis_more(seed, architecture) -> None:
    rng, layout = np.random.default_rng(seed), architecture.layout
    plans = [random_cut(layout, rng, ALL, layers=True) for _ in range(3)]
    outer = bounding(plans, layout)
    both = masks(layout, architecture.shapes, outer)
    for plan in plans:
        within(plan, outer, layout)
        for name, mask in masks(layout, architecture.shapes, plan).items():
            assert torch.all(both[name] >= mask)
    for name, kept in outer.items():
        if kept.ndim == 1:
            assert set(kept.tolist()) == set().union(*(set(plan[name].tolist()) for plan in plans))
    assert bounding([plans[0], plans[0]], layout) == Plan(
        {name: np.sort(kept, axis=-1) for name, kept in plans[0].items() if kept.shape[-1] < layout.axes[name].size}
    )
    assert not bounding([plans[0], Plan()], layout)


def test_who_has_one_plan_sends_it(monkeypatch) -> None:
    prepared = digits()
    monkeypatch.setattr(block_reach, "LEAST_BYTES", 0)
    architecture, plan = prepared.setup.architecture, Plan({"residual": np.arange(12)})
    context = replace(context_of(prepared, state_of(prepared), plan), size_specific=())
    reach = reach_of(context, [Job(0, 0), Job(1, 0)], architecture, None)
    assert sum(reach.lengths(len(starting_flat(prepared)), variate=False)) == prepared.setup.costs(plan).params
