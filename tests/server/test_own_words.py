"""Law 8 of rows: a client has the rows of the table of words that its own texts read. It learns the same to the bit, is charged for what it has, and
an average of a row is over who reads it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, architecture_case
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import masks, random_cut
from realistic_models import ALL
from round_states import context_of, state_of

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import VOCABULARY
from raffm_ray.basics.errors import UserError
from raffm_ray.benchmarks.rounds import federation, numpy_of, starting_flat
from raffm_ray.benchmarks.synthetic_data import synthetic, vit
from raffm_ray.clients import single_training
from raffm_ray.clients.messages import Job
from raffm_ray.models.word_rows import vocabulary_table, words_read
from raffm_ray.preparation.prepare import Prepared
from raffm_ray.server.aggregation import flat_coverage
from raffm_ray.server.clock import LateUpdate, VirtualClock
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.workload import client_costs
from raffm_ray.subnetworks.calibration import rankable
from raffm_ray.subnetworks.costs import costs_of, with_memory, with_words
from raffm_ray.subnetworks.unit_coverage import countable

WORDS = 2500
SMALLER = Plan({"residual": np.arange(12), "0/ffn": np.arange(8)})
LOOKED_UP = ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "mistral"]


def made(name: str = "bert", vocabulary: str = "own", clients: int = 4, words: int = WORDS, **changes: Any) -> Prepared:
    """Clients with 8 texts of 32 tokens each, of the first 1,000 words."""
    config = {**{key: value for key, value in TINY[name].items() if key != "num_labels"}, "vocab_size": words}
    config |= {"n_positions": 40} if name == "gpt2" else {"max_position_embeddings": 40}
    values: dict[str, Any] = {"pool": {"backend": "in_process", "stack_clients": 1}, "strategy": {}, **changes}
    values["model"] = {"config": config, **values.get("model", {})}
    values["strategy"] = {"name": "full", "vocabulary": vocabulary, **values["strategy"]}
    local = {"batch_size": 4, "steps": 3, "learning_rate": 1e-2, **values.pop("local", {})}
    return synthetic(config, "texts", clients=clients, per_round=clients, local=local, examples=8, **values)


def table_of(prepared: Prepared, flat: np.ndarray) -> torch.Tensor:
    architecture = prepared.setup.architecture
    name = vocabulary_table(architecture.layout)
    assert name
    return views(torch.from_numpy(flat), architecture.trained_shapes)[name]


def learned(prepared: Prepared, jobs: list[Job], **changes: Any) -> np.ndarray:
    state = replace(state_of(prepared), parameters=starting_flat(prepared))
    context = context_of(prepared, state, SMALLER, Plan(), learning_rate=1e-2, **changes)
    return prepared.runner().block(context, numpy_of(state.parameters), jobs)[1]


def test_words_are_an_axis_where_they_are_only_looked_up() -> None:
    def has(name: str, head: str) -> bool:
        layout = architecture_case(name, head).layout
        assert VOCABULARY not in {*rankable(layout), *countable(layout.axes)}
        return VOCABULARY in layout.axes

    for name in LOOKED_UP:
        assert has(name, "sequence_classification")
    assert has("bert", "question_answering")
    assert has("llama", "causal_language_modelling")  # its output layer is another matrix, which has no such axis
    assert not has("gpt2", "causal_language_modelling")  # all words take a gradient of the loss
    assert not has("qwen3", "causal_language_modelling")
    assert not has("t5_gated", "sequence_to_sequence")
    assert not has("vit", "image_classification")


@pytest.mark.parametrize("name", LOOKED_UP)
@pytest.mark.parametrize("job", [Job(1, 1), Job(1, 1, (0,), "smallest"), Job(1, 0)], ids=["whole", "prefix", "smaller"])
def test_a_client_learns_the_same_to_the_bit(name, job, monkeypatch) -> None:
    """As with the whole table, and as where all of it is trained: the norm that clips is then added up in another order."""
    prepared = made(name)
    words, local = prepared.setup.words, prepared.setup.experiment.local.model_copy(update={"clip": None})
    assert words is not None
    own, whole = (learned(prepared, [job], own_words=asked) for asked in (True, False))
    assert own.tobytes() == whole.tobytes()
    unclipped = learned(prepared, [job], own_words=True, local=local)
    monkeypatch.setattr(single_training, "word_rows", lambda *given: None)
    assert learned(prepared, [job], own_words=False, local=local).tobytes() == unclipped.tobytes()
    (moved,) = np.nonzero(table_of(prepared, own).abs().sum(1).numpy())
    assert set(moved) <= set(words.rows(1).tolist())
    assert len(moved) > 50


@pytest.mark.parametrize("pool", [{"stack_clients": 1}, {"stack_clients": 4}], ids=["alone", "stacked"])
@pytest.mark.parametrize("words", [WORDS, 1010], ids=["cut", "too many to be cut"])
def test_weight_decay_is_of_the_rows_that_a_client_has(pool, words) -> None:
    """Control: with the whole table it moves all of them."""
    prepared = made(local={"weight_decay": 0.1}, pool={"backend": "in_process", **pool}, words=words, clients=2)
    known, jobs = prepared.setup.words, [Job(0, 1), Job(1, 1)]
    assert known is not None
    stack = (1, pool["stack_clients"])
    own, whole = (
        table_of(prepared, learned(prepared, jobs, own_words=asked, stack=stack, local=local))
        for asked in (True, False)
        for local in [prepared.setup.experiment.local.model_copy(update={"clip": None})]
    )
    read = [torch.zeros(words, dtype=torch.bool).index_fill_(0, torch.from_numpy(known.rows(client)), True) for client in (0, 1)]
    assert torch.equal(own[~(read[0] | read[1])], torch.zeros_like(own[~(read[0] | read[1])]))
    torch.testing.assert_close(own[read[0] & read[1]], whole[read[0] & read[1]], rtol=1e-4, atol=1e-6)
    assert (whole[~(read[0] | read[1])].abs().sum(1) > 0).all()
    assert not torch.allclose(own[read[0] ^ read[1]], whole[read[0] ^ read[1]], rtol=1e-4, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_law_4_entries_are_covered_by_who_has_them(seed) -> None:
    rng, architecture = np.random.default_rng(seed), architecture_case("bert", "sequence_classification")
    layout, shapes = architecture.layout, architecture.shapes
    plans = [random_cut(layout, rng, ALL, layers=True) for _ in range(3)]
    clients = [(int(rng.integers(3)), float(rng.integers(1, 9)), rng.permutation(50)[: rng.integers(1, 51)]) for _ in range(6)]
    weights: dict[int, float] = {}
    words = {number: torch.zeros(50, dtype=torch.float64) for number in range(3)}
    dense = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for plan, weight, rows in clients:
        weights[plan] = weights.get(plan, 0.0) + weight
        words[plan][torch.from_numpy(rows)] += weight
        for name, mask in masks(layout, shapes, Plan({**plans[plan], VOCABULARY: rows})).items():
            dense[name] += weight * mask
    covered = views(flat_coverage(weights, plans, architecture, words=words), shapes)
    assert all(torch.equal(covered[name], dense[name]) for name in shapes)
    table = str(vocabulary_table(layout))
    by_plan = views(flat_coverage(weights, plans, architecture), shapes)[table]  # control
    assert torch.equal(by_plan, dense[table]) == all(len(rows) == 50 for _, _, rows in clients)


def test_a_row_is_averaged_over_who_reads_it_and_stays_where_nobody_does() -> None:
    """Controls: with the whole table everybody counts, and all that nobody reads is the same in both."""
    after, rounds = {}, {}
    for vocabulary in ("own", "whole"):
        prepared = made(vocabulary=vocabulary)
        start = starting_flat(prepared)
        with federation(prepared, prepared.runner(), None, "in_process") as rounds[vocabulary]:
            pass
        after[vocabulary] = table_of(prepared, numpy_of(rounds[vocabulary].state.parameters - start))
    words = rounds["own"].setup.words
    assert words is not None
    assert rounds["whole"].setup.words is None
    readers = torch.zeros(WORDS)
    for client in range(4):
        readers[torch.from_numpy(words.rows(client))] += 1
    assert set(readers.tolist()) == {0, 1, 2, 3, 4}
    assert not after["own"][readers == 0].any()
    for count in range(1, 5):
        there = readers == count
        torch.testing.assert_close(after["own"][there] * count / 4, after["whole"][there], rtol=1e-3, atol=1e-7)
    assert not torch.allclose(after["own"], after["whole"])


def test_a_late_update_counts_in_the_rows_that_its_client_reads() -> None:
    prepared = made(clock={"late": "accept", "staleness": 0})
    state, words = state_of(prepared), prepared.setup.words
    assert words is not None
    work = begin_round(prepared.setup, state)
    visit, summed = work.visits[2], torch.full_like(state.parameters, 6.0)
    late = LateUpdate(round=0, arrival_seconds=0.0, visit=visit, plan=Plan(), weight=2.0, summed=summed)
    before = replace(state, clock=VirtualClock(late=(late,)))
    after = finish_round(prepared.setup, before, work, torch.zeros_like(summed), [])
    moved = table_of(prepared, numpy_of(after.parameters - state.parameters))
    read = torch.from_numpy(words.rows(2))
    torch.testing.assert_close(moved, torch.zeros_like(moved).index_fill_(0, read, 3.0))


def test_where_all_read_all_words_nothing_changes() -> None:
    """Law 5: control of the test above."""
    found = []
    for vocabulary in ("own", "whole"):
        prepared = made(vocabulary=vocabulary, words=1000, clients=2, local={"batch_size": 8})
        every = np.arange(1000)
        if prepared.setup.words is not None:
            prepared.setup.words._rows.update(dict.fromkeys(range(2), every))
        with federation(prepared, prepared.runner(), None, "in_process") as rounds:
            found.append(numpy_of(rounds.state.parameters).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("size", [1, 3])
def test_clients_in_other_blocks_give_the_same_average(size) -> None:
    blocks = []
    for length in (size, 4):
        prepared = made(pool={"backend": "in_process", "stack_clients": 1, "block_clients": length})
        with federation(prepared, prepared.runner(), None, "in_process") as rounds:
            blocks.append(rounds.state.parameters)
    torch.testing.assert_close(*blocks, rtol=0, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
@settings(max_examples=10, deadline=None)
def test_costs_are_those_of_the_plan_with_so_many_words(seed, kept) -> None:
    rng, architecture = np.random.default_rng(seed), architecture_case("llama", "causal_language_modelling")
    frozen = {name: replace(spec, frozen=bool(rng.integers(2))) for name, spec in architecture.layout.parameters.items()}
    architecture = replace(architecture, layout=replace(architecture.layout, parameters=frozen), frozen_dtype=torch.bfloat16)
    plan = random_cut(architecture.layout, rng, ALL, layers=True)
    of = [
        with_memory(costs_of(architecture, Plan({**plan, VOCABULARY: np.arange(words)}), 8, "momentum"), 2, True)
        for words in (50, 1, kept)
    ]
    assert with_words(of[0], of[1], 50, kept) == of[2]
    one = masks(architecture.layout, architecture.shapes, Plan({**plan, VOCABULARY: np.arange(kept)}))
    assert of[2].params == sum(int(mask.sum()) for mask in one.values())


def charged(prepared: Prepared, vocabulary: str, **changes: Any) -> Any:
    work = begin_round(prepared.setup, state_of(prepared))
    return work.visits[1], work


def test_a_client_is_charged_for_the_rows_that_it_has() -> None:
    own, whole = made(), made(vocabulary="whole")
    words, architecture = own.setup.words, own.setup.architecture
    assert words is not None
    found = words_read(architecture, own.task.clients, own.shares[1])
    assert found is not None
    count = len(found)
    (mine, _), (all_, _) = charged(own, "own"), charged(whole, "whole")
    unread = 4 * 24 * (WORDS - count)
    assert all_.cost.bytes_down - mine.cost.bytes_down == unread
    ids = min(4 * count, -(-WORDS // 8))
    assert all_.cost.bytes_up - mine.cost.bytes_up == unread - ids
    assert mine.cost.flops == all_.cost.flops
    assert mine.cost.seconds < all_.cost.seconds
    costs = [client_costs(one.setup, Plan(), 1) for one in (own, whole)]
    assert costs[1].memory_bytes - costs[0].memory_bytes == 4 * unread  # weights, gradients, two moments
    assert costs[1].bytes - costs[0].bytes == unread


def test_who_reads_almost_all_words_is_sent_all() -> None:
    prepared = made(words=1000, local={"batch_size": 8})
    words = prepared.setup.words
    assert words is not None
    words._rows[1] = np.arange(900)
    words._counts[1] = 900
    assert words.sent(1) == 900
    assert words.id_bytes(1) == 125
    words._counts[1] = 901
    assert words.sent(1) == 1000
    assert words.id_bytes(1) == 0


def test_rows_of_a_frozen_table_travel_once() -> None:
    own, whole = (
        made(vocabulary=one, model={"freeze": ["*word_embeddings*"]}, fleet={"keeps_frozen": True}) for one in ("own", "whole")
    )
    words, start = own.setup.words, state_of(own)
    assert words is not None
    (mine, work), (all_, _) = charged(own, "own"), charged(whole, "whole")
    unread = 4 * 24 * (WORDS - words.sent(1))
    assert all_.cost.frozen_bytes_down - mine.cost.frozen_bytes_down == unread
    assert mine.cost.bytes_up == all_.cost.bytes_up + words.id_bytes(1)
    after = finish_round(own.setup, start, work, torch.zeros_like(start.parameters), [])
    again = begin_round(own.setup, after).visits[1].cost
    assert again.frozen_bytes_down == 0
    assert again.bytes_up == all_.cost.bytes_up


def test_images_and_tied_outputs_have_nothing_to_cut() -> None:
    local = {"batch_size": 4, "steps": 1, "learning_rate": 0.1}
    strategy = {"name": "full", "vocabulary": "own"}
    images = synthetic(vit(24, 2, 2), "grey", clients=2, per_round=2, local=local, examples=4, strategy=strategy)
    assert images.setup.words is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"local": {"client_update": "scaffold"}}, "local.client_update 'scaffold', which may keep or move rows"),
        ({"strategy": {"personal": ["classifier"]}, "evaluation": {"keep_best": False}}, "strategy.personal, whose parameters"),
        ({"strategy": {"aggregation": "all_clients"}}, "strategy.aggregation all_clients, whose divisor shrinks rows"),
        ({"strategy": {"name": "raffm_reference"}}, "strategy.aggregation all_clients, whose divisor shrinks rows"),
    ],
)
def test_what_moves_or_keeps_other_rows_is_refused(changes, told) -> None:
    with pytest.raises(UserError, match=f"strategy.vocabulary: must be whole with {told}.*, got own"):
        made(**changes)
    made(vocabulary="whole", **changes)
