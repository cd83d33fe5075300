"""The states of clients: one file for each client and round in which it trained, read and written only when the client trains.

Which version of a client's state counts is part of the server's state (`ClientMemory.trained_at`): a file that was written after the last
checkpoint is written again, to the same bits, by who goes on. A version is removed once no checkpoint could go on from it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from raffm_ray.axes.serialization import pack, unpack
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import read_whole, write_atomically
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.messages import Job, Update
from raffm_ray.server.kept.client_memory import ClientMemory
from raffm_ray.server.state import ServerState

FOLDER = "states"
ABOUT = "raffm_ray"
"""Where a file has the state's other values, and its digest."""
EACH = 1000
"""Clients whose files are in one folder."""


def place_of(folder: Path, client: int, round_number: int) -> Path:
    """Where in a run's folder the state of a client after a round is."""
    return folder / FOLDER / f"{client // EACH:05d}" / f"{client:08d}-round-{round_number:06d}.safetensors"


def _digest(manifest: str, arrays: dict[str, NDArray[Any]]) -> str:
    digest = sha256(manifest.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def packed(state: ClientState) -> bytes:
    """A state as a safetensors file, with its digest."""
    plain, arrays = pack(state)
    manifest = json.dumps(plain, allow_nan=False)
    about = json.dumps({"manifest": manifest, "sha256": _digest(manifest, arrays)})
    return bytes(save(arrays, {ABOUT: about}))  # one entry: safetensors writes several in any order


def read_state(path: Path, client: int) -> ClientState:
    """A state, equal to the bit to the one written. Raises UserError, which names the client, where the file is missing or damaged."""
    try:
        read_whole(path)  # a link or a folder in its place is told of
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ABOUT])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # it is no mapping
        found = _digest(about["manifest"], {name: values.numpy() for name, values in tensors.items()})
        if found != about["sha256"]:
            raise ValueError("its content is not what was written")
        state: ClientState = unpack(ClientState, json.loads(about["manifest"]), tensors)
    except FileNotFoundError:
        raise UserError(f"client {client}: its state is missing: {path}") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"client {client}: its state is damaged: {path}: {' '.join(str(error).split())[:100]}") from None
    return state


def states_of(folder: Path, memory: ClientMemory, clients: Iterable[int]) -> dict[int, ClientState]:
    """By client, the states of those that have one. Raises UserError as `read_state`."""
    rounds = {client: memory.last_round(client) for client in clients}
    return {client: read_state(place_of(folder, client, last), client) for client, last in rounds.items() if last >= 0}


def last_state(folder: Path, client: int) -> ClientState | None:
    """The state of a client at the end of a finished run; None where it never trained. Raises UserError as `read_state`."""
    found = sorted(place_of(folder, client, 0).parent.glob(f"{client:08d}-round-*.safetensors"))
    return read_state(found[-1], client) if found else None


def first_broken(folder: Path, memory: ClientMemory, oldest: int) -> str:
    """Which state cannot be read of those that came after the oldest checkpoint, for which an older checkpoint has another; "" for none."""
    for client in (memory.trained_at > oldest).nonzero()[0].tolist():
        try:
            read_state(place_of(folder, client, memory.last_round(client)), client)
        except UserError as error:
            return str(error)
    return ""


def arguments_of(block: Sequence[Job], state: ServerState, states: "ClientStates | None") -> tuple[Any, ...]:
    """What the call of a block is given: its jobs, and the states of its clients where they keep something."""
    return (block,) if states is None else (block, states_of(states.folder, state.memory, (job.client for job in block)))


class ClientStates:
    """The states in a run's folder, as the run goes on. `unsynced`: where files are named that must be on the disk before a checkpoint is."""

    def __init__(self, folder: Path, unsynced: set[Path]) -> None:
        self.folder, self._unsynced = folder, unsynced
        self._newest: dict[int, int] = {}
        self._superseded: list[tuple[int, int, Path]] = []

    def begun(self, state: ServerState | None) -> "ClientStates":
        """Itself, once files of later rounds than the state's are gone, which a run wrote that did not come to its next checkpoint."""
        last = -1 if state is None else state.round
        for path in sorted((self.folder / FOLDER).glob("*/*-round-*.safetensors")):
            client, _, number = path.stem.partition("-round-")
            if int(number) > last:
                path.unlink()
            else:
                self._written(int(client), int(number))
        return self

    def _written(self, client: int, round_number: int) -> None:
        before = self._newest.get(client, -1)
        if 0 <= before < round_number:
            self._superseded.append((before, round_number, place_of(self.folder, client, before)))
        self._newest[client] = round_number

    def keep(self, round_number: int, update: Update) -> Update:
        """Writes the states that an update brings; returns the update without them."""
        for client, state in update.states.items():
            path = place_of(self.folder, client, round_number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, packed(state))
            self._unsynced |= {path, path.parent, path.parent.parent}
            self._written(client, round_number)
        return replace(update, states={})

    def prune(self, checkpoints: Sequence[int]) -> None:
        """Removes states that are not the newest of their clients, and that no checkpoint of these rounds could go on from."""
        kept = []
        for written, superseded, path in self._superseded:
            if any(written <= number < superseded for number in checkpoints):
                kept.append((written, superseded, path))
            else:
                path.unlink(missing_ok=True)
                self._unsynced.discard(path)
        self._superseded = kept
