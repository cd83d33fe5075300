"""Merging adapters of unequal ranks: every rule against dense matrices, and law 9, that any division of clients folds to the same."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import architecture_case
from torch import Tensor

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import selections
from raffm_ray.clients.folds.products import START, Product, Products, add, compressed, merge, merged, norm_of, of_client
from raffm_ray.models.adapters.lora import factors
from raffm_ray.models.architecture import adapted, new_model
from raffm_ray.server.adapter_rules.apply import aggregation_error
from raffm_ray.server.adapter_rules.decomposition import leading
from raffm_ray.server.adapter_rules.rules import ADAPTER_RULES, FAIR_RIDGE, Given, Merged
from raffm_ray.settings.adapters import AdapterSettings

RANK, MAKES, READS = 6, 14, 10
EXACT = ("flora", "fedex")


class Clients:
    """Some clients' adapters of one projection, ranks 1 to RANK, their weights, and what a dense computation makes of them."""

    def __init__(self, seed: int, ranks: Sequence[int] = (2, 6, 1, 4, 6)) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.ranks, self.parts = ranks, torch.rand(len(ranks), generator=generator, dtype=torch.float64) + 0.1
        self.parts /= self.parts.sum()
        self.up, self.down = [normal(MAKES, rank) for rank in ranks], [normal(rank, READS) for rank in ranks]
        self.fresh = normal(RANK, READS)

    def dense(self) -> Tensor:
        return sum(
            (part * up @ down for part, up, down in zip(self.parts, self.up, self.down, strict=True)), torch.zeros(MAKES, READS)
        )

    def covered(self) -> Tensor:
        return torch.tensor(
            [float(sum(part for part, rank in zip(self.parts, self.ranks, strict=True) if rank > j)) for j in range(RANK)]
        )

    def means(self) -> tuple[Tensor, Tensor]:
        """Over those who hold a rank."""
        down, up = torch.zeros(RANK, READS, dtype=torch.float64), torch.zeros(MAKES, RANK, dtype=torch.float64)
        for j, share in enumerate(self.covered().double()):
            for part, one, other in zip(self.parts, self.up, self.down, strict=True):
                if one.shape[1] > j:
                    down[j] += part / share * other[j]
                    up[:, j] += part / share * one[:, j]
        return down, up

    def product(self, order: Sequence[int] | None = None) -> Product:
        chosen = range(len(self.ranks)) if order is None else order
        return merged([{"m": self._one(number)} for number in chosen])["m"]

    def _one(self, number: int) -> Product:
        rank = self.ranks[number]
        weights = torch.full((rank,), float(self.parts[number]), dtype=torch.float64)
        return Product(self.up[number].float(), self.down[number].float(), weights, torch.arange(rank))

    def given(self) -> Given:
        down, up = self.means()
        return Given(down.float(), up.float(), self.product(), self.covered(), self.fresh.float())


def change(answer: Merged) -> Tensor:
    """What the model gains over W, over s."""
    moved = answer.up.double() @ answer.down.double()
    return moved + (answer.base[0] @ answer.base[1] if answer.base else 0)


def best(product: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(product.double())
    return left[:, :rank] * values[:rank] @ right[:rank]


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", EXACT)
def test_rules_that_claim_exactness_are_w_plus_the_weighted_sum_of_products(rule, seed) -> None:
    clients = Clients(seed)
    assert close(change(ADAPTER_RULES[rule].merge(clients.given())), clients.dense())


def test_control_means_of_the_factors_are_another_matrix() -> None:
    clients = Clients(0)
    assert not close(change(ADAPTER_RULES["mean"].merge(clients.given())), clients.dense())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["flexlora", "hlora"])
def test_decompositions_are_the_best_approximation_of_the_sum(rule, seed) -> None:
    clients = Clients(seed)
    answer = ADAPTER_RULES[rule].merge(clients.given())
    assert close(change(answer), best(clients.dense(), RANK))
    rows = answer.down.double()
    assert torch.allclose(rows @ rows.T, torch.eye(RANK, dtype=torch.float64), atol=1e-6)
    for rank in (1, 3):  # a device with fewer ranks has the best approximation of that rank
        assert close(answer.up.double()[:, :rank] @ rows[:rank], best(clients.dense(), rank))


def test_both_decompositions_give_the_same_projections() -> None:
    given = Clients(1).given()
    one, other = (ADAPTER_RULES[rule].merge(given) for rule in ("flexlora", "hlora"))
    assert close(one.up, other.up)
    assert close(one.down, other.down)


@pytest.mark.parametrize("fault", ["V for V'", "root of S on one side only", "only the first client"])
def test_control_the_faults_of_published_codes_are_caught(fault) -> None:
    clients = Clients(2)
    left, values, right = torch.linalg.svd(clients.dense().double())
    wrong = {
        "V for V'": left[:, :RANK] * values[:RANK] @ right.T[:RANK],
        "root of S on one side only": left[:, :RANK] * values[:RANK].sqrt() @ right[:RANK],
        "only the first client": best(clients.parts[0] * clients.up[0] @ clients.down[0], RANK),
    }[fault]
    assert not close(wrong, change(ADAPTER_RULES["hlora"].merge(clients.given())))


@pytest.mark.parametrize("seed", range(3))
def test_raflora_averages_every_rank_over_those_who_hold_it(seed) -> None:
    clients = Clients(seed)
    total = torch.zeros(MAKES, READS, dtype=torch.float64)
    for j, share in enumerate(clients.covered().double()):
        for part, up, down in zip(clients.parts, clients.up, clients.down, strict=True):
            if up.shape[1] > j:
                total += part / share * torch.outer(up[:, j], down[j])
    assert close(change(ADAPTER_RULES["raflora"].merge(clients.given())), best(total, RANK))
    assert not close(total, clients.dense())


def test_raflora_takes_clients_that_weigh_nothing_for_none() -> None:
    given = Clients(0, ranks=(2, 6)).given()
    weights = given.product.weights.clone()
    weights[2:] = 0
    alone = replace(given, product=given.product._replace(weights=weights), covered=torch.tensor([0.5, 0.5, 0, 0, 0, 0]))
    assert bool(change(ADAPTER_RULES["raflora"].merge(alone)).isfinite().all())


def test_the_norm_of_products_that_cancel_is_no_root_of_rounding() -> None:
    one = Clients(0, ranks=(6,) * 5).product()
    none = Product(
        torch.cat([one.up, -one.up], dim=1), torch.cat([one.down, one.down]), one.weights.repeat(2), one.ranks.repeat(2)
    )
    assert norm_of({"m": none}) < 1e-6 * norm_of({"m": one})


def test_lora_fair_is_the_least_squares_of_what_the_mean_lacks() -> None:
    clients, rule = Clients(4), ADAPTER_RULES["lora_fair"]
    given = clients.given()
    answer, dense, down = rule.merge(given), clients.dense(), given.down.double()
    assert torch.equal(answer.down, given.down)
    ridge = FAIR_RIDGE * (down @ down.T).diagonal().mean()

    def loss(correction: Tensor) -> Tensor:
        return (dense - (given.up.double() + correction) @ down).square().sum() + ridge * correction.square().sum()

    found = (answer.up.double() - given.up.double()).requires_grad_()
    [slope] = torch.autograd.grad(loss(found), found)
    assert float(slope.abs().max()) < 1e-4
    assert loss(found) < loss(torch.zeros_like(found)) < loss(-found)


def test_fedsvd_keeps_the_product_of_the_mean_and_turns_its_basis() -> None:
    given = Clients(5, ranks=(6, 6, 6)).given()
    answer = ADAPTER_RULES["fedsvd"].merge(given)
    assert close(change(answer), given.up.double() @ given.down.double())
    rows = answer.down.double()
    assert torch.allclose(rows @ rows.T, torch.eye(RANK, dtype=torch.float64), atol=1e-6)


def test_a_rotation_keeps_the_function_and_gives_every_beginning_most_of_it() -> None:
    given = Clients(7, ranks=(6, 6, 6)).given()
    answer, product = ADAPTER_RULES["rotated"].merge(given), given.up.double() @ given.down.double()
    assert close(change(answer), product)
    assert torch.allclose(answer.up.double().norm(dim=0), answer.down.double().norm(dim=1))
    for rank in (1, 3):
        kept = answer.up.double()[:, :rank] @ answer.down.double()[:rank]
        assert close(kept, best(product, rank))
        assert (kept - product).norm() < (given.up.double()[:, :rank] @ given.down.double()[:rank] - product).norm()
    fresh = given.__class__(given.down, torch.zeros_like(given.up), given.product, given.covered, given.fresh)
    assert bool(ADAPTER_RULES["rotated"].merge(fresh).down.any(1).all())  # what adds nothing yet can be trained


def test_what_nobody_fills_can_still_be_trained() -> None:
    up, down = torch.randn(MAKES, 2), torch.randn(2, READS)
    made, read = leading(up, down, RANK)
    assert close(made @ read, (up @ down).double())
    assert not made[:, 2:].any()
    assert torch.allclose(read @ read.T, torch.eye(RANK, dtype=torch.float64), atol=1e-9)
    nothing = leading(torch.zeros(MAKES, 0), torch.zeros(0, READS), RANK)
    assert not nothing[0].any()


def divisions(count: int, rng: np.random.Generator) -> list[list[int]]:
    """Runs of clients, in order."""
    edges = sorted(rng.choice(np.arange(1, count), rng.integers(0, count), replace=False).tolist())
    return [list(range(start, stop)) for start, stop in zip([0, *edges], [*edges, count], strict=True)]


def dense_of(product: Product) -> Tensor:
    return (product.up.double() * product.weights) @ product.down.double()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("brought_down", [False, True], ids=["as sent", "compressed"])
def test_law_9_any_division_into_blocks_folds_to_one_block_s(seed, brought_down) -> None:
    rng = np.random.default_rng(seed)
    clients = Clients(seed, ranks=tuple(rng.integers(1, RANK + 1, 9).tolist()))

    def folded(blocks: list[list[int]]) -> Product:
        parts = []
        for block in blocks:
            total = START
            for number in block:
                total = add(total, {"m": clients._one(number)})
            parts.append(compressed(total) if brought_down else total)
        return merged(parts)["m"]

    one, many = folded([list(range(9))]), folded(divisions(9, rng))
    assert close(dense_of(many), dense_of(one))
    assert close(dense_of(one), clients.dense())
    assert all(map(torch.equal, many, folded(divisions(9, np.random.default_rng(seed))))) or brought_down
    if not brought_down:
        assert all(map(torch.equal, one, many))
        for name, rule in ADAPTER_RULES.items():
            answers = [rule.merge(replace(clients.given(), product=product)) for product in (one, many)]
            assert close(change(answers[0]), change(answers[1])), name


def test_law_9_control_a_block_that_is_left_out_or_counted_twice_differs() -> None:
    clients = Clients(3)
    whole = dense_of(clients.product())
    assert not close(dense_of(clients.product([0, 1, 2, 3])), whole)
    assert not close(dense_of(clients.product([0, 1, 2, 3, 4, 4])), whole)


def test_a_compressed_product_is_no_longer_than_the_smaller_side() -> None:
    many = Clients(0, ranks=(6,) * 5).product()
    short = compressed({"m": many})["m"]
    assert len(short.ranks) == READS < len(many.ranks)
    assert close(dense_of(short), dense_of(many))
    tall = Product(many.down.T.contiguous(), many.up.T.contiguous(), many.weights, many.ranks)
    assert close(dense_of(compressed({"m": tall})["m"]), dense_of(tall))
    few = Clients(0, ranks=(2, 3)).product()
    assert compressed({"m": few})["m"] is few


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_client_s_product_is_what_it_adds_whatever_its_plan_cuts(name) -> None:
    architecture = adapted(architecture_case(name, "sequence_classification"), AdapterSettings(rank=4))
    parameters = {key: torch.randn(one.shape) for key, one in new_model(architecture, 0).named_parameters()}
    plan = Plan({"residual": np.arange(0, 24, 2), **{f"{at}/ffn": [3, 1, 8] for at in range(3)}, **_ranks(architecture)})
    chosen = selections(architecture.shapes, architecture.layout, plan)
    cut = {key: values for key, values in parameters.items() if architecture.layout.parameters[key].adapts}
    for key, selected in chosen.items():
        if key in cut:
            for position, index in enumerate(selected):
                cut[key] = cut[key] if index is None else cut[key].index_select(position, index)
    products = of_client(cut, chosen, architecture.shapes, architecture.adapters, 2.5)
    total = 0.0
    for module in architecture.adapters.modules:
        down, up = factors(module)
        expected = torch.zeros(architecture.shapes[up][0], architecture.shapes[down][1])
        rows, columns = (
            index if index is not None else torch.arange(size)
            for index, size in ((chosen[up][0], expected.shape[0]), (chosen[down][1], expected.shape[1]))
        )
        expected[rows[:, None], columns] = cut[up] @ cut[down]
        assert close(dense_of(products[module]), 2.5 * expected.double())
        total += float((cut[up] @ cut[down]).square().sum())
    assert norm_of(products) == pytest.approx(total**0.5, rel=1e-5)


def _ranks(architecture: Any) -> dict[str, list[int]]:
    return {f"{module}/rank": [2, 0] for module in architecture.adapters.modules}


@pytest.mark.parametrize("rule", sorted(ADAPTER_RULES))
def test_the_aggregation_error_is_the_dense_distance(rule) -> None:
    clients = Clients(6)
    answer = ADAPTER_RULES[rule].merge(clients.given())
    found = aggregation_error({"m": answer}, {"m": clients.product()}, 1.0)
    expected = float((clients.dense() - change(answer)).norm() / clients.dense().norm())
    assert found == pytest.approx(expected, abs=1e-5)
    assert (found < 1e-5) == (rule in EXACT)


def test_groups_that_share_no_adapter_stay_side_by_side() -> None:
    one, other = ({name: Clients(0).product()} for name in ("a", "b"))
    together: Products = merge(one, other)
    assert set(together) == {"a", "b"}
    assert together["a"] is one["a"]
