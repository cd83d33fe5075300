"""What is said of which client owns which group."""

from types import SimpleNamespace

import numpy as np

from raffm_ray.data.data_summary import group_line
from raffm_ray.data.examples import Examples
from raffm_ray.data.partition import iid, natural
from raffm_ray.data.sources import told_about
from raffm_ray.settings.clients import ClientSettings


def line(partition, clients: int, *groups: tuple[str, int]) -> str | None:
    about = told_about({"group": np.repeat([name for name, _ in groups], [count for _, count in groups])})
    places = about["groups"]
    examples = Examples({}, np.zeros(len(places)), **about)
    owner = partition(places, ClientSettings(count=clients, per_round=1), np.random.default_rng(0))
    shares = [np.flatnonzero(owner == client) for client in range(clients)]
    return group_line(SimpleNamespace(clients=examples), shares)


def test_how_many_clients_share_a_group_is_told_by_name() -> None:
    told = line(natural, 10, ("books", 30), ("dvd", 60), ("[toys]", 10))
    assert (
        told
        == "3 groups: dvd 6 clients, books 3 clients, [toys] 1 client; a group's examples are divided evenly among its clients"
    )


def test_whole_groups_are_counted() -> None:
    groups = [(f"shop {number}", 10) for number in range(9)]
    assert line(natural, 9, *groups) == "9 groups: each client owns 1 whole group"
    assert line(natural, 4, *groups) == "9 groups: each client owns 2 to 3 whole groups"


def test_nothing_is_said_where_clients_do_not_go_by_groups() -> None:
    assert line(iid, 4, ("a", 40), ("b", 40)) is None
