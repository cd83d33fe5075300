"""Own held-out examples and unseen clients: how many there are, of what, and that nothing learns from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_tokenizer, tiny_experiment
from rich.console import Console
from sklearn.utils.class_weight import compute_class_weight
from text_data import WORDS, glue_folder, sentences, text_experiment, write

from raffm_ray.basics.errors import BadUpdateError, UserError
from raffm_ray.data.examples import Ragged
from raffm_ray.data.sources import told_about
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.client_parts import client_parts, data_lines, sample
from raffm_ray.preparation.prepare import Prepared, prepare, prepared_of
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.reader import read_clients
from raffm_ray.runs.simulation import completed

PARTS = {"held_out": 0.2, "unseen": 0.2}


def experiment_with(**changes: Any) -> Any:
    clients = {"count": 12, "per_round": 6, **PARTS, **changes.pop("clients", {})}
    changes = {
        "loggers": (),
        "model": {"pretrain": {"epochs": 1}},
        "local": {"batch_size": 128},
        "server": {"bad_updates": "stop"},
        **changes,
    }  # else an update of no numbers would only be counted
    return tiny_experiment(clients=clients, task={"class_weights": "balanced"}, **changes)


def test_a_sample_takes_its_part_of_every_owner_and_class() -> None:
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(50), rng.integers(1, 40, 50))
    classes = rng.integers(0, 4, len(owners))
    held = sample(owners, (classes,), 0.2, rng)
    for owner in range(50):
        mine = owners == owner
        size, taken = mine.sum(), held[mine].sum()
        assert taken == (0 if size < 2 else min(max(1, np.floor(0.2 * size + 0.5)), size - 1))
        for one in range(4):
            part = taken * (classes[mine] == one).sum() / size
            assert np.floor(part) <= held[mine & (classes == one)].sum() <= np.ceil(part)


def test_a_sample_leaves_one_and_is_another_with_another_seed() -> None:
    owners = np.repeat(np.arange(3), [1, 2, 9])
    one, other = (sample(owners, (owners,), 0.99, np.random.default_rng(seed)) for seed in (0, 1))
    assert [one[owners == owner].sum() for owner in range(3)] == [0, 1, 8]
    assert not np.array_equal(one, other)


def test_the_latest_are_held_out_where_there_is_a_time() -> None:
    times = np.array([5, 1, 4, 2, 3, 9, 7])
    held = sample(np.array([0, 0, 0, 0, 0, 1, 1]), (times,), 0.4, np.random.default_rng(0), last=True)
    assert sorted(times[held]) == [4, 5, 9]


def test_parts_divide_what_clients_own() -> None:
    prepared, plain = prepare(experiment_with()), prepare(experiment_with(clients={"held_out": 0.0, "unseen": 0.0}))
    parts, setup = prepared.parts, prepared.setup
    for client, owned in enumerate(parts.owned):
        trained, held = parts.trained[client], parts.held_out[client]
        assert np.array_equal(np.sort(np.concatenate([trained, held])), owned)
        assert np.array_equal(owned, plain.shares[client])
        assert len(trained) == setup.examples[client]
        assert (len(trained) == 0) == parts.unseen[client]
    assert setup.device_types == plain.setup.device_types
    assert set(setup.unseen) == set(np.flatnonzero(parts.unseen).tolist())
    assert len(setup.unseen) == 2
    lines = data_lines(prepared.task, parts, 128)
    assert (
        lines[-1]
        == f"held out of the clients' data: {len(parts.all_held_out)} examples of 12 clients, with all of 2 unseen clients"
    )
    assert len(data_lines(plain.task, plain.parts, 128)) == len(lines) - 1
    assert not len(plain.parts.all_held_out)


@pytest.mark.parametrize(("asked", "count"), [(None, 0), (0, 0), ("all", 12), (5, 5), (99, 12)])
def test_so_many_clients_are_measured(asked: Any, count: int) -> None:
    measured = prepare(experiment_with(evaluation={"clients": asked})).parts.measured
    assert len(measured) == count
    assert np.array_equal(measured, np.unique(measured))


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"evaluation.clients: all needs examples that measure clients.*set clients.held_out"):
        prepare(tiny_experiment(evaluation={"clients": "all"}))
    with pytest.raises(UserError, match=r"clients.unseen: 0.1 needs two or more clients with examples, got 1"):
        prepare(tiny_experiment(clients={"count": 1, "per_round": 1, "unseen": 0.1}))
    with pytest.raises(UserError, match="clients.held_out"):
        tiny_experiment(clients={"held_out": 1.0})


def poisoned(prepared: Prepared) -> Prepared:
    """The same run with pixels that are no numbers, or words that no model has, in all examples that no client trains on."""
    task, held = prepared.task, prepared.parts.all_held_out
    column = next(iter(task.clients.inputs.values()))
    if isinstance(column, Ragged):
        values = column.values.copy()
        for one in held:
            values[column.edges[one] : column.edges[one + 1]] = 10**6
        changed: Any = replace(column, values=values)
    else:
        changed = np.array(column)
        changed[held] = np.nan
    clients = replace(task.clients, inputs={**task.clients.inputs, next(iter(task.clients.inputs)): changed})
    task = replace(task, clients=clients)
    if isinstance(column, Ragged):  # whether a model takes the longest example is tried on all of them
        return replace(prepared, task=task)
    return prepared_of(prepared.setup.experiment, prepared.foundation, task)


def final_of(prepared: Prepared, folder: Path) -> torch.Tensor:
    """The parameters after a whole run, calibration, evaluation and the end included."""
    from safetensors.torch import load_file

    start = starting_parameters(prepared, lambda *_: None, lambda *_: None)
    completed(prepared, start, folder, Environment(InProcessPool(prepared.runner()), Console(quiet=True)))
    return torch.cat([values.flatten() for values in load_file(folder / "checkpoints" / "final" / "model.safetensors").values()])


def leaking(prepared: Prepared) -> Prepared:
    """The same run, in which one example that is held out has come into every share."""
    leak = prepared.parts.all_held_out[:1]
    return replace(prepared, shares=tuple(np.concatenate([share, leak]) for share in prepared.shares))


PATHS = {
    "clients calibrate": {"salience": {"source": "clients", "every": 1, "until": 1.0, "examples": 64}},
    "public calibration": {"rounds": 1, "salience": {"source": "public"}, "pool": {"stack_clients": 1}},
}


@pytest.mark.parametrize("path", PATHS)
def test_nothing_learns_from_what_is_held_out(tmp_path: Path, path: str) -> None:
    prepared = poisoned(prepare(experiment_with(evaluation={"sizes": 0}, **PATHS[path])))
    assert final_of(prepared, tmp_path / "run").isfinite().all()
    rows = read_clients(tmp_path / "run")
    assert not {row["client"] for row in rows} & prepared.setup.unseen
    assert not any(row["refused"] or row["statistics_refused"] for row in rows)


def test_balanced_class_weights_are_of_what_is_trained_on() -> None:
    prepared = prepare(experiment_with())
    labels = prepared.task.clients.labels[np.concatenate(prepared.shares)]
    weights = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    assert prepared.setup.architecture.class_weights == pytest.approx(weights)
    everything = compute_class_weight("balanced", classes=np.arange(10), y=prepared.task.clients.labels)
    assert not np.allclose(weights, everything)


def test_control_a_leak_is_seen(tmp_path: Path) -> None:
    planted = leaking(poisoned(prepare(experiment_with(rounds=1, evaluation={"sizes": 0}, salience={"source": "public"}))))
    with pytest.raises(BadUpdateError, match="refused: client .* not finite"):
        final_of(planted, tmp_path / "run")


@pytest.mark.parametrize("leak", [False, True], ids=["as it is", "control: a leak is seen"])
def test_no_held_out_word_is_read(tmp_path: Path, leak: bool) -> None:
    tokenizer = str(tmp_path / "tokenizer")
    small_tokenizer(WORDS).save_pretrained(tokenizer)
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    clients = {"count": 6, "per_round": 6, "partition": "iid", **PARTS}
    experiment = text_experiment(task, "bert", tokenizer, loggers=(), rounds=1, clients=clients)
    prepared = poisoned(prepare(experiment))
    if leak:
        with pytest.raises(Exception, match="index out of range|out of bounds"):
            final_of(leaking(prepared), tmp_path / "run")
    else:
        assert final_of(prepared, tmp_path / "run").isfinite().all()


def test_windows_of_one_row_stay_together() -> None:
    """Rows 0 to 5 are cut into two windows each, which the partition gave to different clients here and there."""
    prepared = prepare(experiment_with())
    rows, rng = np.repeat(np.arange(6), 2), np.random.default_rng(0)
    task = replace(prepared.task, clients=prepared.task.clients.part(np.arange(12)), client_rows=rows)
    shares = [np.sort(part) for part in np.split(rng.permutation(12), 3)]
    parts = client_parts(prepared.setup.experiment, task, shares, ["laptop"] * 3)
    held = rows[parts.all_held_out]
    trained = rows[np.concatenate(parts.trained)]
    assert len(held)
    assert len(trained)
    assert not set(held) & set(trained)
    assert len(held) + len(trained) < 12  # windows of rows that are held out elsewhere are nobody's
    for share, own in zip(shares, parts.held_out, strict=True):
        assert np.array_equal(own, share[np.isin(rows[share], rows[own])])


def test_a_column_of_times_holds_out_the_latest(tmp_path: Path) -> None:
    tokenizer = str(tmp_path / "tokenizer")
    small_tokenizer(WORDS).save_pretrained(tokenizer)
    days = [f"2024-05-{day:02}" for day in range(1, 31)]
    columns = {"text": sentences(30), "label": [0, 1] * 15, "day": days[::-1], "shop": ["a", "b", "c"] * 10}
    task = {"name": "text_classification", "data": str(write(tmp_path / "data", "train", columns)), "public": 2, "held_out": 0.1}
    task["columns"] = {"time": "day", "group": "shop"}
    clients = {"count": 3, "per_round": 2, "partition": "natural", "held_out": 0.3}
    prepared = prepare(text_experiment(task, "bert", tokenizer, clients=clients))
    times = prepared.task.clients.times
    assert times is not None
    assert prepared.task.clients.group_names == ("a", "b", "c")
    for trained, held in zip(prepared.shares, prepared.parts.held_out, strict=True):
        assert times[held].min() > times[trained].max()
    with pytest.raises(UserError, match="task.columns.time: the column has empty cells"):
        told_about({"time": np.array(["2024-05-01", None])})
    with pytest.raises(UserError, match="task.columns.time: values of several kinds have no order"):
        told_about({"time": np.array(["2024-05-01", 3], dtype=object)})
