"""How much disk the states of clients will take, said and refused before a run starts."""

from collections import Counter
from pathlib import Path
from shutil import disk_usage

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.formatting import counted, human_bytes
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.server.device_type_plans import device_type_plans
from raffm_ray.server.kept.client_memory import state_bytes
from raffm_ray.server.state import ServerState, Setup

FILE_BYTES = 4096
"""What a file takes besides its tensors: its header, and the block of the disk that it ends in."""


def states_bytes(setup: Setup, state: ServerState) -> int:
    """Estimate of the most that the states of all clients take on the disk: for each client the tensors of its device type's subnetwork, of the
    kinds that its update keeps and of the personal parameters, the indices of the subnetwork (8 bytes each), and a file's own part; and
    for every checkpoint that is kept, those of the clients that may have trained between it and the next."""
    row, experiment = CLIENT_UPDATES[setup.experiment.local.client_update], setup.experiment
    each = {
        name: state_bytes(setup.architecture, plan, len(row.keeps), setup.personal)
        + 8 * sum(kept.size for kept in plan.values())
        + FILE_BYTES
        for name, plan in device_type_plans(setup, state).items()
    }
    owners = Counter(name for name, owns in zip(setup.device_types, setup.owners.tolist(), strict=True) if owns)
    total = sum(count * each[name] for name, count in owners.items())
    settings, clients = experiment.checkpoint, sum(owners.values())
    between = settings.keep * min(settings.every * experiment.clients.per_round, clients)
    return total + between * max(each.values())


def disk_notes(setup: Setup, state: ServerState, folder: Path | None = None) -> list[str]:
    """A line on the disk that the states of clients take; none where they keep nothing. `folder`: of the run, None where it is not known yet.

    Raises UserError where its disk has less room than that.
    """
    if not setup.keeps:
        return []
    needed, clients = states_bytes(setup, state), int(setup.owners.sum())
    line = f"states of {counted(clients, 'client')}: at most {human_bytes(needed)} on the disk, in {counted(clients, 'file')} or somewhat more"
    if folder is None:
        return [line]
    place = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = disk_usage(place).free
    if needed > free:
        raise UserError(
            f"--out {folder}: the states of {counted(clients, 'client')} take up to {human_bytes(needed)}, and its disk has {human_bytes(free)} free: "
            "another folder, fewer clients, or fewer of strategy.personal"
        )
    return [line]
