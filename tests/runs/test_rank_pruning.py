"""Clients that drop ranks of their own (HetLoRA's self-pruning): the penalty, what is dropped and when, what it is charged, and that it lasts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from test_adapter_runs import experiment
from torch import Tensor, nn

import raffm_ray
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.clients.local_training import Training
from raffm_ray.clients.updates.pruning import penalty, rank_pruning, tails
from raffm_ray.models.adapters.lora import factors, rank_axis
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.rounds.rows import RoundRow
from raffm_ray.server.kept.client_memory import ClientMemory
from raffm_ray.server.plans.of_adapters import fewer_ranks
from raffm_ray.settings.experiment import LocalSettings

LOCAL = {"client_update": "rank_pruning", "proximal": 0.5}


class Adapter(nn.Module):
    """A module of one adapter, whose loss is linear in it."""

    def __init__(self, rank: int, push: float) -> None:
        super().__init__()
        self.layer, self.push = nn.Linear(5, 7), push
        self.layer.requires_grad_(False)
        generator = torch.Generator().manual_seed(rank)
        self.layer.lora_A, self.layer.lora_B = nn.Linear(5, rank, bias=False), nn.Linear(rank, 7, bias=False)
        for one in (self.layer.lora_A, self.layer.lora_B):
            one.weight.data = torch.randn(one.weight.shape, generator=generator)

    def forward(self) -> Tensor:
        return self.push * (self.layer.lora_A.weight.sum() + self.layer.lora_B.weight.sum())


class Linear:
    """An objective that is what the module answers."""

    def loss(self, output: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return output


def outcome(rank: int, push: float, strength: float, steps: int = 1) -> tuple[Any, dict[str, Tensor], Adapter]:
    module = Adapter(rank, push)
    local = LocalSettings(optimizer="sgd", clip=None, **{**LOCAL, "proximal": strength})
    training = Training(objective=Linear(), local=local, learning_rate=0.1)  # type: ignore[arg-type]
    given = {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}
    batches = [{"labels": torch.zeros(1)}] * steps
    found = rank_pruning(module, batches, given, training, np.random.default_rng(0), None)  # type: ignore[arg-type]
    return found, given, module


def test_a_step_is_along_the_gradient_of_loss_and_penalty() -> None:
    push = -20.0  # grows, so that all ranks are sent as they are
    found, given, _ = outcome(rank=6, push=push, strength=0.5)
    free = {name: values.clone().requires_grad_() for name, values in given.items()}
    down, up = (free[name] for name in factors("layer"))
    loss = push * (down.sum() + up.sum()) + 0.5 * down[5:].norm() * up[:, 5:].norm()
    loss.backward()
    assert found.ranks is None
    for name, values in free.items():
        assert torch.allclose(found.sent[name], -0.1 * values.grad, atol=1e-5)
    assert float((down.grad[5:] - push).norm()) > 1e-2  # the penalty's part
    assert torch.equal(down.grad[:5], torch.full((5, 5), push))


@pytest.mark.parametrize(("push", "strength", "dropped"), [(0.0, 0.5, True), (-20.0, 1e-3, False)], ids=["shrinks", "grows"])
def test_ranks_are_dropped_where_they_shrank_and_are_sent_as_zeros(push, strength, dropped) -> None:
    found, given, module = outcome(rank=6, push=push, strength=strength, steps=3)
    assert found.ranks == (5 if dropped else None)
    after = {name: given[name] + change for name, change in found.sent.items()}
    (down, up), *others = tails(after)
    assert not others
    assert bool(down.any() or up.any()) != dropped
    assert torch.allclose(after["layer.lora_A.weight"][:5], module.layer.lora_A.weight[:5].detach())


def test_one_rank_stays() -> None:
    found, *_ = outcome(rank=1, push=0.0, strength=0.5)
    assert found.ranks is None
    assert penalty(tails({"layer.lora_A.weight": torch.ones(1, 3), "layer.lora_B.weight": torch.ones(2, 1)})) == 0


def test_a_plan_keeps_the_first_ranks_and_all_else() -> None:
    architecture = prepare(experiment("hetlora")).setup.architecture
    axes = [rank_axis(module) for module in architecture.adapters.modules]
    plan = Plan({axes[0]: [0, 1, 2], "0/ffn": [1, 3]})
    assert fewer_ranks(plan, architecture.layout, None) is plan
    assert fewer_ranks(plan, architecture.layout, 9) == plan
    cut = fewer_ranks(plan, architecture.layout, 2)
    assert {name: cut[name].tolist() for name in cut} == {"0/ffn": [1, 3], **{axis: [0, 1] for axis in axes}}


def test_the_server_remembers_the_ranks_of_each_client() -> None:
    memory = ClientMemory().after([], 1, 4, None, {2: 3})
    assert [memory.ranks_of(client) for client in range(4)] == [None, None, 3, None]
    assert [memory.after([], 2, 4, None, {0: 1}).ranks_of(client) for client in range(4)] == [1, None, 3, None]


def ranks_by_round(folder: Path) -> Iterator[tuple[int, int, int]]:
    """(round, client, ranks) that were trained, from the bytes that were sent."""
    rows = ds.dataset(folder / "clients").to_table(["round", "client", "bytes_up"]).to_pylist()
    heads, one = 24 * 10 + 10, 3 * (4 * 48 + 2 * (24 + 40))
    for row in sorted(rows, key=lambda row: (row["round"], row["client"])):
        yield row["round"], row["client"], (row["bytes_up"] // 4 - heads) // one


def pruned(strength: float, **changes: Any) -> Any:
    whole: dict[str, Any] = {"clients": {"count": 4, "per_round": 4}, "rounds": 4, **changes}
    return experiment("hetlora", (1.0,) * 5, local={**LOCAL, "proximal": strength, "learning_rate": 0.05}, **whole)


def test_a_run_in_which_ranks_are_dropped_is_charged_for_those_that_are_left(tmp_path) -> None:
    found = raffm_ray.simulate(pruned(20.0), tmp_path / "run")
    ranks: dict[int, list[int]] = {}
    for _, client, count in ranks_by_round(tmp_path / "run"):
        ranks.setdefault(client, []).append(count)
    assert all(counts[0] == 4 and counts == sorted(counts, reverse=True) for counts in ranks.values())
    assert min(counts[-1] for counts in ranks.values()) < 3
    none = raffm_ray.simulate(pruned(1e-9), tmp_path / "none")
    assert found["bytes_up"] < none["bytes_up"]
    assert found["bytes_down"] < none["bytes_down"]
    assert found["flops"] < none["flops"]


def test_what_clients_dropped_lasts_through_an_interruption(tmp_path) -> None:
    whole = raffm_ray.simulate(pruned(20.0), tmp_path / "whole")

    def stop(row: RoundRow) -> None:
        if row.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raffm_ray.simulate(pruned(20.0, checkpoint={"every": 1}), tmp_path / "parts", on_round=stop)
    assert raffm_ray.resume(tmp_path / "parts")["params_sha256"] == whole["params_sha256"]
    assert list(ranks_by_round(tmp_path / "parts")) == list(ranks_by_round(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": {"name": "rbla"}}, "strategy.aggregation: must be all_clients with local.client_update 'rank_pruning'"),
        ({"strategy": {"name": "raffm", "aggregation": "all_clients"}}, "strategy.name: must be one that sends leading ranks"),
        ({"strategy": {"name": "hetlora", "factors": "up"}}, "strategy.factors: must be both"),
        ({"strategy": {"name": "hetlora", "personal": ["classifier"]}}, "strategy.personal: must be empty"),
        ({"strategy": {"name": "full"}, "model": {"adapters": None}}, "local.client_update: 'rank_pruning' is about adapters"),
        ({"local": {"client_update": "rank_pruning"}}, "local.proximal: must be above 0 .* lambda of HetLoRA"),
        ({"pool": {"stack_clients": 4}}, "pool.stack_clients: 4 .* 'rank_pruning' trains one by one"),
    ],
)
def test_what_pruning_cannot_be_with_is_one_line(changes, told) -> None:
    with pytest.raises(UserError, match=told):
        prepare(experiment("hetlora", evaluation={"aggregation_error": False}, **{"local": LOCAL, **changes}))
