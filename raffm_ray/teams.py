"""Workers that are alike, how many of them there is room for, and whose clients they train. No Ray in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raffm_ray.errors import UserError, near_miss
from raffm_ray.messages import Call
from raffm_ray.running import PoolSettings


@dataclass(frozen=True)
class Team:
    """Workers that are alike: what each has of GPUs (0: a core instead), on which nodes, how many at most, where they compute. `name`: the
    setting that asks for them."""

    name: str
    share: float
    labels: Mapping[str, str]
    workers: int | None
    device: str

    @property
    def need(self) -> tuple[str, float]:
        """Of which of Ray's resources a worker takes how much."""
        return ("GPU", self.share) if self.share else ("CPU", 1.0)


def teams_of(settings: PoolSettings, share: float) -> tuple[list[Team], dict[str, int]]:
    """The teams of a pool, first the one that does all that no other does; and by device class, which one trains its clients.

    `share`: of a GPU, that the first one's workers have. Classes that are placed alike share a team.
    """

    def device(part: float) -> str:
        return settings.device if settings.device != "auto" else "cuda" if part else "cpu"

    teams, by_class = [Team("pool.workers", share, {}, settings.workers, device(share))], dict[str, int]()
    alike: dict[str, int] = {}
    for name, placed in settings.placement.items():
        by_class[name] = alike.setdefault(repr(placed), len(teams))
        if by_class[name] == len(teams):
            part = placed.gpus_per_worker
            teams.append(Team(f"pool.placement.{name}", part, placed.labels, placed.workers, device(part)))
    return teams, by_class


def team_of(call: Call, classes: Sequence[str], by_class: Mapping[str, int]) -> int:
    """Which team does a call: of a block, the first in `pool.placement` that one of its clients has; the first team does all others.

    It goes by the call alone, whatever workers there are: the same block is always trained on the same kind of hardware.
    """
    method, _, arguments = call
    if method != "block" or not by_class:
        return 0
    return min((by_class[name] for job in arguments[0] if (name := classes[job.client]) in by_class), default=0)


Node = Mapping[str, Any]
"""Of a cluster: what `ray.nodes()` says of it."""


def room(teams: Sequence[Team], nodes: Sequence[Node]) -> list[int]:
    """How many workers of each team the nodes have room for, each team beside those that have room; those on chosen nodes come first."""
    alive = [node for node in nodes if node["Alive"]]
    free = [dict(node["Resources"]) for node in alive]
    found = [0] * len(teams)
    for number in [*range(1, len(teams)), 0]:
        team = teams[number]
        resource, each = team.need
        for node, left in zip(alive, free, strict=True):
            if team.labels.items() <= node["Labels"].items():
                here = int(left.get(resource, 0) / each + 1e-6)
                here = here if team.workers is None else min(here, team.workers - found[number])
                left[resource] = left.get(resource, 0) - here * each
                found[number] += here
    return found


def check_room(teams: Sequence[Team], found: Sequence[int], nodes: Sequence[Node], growing: bool) -> None:
    """Raises UserError for a team without room, or with less than its workers need; where nodes may join (`growing`), those that were asked
    for may wait for them."""
    for team, workers in zip(teams, found, strict=True):
        resource, _ = team.need
        labels = ", ".join(f"{key}={value}" for key, value in team.labels.items())
        there = [node for node in nodes if node["Alive"] and team.labels.items() <= node["Labels"].items()]
        if team.labels and not there:
            known = {f"{key}={value}" for node in nodes if node["Alive"] for key, value in node["Labels"].items()}
            known = {label for label in known if not label.startswith("ray.io/node-id")}
            raise UserError(
                f"{team.name}.labels: no node has {labels}{near_miss(labels, known) if known else ' (nodes have no labels)'}"
            )
        wanted = team.workers or 1
        if workers < wanted and not (growing and team.workers):
            amount = sum(node["Resources"].get(resource, 0) for node in there)
            told = (
                f"{team.share:g} GPU each, and there are {amount:g}" if team.share else f"a core each, and there are {amount:g}"
            )
            beside = f" on nodes with {labels}" if labels else ""
            others = ", with those that other settings of pool.placement take" if len(teams) > 1 else ""
            name = "pool.workers" if team.name == "pool.workers" else f"{team.name}.workers"
            raise UserError(f"{name}: {wanted} workers need {told}{beside}{others}")
