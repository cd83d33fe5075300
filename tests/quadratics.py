"""Clients whose losses are quadratics, so that all that a method ends at is known in closed form; a loop that plays the server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.local_training import Training
from raffm_ray.clients.updates.row import Memory, Outcome
from raffm_ray.server.aggregation import mean_over_coverage
from raffm_ray.server.kept.client_memory import variate_change
from raffm_ray.server.optimizers import SERVER_OPTIMIZERS, share_of
from raffm_ray.settings.experiment import LocalSettings, ServerSettings

ENTRIES, BODY = 6, 4
"""Entries of the model, and how many of them are the parameter `body`; the others are `head`."""
RATE = 0.3


class Quadratic(nn.Module):
    """Some entries of the model."""

    def __init__(self, flat: Tensor, held: Tensor) -> None:
        super().__init__()
        self.body = nn.Parameter(flat[held[held < BODY]])
        self.head = nn.Parameter(flat[held[held >= BODY]])

    def forward(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([self.body, self.head]), matrix


def loss(output: tuple[Tensor, Tensor], optimum: Tensor, reduction: str) -> Tensor:
    """1/2 (w - optimum)' A (w - optimum)."""
    away = output[0] - optimum
    return 0.5 * away @ output[1] @ away


class Given(list[Mapping[str, Tensor]]):
    """Batches of a round, all alike."""

    prefix_at = None

    def note(self, prefix: int | None, batch: Mapping[str, Tensor]) -> None:
        """Nobody asks how many examples there were."""


@dataclass
class Federation:
    """`matrices` [clients, entries, entries], `optima` [clients, entries], `weights` [clients], `held`: by client, which entries it holds."""

    matrices: Tensor
    optima: Tensor
    weights: Tensor
    held: Sequence[Tensor]

    def mean_zero(self, pulls: Tensor) -> Tensor:
        """Where the weighted sum of pulls_i (x - optimum_i) is 0. `pulls`: [clients, entries, entries], 0 beside what a client holds."""
        weighted = self.weights[:, None, None] * pulls
        return torch.linalg.solve(weighted.sum(0), torch.einsum("cij,cj->i", weighted, self.optima))

    def inside(self, client: int, values: Tensor) -> Tensor:
        """[entries, entries] of [held, held]."""
        whole, held = torch.zeros(ENTRIES, ENTRIES, dtype=torch.float64), self.held[client]
        whole[held[:, None], held] = values
        return whole

    def cut(self, client: int) -> Tensor:
        """A client's matrix, [held, held]."""
        held = self.held[client]
        return self.matrices[client][held[:, None], held]

    def pulls(self, function: Any) -> Tensor:
        """[clients, entries, entries]: a function of each client's own matrix."""
        return torch.stack([self.inside(client, function(self.cut(client))) for client in range(len(self.weights))])

    @property
    def optimum(self) -> Tensor:
        """Of the weighted mean of the losses."""
        return self.mean_zero(self.pulls(lambda matrix: matrix))

    def fedavg(self, count: int) -> Tensor:
        """Where FedAvg of so many steps of gradient descent stands still: I - (I - rate A)^count is how far a client comes to its optimum."""
        return self.mean_zero(self.pulls(lambda a: eye(a) - torch.linalg.matrix_power(eye(a) - RATE * a, count)))

    @property
    def holders(self) -> Tensor:
        """The weight of all clients that hold each entry."""
        return sum((flat_of(self.held[at], one.expand(len(self.held[at]))) for at, one in enumerate(self.weights)), nothing())


def nothing() -> Tensor:
    return torch.zeros(ENTRIES, dtype=torch.float64)


def eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype)


def flat_of(held: Tensor, values: Tensor) -> Tensor:
    """[entries] of what some of them have, 0 elsewhere."""
    flat = nothing()
    flat[held] = values
    return flat


def clients_of(in_part: bool = False, count: int = 4) -> Federation:
    """Clients of different optima, curvatures and weights; `in_part`: most of them hold only some entries."""
    rng = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(count, ENTRIES, ENTRIES, generator=rng, dtype=torch.float64)).Q
    curvatures = 0.3 + 2 * torch.rand(count, ENTRIES, generator=rng, dtype=torch.float64)
    parts = [[0, 1, 4, 5], [0, 1, 2, 4, 5], [1, 4], list(range(ENTRIES))]
    return Federation(
        matrices=bases @ torch.diag_embed(curvatures) @ bases.mT,
        optima=2 * torch.randn(count, ENTRIES, generator=rng, dtype=torch.float64),
        weights=torch.arange(1, count + 1, dtype=torch.float64),
        held=[torch.tensor(parts[client % 4] if in_part else list(range(ENTRIES))) for client in range(count)],
    )


@dataclass
class Server:
    """What there is after a round. `kept`: by client, kind and name; `own`: by client, its personal parameters; `moved`: who took part."""

    flat: Tensor = field(default_factory=nothing)
    variate: Tensor = field(default_factory=nothing)
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    kept: dict[int, Mapping[str, Mapping[str, Tensor]]] = field(default_factory=dict)
    own: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    moved: Sequence[int] = ()

    def kept_flat(self, clients: Federation, client: int, kind: str) -> Tensor:
        """[entries]: what a client keeps of a kind, 0 of what it does not hold or before it trained."""
        if client not in self.kept:
            return nothing()
        return flat_of(clients.held[client], torch.cat(list(self.kept[client][kind].values())))

    def mean_kept(self, clients: Federation, kind: str, over: Sequence[int] | None = None) -> Tensor:
        """Its weighted mean over the clients that hold an entry; `over`: over some of them alone."""
        chosen = range(len(clients.weights)) if over is None else over
        total = sum((clients.weights[one] * self.kept_flat(clients, one, kind) for one in chosen), nothing())
        return total / clients.holders


def rounds_of(
    name: str,
    clients: Federation,
    count: int,
    per_round: int = 0,
    personal: Sequence[str] = (),
    change_of: Any = variate_change,
    **local: Any,
) -> Iterator[Server]:
    """What there is after each round of a client update, with its server's side. `count`: steps of a client; `per_round`: how many clients take
    part, 0 for all; `change_of`: as `variate_change`, and given what covers each entry as well where it is another."""
    row, state, rng = CLIENT_UPDATES[name], Server(), np.random.default_rng(0)
    settings = LocalSettings(optimizer="sgd", clip=None, client_update=name, **local)
    training: Any = Training(SimpleNamespace(loss=loss), settings, RATE, personal=frozenset(personal))  # type: ignore[arg-type]
    optimizer = next((one for one in SERVER_OPTIMIZERS.values() if one.client_update == name), SERVER_OPTIMIZERS["sgd"])
    while True:
        state.moved = sorted(rng.choice(len(clients.weights), per_round or len(clients.weights), replace=False).tolist())
        summed, covered, beside = nothing(), nothing(), nothing()
        for client in state.moved:
            held, weight = clients.held[client], clients.weights[client]
            module = Quadratic(state.flat, held)
            own = dict(module.named_parameters())
            for key in personal:
                own[key].data.copy_(state.own.get(client, own)[key])
            given = {key: values.detach().clone() for key, values in own.items()}
            lengths = [len(values) for values in own.values()]
            begun = {
                kind: {key: values.clone() if start == "received" else torch.zeros_like(values) for key, values in given.items()}
                for kind, start in row.keeps.items()
            }
            told = dict(zip(own, state.variate[held].split(lengths), strict=True))
            memory = Memory(state.kept.get(client, begun), variate=told) if row.remembers else None
            batch = {"matrix": clients.cut(client), "labels": clients.optima[client][held]}
            outcome = Outcome(*row.train(module, Given([batch] * count), given, training, rng, memory))  # type: ignore[arg-type]
            sent = outcome.sent or {key: values.detach() - given[key] for key, values in own.items()}
            state.own[client] = {key: own[key].detach().clone() for key in personal}
            moved = torch.cat([torch.zeros_like(values) if key in personal else values for key, values in sent.items()])
            summed += weight * flat_of(held, moved)
            covered += weight * flat_of(held, torch.ones_like(moved))
            if outcome.memory is not None:
                state.kept[client] = outcome.memory.kept
                if row.variate:
                    beside += weight * flat_of(held, torch.cat(list(outcome.memory.variate.values())))
        averaged = mean_over_coverage(state.flat, summed, covered, float(covered.max()))
        share = share_of(covered, clients.holders) if optimizer.shares else covered
        state.flat, state.moments = optimizer.step(state.flat, averaged, share, state.moments, ServerSettings())
        change = change_of(beside, clients.holders) if change_of is variate_change else change_of(beside, covered)
        state.variate = state.variate + change
        yield state


def after(rounds: int, name: str, clients: Federation, count: int, **options: Any) -> Server:
    """What there is after so many rounds."""
    steps = rounds_of(name, clients, count, **options)
    return [next(steps) for _ in range(rounds)][-1]
