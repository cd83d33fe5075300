"""Every client's own examples: those that it trains on and those that measure it; and the clients that never train."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import counted
from raffm_ray.basics.seeding import generator
from raffm_ray.data.data_summary import data_summary
from raffm_ray.data.tasks import Task
from raffm_ray.settings.experiment import Experiment

Indices = NDArray[np.int64]
Shares = tuple[Indices, ...]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ClientParts:
    """By client, ascending indices of the clients' examples: `owned` of all, `trained` of those that it may train on, `held_out` of those that
    measure it, which nobody trains on. `unseen`: [clients], who never trains; all that such a client owns is held out.

    `measured`: the clients that are evaluated, ascending; none where `evaluation.clients` is not set.
    """

    owned: Shares
    trained: Shares
    held_out: Shares
    unseen: Flags
    measured: Indices

    @property
    def all_held_out(self) -> Indices:
        """The examples that measure some client, client after client."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.held_out])

    def may_train(self, examples: int) -> Flags:
        """[examples]: whether an example is among those that the clients train on, or nobody's."""
        allowed = np.ones(examples, dtype=bool)
        allowed[np.concatenate([np.zeros(0, dtype=np.int64), *self.owned])] = False
        allowed[np.concatenate([np.zeros(0, dtype=np.int64), *self.trained])] = True
        return allowed


def sample(owners: Indices, order: tuple[Indices, ...], fraction: float, rng: np.random.Generator, last: bool = False) -> Flags:
    """[things]: whether each is in a sample of its owner's, of about `fraction`: at least one where the owner has two or more, and never all.

    `order`: keys, most important first, by which an owner's things are sorted, ties at random. The sample is systematic: every so manieth, from
    a random start, so that of every run of equal keys it holds that fraction, rounded up or down (Cochran 1977, Sampling Techniques, section
    8.1). `last`: the last ones in that order instead.
    """
    places = np.lexsort((rng.permutation(len(owners)), *reversed(order), owners))
    sizes = np.bincount(owners, minlength=int(owners.max(initial=-1)) + 1)
    wanted = np.floor(fraction * sizes + 0.5).astype(np.int64).clip(1, np.maximum(sizes - 1, 1))
    wanted[sizes < 2] = 0
    starts = rng.integers(np.maximum(sizes, 1))
    owner = owners[places]
    place = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owner]
    size, count = sizes[owner], wanted[owner]
    if last:
        chosen = place >= size - count
    else:
        chosen = (place * count + starts[owner]) // size != ((place + 1) * count + starts[owner]) // size
    found = np.zeros(len(owners), dtype=bool)
    found[places] = chosen
    return found


def client_parts(experiment: Experiment, task: Task, shares: Sequence[Indices], device_types: Sequence[str]) -> ClientParts:
    """Divides every client's share as `clients.held_out` and `clients.unseen` say.

    Examples that are cut from one row, as windows of a long text overlap, stay together: what shares a row with a held-out example is
    held out too where it is the same client's, and nobody's otherwise. Raises UserError where no client could train or be measured.
    """
    settings, examples = experiment.clients, task.clients
    owner = np.full(len(examples), -1, dtype=np.int64)
    for client, share in enumerate(shares):
        owner[share] = client
    owned = owner >= 0
    unseen = _unseen(experiment, np.bincount(owner[owned], minlength=len(shares)), device_types)
    rows = np.arange(len(examples)) if task.client_rows is None else task.client_rows
    unit = owner * (int(rows.max(initial=0)) + 1) + rows  # what a client has of a row
    held = np.zeros(len(examples), dtype=bool)
    if settings.held_out:
        first = np.flatnonzero(owned)[np.unique(unit[owned], return_index=True)[1]]
        labels, rng = examples.labels, generator(experiment.seed, "own held-out examples")
        classes = labels if isinstance(labels, np.ndarray) and labels.dtype.kind == "i" and labels.ndim == 1 else owner
        key = classes if examples.times is None else examples.times
        held[first] = sample(owner[first], (key[first],), settings.held_out, rng, last=examples.times is not None)
    held[owned] |= unseen[owner[owned]]
    held = owned & np.isin(unit, unit[held])
    left_out = np.isin(rows, rows[held]) & ~held
    trained = tuple(share[~(held | left_out)[share]] for share in shares)
    held_out = tuple(share[held[share]] for share in shares)
    if (settings.held_out or settings.unseen) and not any(len(share) for share in trained):
        raise UserError(
            f"clients.held_out {settings.held_out:g}, clients.unseen {settings.unseen:g}: no client has examples left to train on"
        )
    return ClientParts(
        owned=tuple(shares),
        trained=trained,
        held_out=held_out,
        unseen=unseen,
        measured=_measured(experiment, held_out, unseen, device_types),
    )


def _coded(names: Sequence[str]) -> Indices:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _unseen(experiment: Experiment, sizes: Indices, device_types: Sequence[str]) -> Flags:
    """[clients]: those that never train, the same fraction of every device type's clients with examples, rounded up or down."""
    fraction, found = experiment.clients.unseen, np.zeros(len(sizes), dtype=bool)
    if not fraction:
        return found
    owners = np.flatnonzero(sizes)
    if len(owners) < 2:
        raise UserError(f"clients.unseen: {fraction:g} needs two or more clients with examples, got {len(owners)}")
    rng = generator(experiment.seed, "unseen clients")
    found[owners] = sample(np.zeros(len(owners), dtype=np.int64), (_coded(device_types)[owners],), fraction, rng)
    return found


def _measured(experiment: Experiment, held_out: Shares, unseen: Flags, device_types: Sequence[str]) -> Indices:
    """The clients that are evaluated: all that have held-out examples, or so many of them, seen and unseen ones of every device type alike."""
    asked = experiment.evaluation.clients
    if experiment.evaluation.tune.steps and not asked:
        raise UserError("evaluation.tune.steps: needs evaluation.clients, such as all: it is clients that are measured after it")
    able = np.flatnonzero([len(part) for part in held_out])
    if asked is None or asked == 0:
        return able[:0]
    if not len(able):
        raise UserError(
            f"evaluation.clients: {asked} needs examples that measure clients, and none are held out: set clients.held_out, such as 0.2"
        )
    if asked == "all" or asked >= len(able):
        return able
    strata = (unseen[able].astype(np.int64), _coded(device_types)[able])
    rng = generator(experiment.seed, "evaluated clients")
    return able[sample(np.zeros(len(able), dtype=np.int64), strata, asked / len(able), rng)]


def data_lines(task: Task, parts: ClientParts, max_length: int, padded: int | None = None, packed: bool = False) -> list[str]:
    """Lines on the data (see `data_summary`), and on what of it no client trains on."""
    lines = data_summary(task, parts.owned, max_length, padded, packed)
    held = len(parts.all_held_out)
    if held:
        unseen = f", with all of {counted(int(parts.unseen.sum()), 'unseen client')}" if parts.unseen.any() else ""
        clients = sum(len(part) > 0 for part in parts.held_out)
        lines.append(f"held out of the clients' data: {counted(held, 'example')} of {counted(clients, 'client')}{unseen}")
    return lines
