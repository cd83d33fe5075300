"""Who owns which examples and which device: dealt once, as unequally as asked, the same way for the same seed."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from conftest import tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from rich.console import Console

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.cli.main import main as cli
from raffm_ray.data.label_skew.label_distribution import LabelDistribution, label_distribution_of
from raffm_ray.data.partition import PARTITIONS, partition
from raffm_ray.data.shares import by_device, read_shares, share_rows, share_table, write_shares
from raffm_ray.devices.correlation import correlated_ranks
from raffm_ray.devices.profiles import assign_devices, fleet_shares
from raffm_ray.preparation.prepare import prepare
from raffm_ray.reports.run_report import write_report
from raffm_ray.reports.share_picture import picture_of_shares
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.clients import ClientSettings
from raffm_ray.settings.loading import dump

LABELS = np.random.default_rng(0).integers(0, 10, 3000)
COMPLETE = sorted(set(PARTITIONS) - {"k_shot"})


def deal(name: str, count: int, labels=LABELS, seed: int = 0, **changes) -> list[np.ndarray]:
    chosen = ClientSettings(partition=name, count=count, per_round=1, **changes)
    return partition(labels, chosen, generator(seed, "partition"))


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(mine, yours) for mine, yours in zip(one, other, strict=True))


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("clients", [1, 7, 100, 1000])
def test_every_example_belongs_to_one_client(name, clients) -> None:
    shares = deal(name, clients)
    assert len(shares) == clients
    assert (np.sort(np.concatenate(shares)) == np.arange(len(LABELS))).all()
    assert same(shares, deal(name, clients))
    if clients > 1 and not (name == "natural" and clients < 10):  # whole groups go by size
        assert not same(shares, deal(name, clients, seed=1))


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(COMPLETE), st.integers(1, 80), st.integers(1, 90), st.sampled_from([1e-4, 0.1, 3.0, 1e4]))
def test_every_example_is_dealt_once_whatever_the_labels(data, name, examples, classes, alpha) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, classes), min_size=examples, max_size=examples)))
    clients = data.draw(st.integers(1, examples))
    shares = deal(name, clients, labels, alpha=alpha, shards=data.draw(st.integers(1, examples // clients)))
    assert len(shares) == clients
    assert (np.sort(np.concatenate(shares)) == np.arange(examples)).all()
    assert all((np.diff(share) > 0).all() for share in shares)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_k_shot_gives_each_client_so_many_of_every_class(clients, shots, spare) -> None:
    labels = np.repeat(np.arange(len(spare)), np.array(spare) + clients * shots)
    shares = deal("k_shot", clients, labels, shots=shots)
    assert [np.bincount(labels[share], minlength=len(spare)).tolist() for share in shares] == [[shots] * len(spare)] * clients
    assert len(np.unique(np.concatenate(shares))) == clients * shots * len(spare)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", sorted(PARTITIONS))
def test_there_may_be_100_000_clients(name) -> None:
    labels = np.arange(400_000) % 4
    shares = deal(name, 100_000, labels, alpha=1e-4)
    assert len(shares) == 100_000
    assert np.concatenate(shares).sum() == labels.size * (labels.size - 1) // 2


@pytest.mark.timeout(60)
def test_one_client_takes_class_after_class() -> None:
    """What it has most of has run out, and its mix says to take little else."""
    assert same(deal("dirichlet_by_client", 1, np.arange(200_000) % 2, alpha=1e-4), [np.arange(200_000)])


def test_iid_and_dirichlet_by_class_are_what_they_say() -> None:
    """Written down once more, plainly: the runs on record are of these shares."""
    rng, plain = generator(0, "partition"), [[] for _ in range(7)]
    for label in range(10):
        members = rng.permutation(np.flatnonzero(label == LABELS))
        edges = np.cumsum(rng.dirichlet(np.full(7, 0.5)))[:-1] * len(members)
        for position, example in enumerate(members):
            plain[sum(position >= edge for edge in edges)].append(example)
    assert same(deal("dirichlet_by_class", 7, alpha=0.5), [np.sort(share) for share in plain])
    parts = np.array_split(generator(0, "partition").permutation(len(LABELS)), 7)
    assert same(deal("iid", 7), [np.sort(part) for part in parts])


def skew(shares: list[np.ndarray], labels=LABELS) -> float:
    """Mean total variation distance between a client's mix of classes and all examples'."""
    return float(np.nanmean(label_distribution_of(shares, labels).distances()))


@pytest.mark.parametrize("name", ["dirichlet_by_class", "dirichlet_by_client"])
def test_a_smaller_alpha_is_more_unequal(name) -> None:
    skews = [skew(deal(name, 20, alpha=alpha)) for alpha in (0.1, 1.0, 1000.0)]
    assert skews[0] > skews[1] > skews[2]
    assert skews[2] == pytest.approx(skew(deal("iid", 20)), abs=0.1)
    assert skews[0] > 3 * skew(deal("iid", 20))


def alike(name: str, alpha: float) -> float:
    """How often two examples of one client are of one class; of the first clients, before classes run out."""
    labels = np.repeat([0, 1, 2, 3], [12_000, 16_000, 32_000, 60_000])
    label_distribution = label_distribution_of(deal(name, 6000, labels, alpha=alpha)[:2000], labels)
    pairs = np.bincount(label_distribution.clients, label_distribution.counts * (label_distribution.counts - 1))
    return float(np.mean(pairs / (label_distribution.sizes * (label_distribution.sizes - 1))))


def test_dirichlet_by_client_has_the_mixes_of_its_paper() -> None:
    """Of p drawn from Dirichlet(alpha q), the mean of sum p^2 is (alpha sum q^2 + 1) / (alpha + 1)."""
    prior = np.array([0.1, 2 / 15, 4 / 15, 0.5])
    for alpha in (0.1, 1.0, 10.0):
        assert alike("dirichlet_by_client", alpha) == pytest.approx((alpha * (prior**2).sum() + 1) / (alpha + 1), abs=0.02)
    assert alike("iid", 1.0) == pytest.approx((prior**2).sum(), abs=0.02)  # the control: another division, another number


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40))
def test_shards_hold_few_classes(number, clients) -> None:
    shares = deal("shards", clients, shards=number)
    label_distribution = label_distribution_of(shares, LABELS)
    # A shard is shorter than any class, or it spans them all: each of the nine borders between classes lies in one shard.
    assert label_distribution.classes().sum() <= clients * number + 9
    assert label_distribution.sizes.max() - label_distribution.sizes.min() <= number
    if number == 2 and clients > 20:
        assert label_distribution.classes().mean() > 1.6  # a client's shards lie apart
    if clients > 10 and number < 3:
        assert label_distribution_of(deal("iid", clients), LABELS).classes().sum() > 2 * (clients * number + 9)


def test_quantity_skew_is_of_sizes_and_not_of_classes() -> None:
    chance = generator(0, "chance")
    for alpha, low, high in ((0.3, 2.0, 9.0), (1000.0, 0.0, 0.1)):
        label_distribution = label_distribution_of(deal("quantity_skew", 40, alpha=alpha), LABELS)
        assert low < label_distribution.sizes.std() / label_distribution.sizes.mean() / (1 if alpha > 1 else 0.5) < high
        assert np.nanmean(label_distribution.distances()) == pytest.approx(
            np.nanmean(label_distribution.dealt_anew(chance).distances()), abs=0.05
        )
    by_class = label_distribution_of(deal("dirichlet_by_class", 40, alpha=0.3), LABELS)
    assert np.nanmean(by_class.distances()) > np.nanmean(by_class.dealt_anew(chance).distances()) + 0.2


def test_natural_owners_have_one_value_each() -> None:
    groups = np.repeat([0, 1, 2], [60, 30, 10])
    shares = deal("natural", 10, groups)
    assert [len(np.unique(groups[share])) for share in shares] == [1] * 10
    assert sorted(np.concatenate(shares).tolist()) == list(range(100))
    assert max(map(len, shares)) - min(map(len, shares)) <= 2


def test_few_natural_owners_get_whole_groups() -> None:
    groups = np.repeat(np.arange(9), np.arange(1, 10))
    shares = deal("natural", 3, groups)
    assert [len(share) for share in shares] == [16, 15, 14]
    assert sum(len(np.unique(groups[share])) for share in shares) == 9


def test_more_clients_than_examples_are_refused() -> None:
    with pytest.raises(UserError, match="clients.count: 11 clients cannot share 10 examples"):
        deal("iid", 11, LABELS[:10])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"partition": "shards", "count": 400, "shards": 3},
            "clients.shards: 400 clients x 3 shards must not exceed the 1148 examples, got 1200",
        ),
        (
            {"partition": "k_shot", "shots": 20},
            "clients.shots: 12 clients x 20 shots take 240 examples of every class, but class 4 has 100: enough for 8 shots each, or "
            "for 5 clients",
        ),
        ({"partition": "shard"}, "clients.partition 'shard' is not known .did you mean 'shards'"),
    ],
)
def test_what_cannot_be_met_is_refused_before_training(changes, told) -> None:
    with pytest.raises(UserError, match=told):
        prepare(tiny_experiment(clients=changes))


@pytest.mark.parametrize("changes", [{"shards": 0}, {"shots": 0}])
def test_every_client_gets_something(changes) -> None:
    with pytest.raises(UserError, match="greater than or equal to 1, got 0"):
        tiny_experiment(clients=changes)


def test_what_an_error_calls_enough_is_enough() -> None:
    for changes in ({"shots": 8}, {"shots": 20, "count": 5, "per_round": 5}):
        assert (
            prepare(tiny_experiment(clients={"partition": "k_shot", **changes})).label_distribution.counts.min()
            == changes["shots"]
        )


def spearman(one, other) -> float:
    """Of values without ties."""
    return float(np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1])


@pytest.mark.parametrize("asked", [-1.0, -0.8, -0.3, 0.0, 0.5, 0.95, 1.0])
def test_ranks_correlate_as_much_as_asked(asked) -> None:
    values = np.random.default_rng(5).pareto(1.0, 40_000)
    found = spearman(correlated_ranks(values, asked, generator(0, "devices")), values)
    assert found == pytest.approx(asked, abs=1e-9 if abs(asked) == 1 else 0.012)
    unasked = spearman(correlated_ranks(values, 0.0, generator(0, "devices")), values)
    assert (abs(unasked - asked) > 0.2) == (asked != 0)  # the control


@given(st.integers(1, 300), st.integers(0, 5), st.floats(-1, 1), st.lists(st.integers(0, 3), min_size=300, max_size=300))
def test_a_correlation_keeps_the_fleet_and_none_is_plain_chance(clients, seed, correlation, values) -> None:
    shares = fleet_shares("medium", {"v100": 0.1})
    plain = assign_devices(shares, clients, generator(seed, "devices"))
    given_values = np.array(values[:clients])
    names = assign_devices(shares, clients, generator(seed, "devices"), given_values, correlation)
    assert sorted(names) == sorted(plain)
    assert assign_devices(shares, clients, generator(seed, "devices"), given_values, 0.0) == plain
    assert plain == generator(seed, "devices").permutation([name for name in shares for _ in range(plain.count(name))]).tolist()
    strength = np.array(
        [list(shares).index(name) for name in assign_devices(shares, clients, generator(seed, "devices"), given_values, 1.0)]
    )
    edges = [(strength[given_values == value].min(), strength[given_values == value].max()) for value in np.unique(given_values)]
    assert all(low[1] <= high[0] for low, high in pairwise(edges))


def means_by_device(correlation: float, correlated_with: str) -> list[float]:
    """Weakest device type first: mean examples of a client, or mean number of its most frequent class."""
    experiment = tiny_experiment(
        clients={"count": 120, "alpha": 0.3, "partition": "dirichlet_by_class"},
        fleet={"correlation": correlation, "correlated_with": correlated_with},
    )
    prepared = prepare(experiment)
    label_distribution, devices = prepared.label_distribution, by_device(prepared.setup.device_types, prepared.setup.budgets)
    assert sorted(prepared.setup.device_types) == sorted(prepare(tiny_experiment(clients={"count": 120})).setup.device_types)
    assert prepared.setup.examples == label_distribution.sizes.tolist()
    values = label_distribution.sizes if correlated_with == "examples" else label_distribution.dominant()
    return [float(values[clients].mean()) for clients in devices.values()]


def test_a_fleet_correlates_with_examples_or_classes() -> None:
    for asked in (0.9, -0.9):
        sizes = means_by_device(asked, "examples")
        assert sizes == sorted(sizes, reverse=asked < 0)
        numbers = means_by_device(asked, "classes")
        assert numbers == sorted(numbers, reverse=asked > 0)
    for other in ("examples", "classes"):
        means = means_by_device(0.0, other)
        assert means != sorted(means)
        assert means != sorted(means, reverse=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=9), min_size=1, max_size=9))
def test_a_tally_is_the_dense_table(size_specific) -> None:
    labels = np.array([label for mine in size_specific for label in mine], dtype=np.int64)
    edges = np.cumsum([0, *map(len, size_specific)])
    order = np.random.default_rng(0).permutation(len(labels))
    examples = np.empty_like(labels)
    examples[order] = labels
    label_distribution = label_distribution_of([np.sort(order[a:b]) for a, b in pairwise(edges)], examples, ["zero", "one"])
    dense = np.array([np.bincount(np.array(mine, dtype=int), minlength=7) for mine in size_specific])
    table = np.zeros_like(dense)
    table[label_distribution.clients, label_distribution.labels] = label_distribution.counts
    assert (table == dense).all()
    assert (label_distribution.sizes == dense.sum(1)).all()
    assert (label_distribution.classes() == (dense > 0).sum(1)).all()
    assert (label_distribution.dominant() == np.where(dense.sum(1) > 0, dense.argmax(1), -1)).all()
    assert label_distribution.class_names == ("zero", "one", *map(str, range(2, max(2, labels.max(initial=0) + 1))))
    if len(labels):
        mix = dense.sum(0) / dense.sum()
        far = [np.abs(row / row.sum() - mix).sum() / 2 if row.sum() else np.nan for row in dense]
        assert label_distribution.distances() == pytest.approx(np.array(far), nan_ok=True)
    anew = label_distribution.dealt_anew(np.random.default_rng(1))
    assert (anew.sizes == label_distribution.sizes).all()
    assert (np.bincount(anew.labels, anew.counts, 7) == dense.sum(0)).all()
    assert (np.bincount(anew.clients, anew.counts, len(size_specific)) == label_distribution.sizes).all()


def holdings(clients: int, labels=LABELS, **changes) -> tuple[LabelDistribution, dict[str, np.ndarray]]:
    shares = deal("dirichlet_by_class", clients, LABELS, **changes)
    fleet = fleet_shares("medium", {})
    return label_distribution_of(shares, labels), by_device(
        assign_devices(fleet, clients, generator(0, "devices")), [*fleet, "v100"]
    )


@pytest.mark.parametrize("labels", [LABELS, None])
def test_shares_are_recorded_and_read_back(labels, tmp_path) -> None:
    label_distribution, devices = holdings(400, labels, alpha=0.05)
    assert (label_distribution.sizes == 0).any()
    assert label_distribution.sizes[-1] == 0
    write_shares(tmp_path / "shares.parquet", label_distribution, devices)
    again, own = read_shares(tmp_path / "shares.parquet")
    assert all(
        np.array_equal(getattr(again, one.name), getattr(label_distribution, one.name)) for one in fields(LabelDistribution)
    )
    assert list(own) == list(devices)
    assert all(np.array_equal(own[name], devices[name]) for name in devices)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"other.parquet: damaged or not a record of shares"):
        read_shares(tmp_path / "other.parquet")


def test_the_table_adds_up() -> None:
    label_distribution, devices = holdings(60, alpha=0.1)
    everyone, *rows = share_rows(label_distribution, devices)
    assert [row.name for row in rows] == ["raspberry_pi_5", "laptop", "jetson_agx_orin"]  # and nobody's v100 is left out
    for name in ("clients", "empty", "examples"):
        assert sum(getattr(row, name) for row in rows) == getattr(everyone, name)
    assert everyone.examples == len(LABELS)
    assert everyone.smallest == label_distribution.sizes[label_distribution.sizes > 0].min()
    assert everyone.distance > 2 * everyone.at_random
    console = Console(width=80, record=True)
    console.print(share_table(label_distribution, devices, "shares"))
    assert "…" not in console.export_text()


def test_few_clients_have_a_bar_each_and_many_have_panels() -> None:
    label_distribution, devices = holdings(20)
    figure = picture_of_shares(label_distribution, devices, "few")
    (bars,) = (one for one in figure.axes[0].collections if isinstance(one, PolyCollection))
    assert len(bars.get_paths()) == len(label_distribution.clients)
    tops: dict[float, float] = {}
    for path in bars.get_paths():
        left, high = float(path.vertices[:, 0].min()), float(path.vertices[:, 1].max())
        tops[left] = max(tops.get(left, 0.0), high)
    assert [tops[left] for left in sorted(tops)] == sorted(label_distribution.sizes, reverse=True)
    many = picture_of_shares(*holdings(300, alpha=0.05), "many")
    assert {axes.get_title().split(" (")[0] for axes in many.axes} >= {
        "sizes",
        "classes of a client",
        "what clients own, by device",
    }
    plain = picture_of_shares(*holdings(300, None), "no classes")
    assert len(plain.axes) == 2
    for one in (figure, many, plain):
        one.draw_without_rendering()
        plt.close(one)


def test_the_command_draws_and_never_overwrites(tmp_path, capsys) -> None:
    config, image = tmp_path / "tiny.yaml", tmp_path / "new" / "shares.png"
    config.write_text(dump(tiny_experiment()))
    words = ["shares", str(config), "--clients.partition", "k_shot", "--out", str(image)]
    assert cli(words) == 0
    told = capsys.readouterr().out
    assert "tiny: k_shot, 12 clients, seed 0" in told
    assert "1,028 of 1,148 examples are nobody's" in told
    assert image.read_bytes().startswith(b"\x89PNG")
    for changed, line in (
        (words, f"--out {image}: exists; nothing is overwritten"),
        ([*words[:-1], "x.jpeg"], "--out x.jpeg: expected a name that ends in .png, .svg or .pdf"),
        (["shares"], "shares: expected the path of a YAML file"),
    ):
        assert cli(changed) == 2
        assert line in capsys.readouterr().err


def test_a_run_records_its_shares_and_its_report_shows_them(out) -> None:
    simulate(tiny_experiment(rounds=1), out)
    label_distribution, devices = read_shares(out / "shares.parquet")
    prepared = prepare(tiny_experiment(rounds=1))
    assert (label_distribution.counts == prepared.label_distribution.counts).all()
    assert sum(map(len, devices.values())) == 12
    _, page = write_report(out)
    assert (out / "shares.png").exists()
    assert page.read_text().count("Charts of the clients&#39; shares of the data") == 1
    (out / "shares.parquet").unlink()  # of a run that has no such record
    assert write_report(out)[1].read_text().count("clients&#39; shares of the data") == 0
