"""Who is chosen for a round: every selection against its formula, and what it costs to remember."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_experiment
from round_states import state_of

import raffm_ray
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.seeding import generator
from raffm_ray.clients.messages import Report, Update
from raffm_ray.preparation.prepare import prepare
from raffm_ray.server.round_schedule import available_clients, selection_size
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.selection.draws import divided, drawn_by_weight, lowest, rounded_shares
from raffm_ray.server.selection.known import Known
from raffm_ray.server.selection.oort import exploration_of, percentile_of, utilities
from raffm_ray.server.selection.records import no_records
from raffm_ray.server.selection.table import SELECTIONS
from raffm_ray.settings.clients import SelectionSettings

EXAMPLES = np.array([5, 10, 20, 40, 80, 0, 15, 30, 60, 10])
TYPES = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2], dtype=np.int32)


def known(**changes: Any) -> Known:
    """Ten clients of three device types, one of them without data; round 5."""
    settings = SelectionSettings(**{key: changes.pop(key) for key in list(changes) if key in SelectionSettings.model_fields})
    one = Known(
        settings=settings,
        round=5,
        able=np.flatnonzero(EXAMPLES),
        examples=EXAMPLES,
        device_types=TYPES,
        names=("weak", "middle", "strong"),
        owners=EXAMPLES > 0,
        expect=lambda: np.array([9.0, 3.0, 1.0]),
        records=no_records(10),
    )
    return replace(one, **changes)


def heard(losses: list[float], seconds: list[float] | None = None, last_round: int = 4) -> Any:
    """Records of ten clients that were all chosen in a round, and reported these losses; NaN for nothing."""
    took = np.array(seconds or [1.0] * 10)
    records = no_records(10).chosen(np.arange(10), last_round)
    return records.heard(np.arange(10), np.array(losses), took, EXAMPLES)


def frequencies(name: str, one: Known, wanted: int, draws: int = 4000) -> np.ndarray:
    """How often each client is chosen, of all rounds."""
    rng, counts = np.random.default_rng(0), np.zeros(10)
    for _ in range(draws):
        counts[SELECTIONS[name].choose(one, wanted, rng)] += 1
    return counts / draws


@pytest.mark.parametrize("name", sorted(SELECTIONS))
@pytest.mark.parametrize("wanted", [1, 4, 9, 20])
def test_as_many_are_chosen_as_are_wanted_each_once_of_those_who_can_be(name, wanted) -> None:
    seen = heard([1.0, np.nan, 3.0, np.nan, 0.0, 1.0, 1.0, np.nan, 2.0, 1.0])
    for records in (no_records(10), seen):
        for able in (np.flatnonzero(EXAMPLES), np.array([2, 3, 7])):
            chosen = SELECTIONS[name].choose(known(records=records, able=able), wanted, np.random.default_rng(0))
            assert len(set(chosen.tolist())) == len(chosen) == min(wanted, len(able))
            assert set(chosen.tolist()) <= set(able.tolist())


@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_a_row_that_keeps_no_records_asks_for_none_and_draws_depend_on_the_generator_alone(name) -> None:
    records = heard([1.0, 2.0, np.nan, 1.0, 5.0, 1.0, np.nan, np.nan, np.nan, 1.0])
    one = known(records=records if SELECTIONS[name].records else None)
    twice = [SELECTIONS[name].choose(one, 4, np.random.default_rng(3)).tolist() for _ in range(2)]
    assert twice[0] == twice[1]
    others = {tuple(sorted(SELECTIONS[name].choose(one, 4, np.random.default_rng(seed)).tolist())) for seed in range(20)}
    assert (len(others) > 1) == (name != "round_robin")


def test_draws_by_weight_are_in_proportion_among_those_that_are_left() -> None:
    weights, rng, draws = np.array([1.0, 2.0, 0.0, 5.0]), np.random.default_rng(0), 20000
    first = np.bincount([int(drawn_by_weight(weights, 1, rng)[0]) for _ in range(draws)], minlength=4) / draws
    np.testing.assert_allclose(first, weights / 8, atol=0.01)
    pairs = [tuple(drawn_by_weight(weights, 2, rng).tolist()) for _ in range(draws)]
    both = 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6  # 0 and 1, in either order
    assert abs(pairs.count((0, 1)) / draws - both) < 0.01
    assert abs(pairs.count((0, 1)) / draws - 2 / 3 * 2 / 8 * 1 / 8) > 0.02  # a control: not as if drawn with replacement
    assert drawn_by_weight(weights, 4, rng).tolist() == [0, 1, 2, 3]


def test_of_equal_keys_the_first_count() -> None:
    keys = np.array([2.0, 1.0, 2.0, np.inf, 1.0, 2.0])
    assert [lowest(keys, count).tolist() for count in (0, 1, 3, 9)] == [[], [1], [0, 1, 4], [0, 1, 2, 3, 4, 5]]


def test_shares_are_rounded_to_a_whole_round_and_are_exact_on_average() -> None:
    shares, rng = np.array([0.5, 0.2, 2.3, 1.0]), np.random.default_rng(0)
    every = np.array([rounded_shares(shares, 7, rng) for _ in range(20000)])
    exact = shares / shares.sum() * 7
    assert (every.sum(1) == 7).all()
    assert (np.abs(every - exact) < 1).all()
    np.testing.assert_allclose(every.mean(0), exact, atol=0.02)
    assert np.abs(np.rint(exact) - exact).max() > 0.1  # a control: rounding to the nearest would not be
    room = np.array([4, 0, 1, 9])
    for _ in range(50):
        given = divided(shares, room, 7, rng)
        assert given.sum() == 7
        assert (given <= room).all()


def test_uniform_chooses_as_it_did_before_there_were_others_to_the_bit() -> None:
    for seed in range(3):
        prepared = prepare(tiny_experiment(seed=seed))
        state = state_of(prepared)
        assert state.records is None
        work = begin_round(prepared.setup, state)
        able = available_clients(prepared.setup, state.clock)[1]
        before = generator(seed, "clients", 1).choice(able, size=selection_size(prepared.setup), replace=False)
        assert list(work.chosen) == sorted(before.tolist())


def test_by_examples_goes_by_examples_and_uniform_does_not() -> None:
    share = EXAMPLES / EXAMPLES.sum()
    np.testing.assert_allclose(frequencies("by_examples", known(), 1), share, atol=0.03)
    uniform = frequencies("uniform", known(), 1)
    assert np.abs(uniform - share).max() > 0.1
    np.testing.assert_allclose(uniform, (EXAMPLES > 0) / 9, atol=0.03)


@pytest.mark.parametrize("shares", ["fleet", "equal"])
def test_device_types_have_their_part_of_every_round(shares) -> None:
    chosen = frequencies("stratified", known(shares=shares), 3)
    by_type = np.bincount(TYPES, weights=chosen)
    wanted = {"fleet": 3 * np.array([4, 4, 1]) / 9, "equal": np.ones(3)}
    np.testing.assert_allclose(by_type, wanted[shares], atol=0.05)
    other = wanted["equal" if shares == "fleet" else "fleet"]
    assert np.abs(by_type - other).max() > 0.2
    assert chosen[5] == 0
    np.testing.assert_allclose(chosen[:4], chosen[:4].mean(), atol=0.05)


def test_everybody_has_a_turn_before_anybody_has_another() -> None:
    records, turns = no_records(10), []
    for number in range(1, 7):
        chosen = SELECTIONS["round_robin"].choose(known(records=records), 3, np.random.default_rng(0))
        records = records.chosen(chosen, number)
        turns += chosen.tolist()
    assert turns[:9] == turns[9:] == np.flatnonzero(EXAMPLES).tolist()


def test_power_of_choice_takes_the_largest_losses_of_its_candidates_and_whoever_was_never_heard_of_first() -> None:
    losses = [3.0, 1.0, 9.0, 2.0, 8.0, 7.0, np.nan, 4.0, 5.0, 6.0]
    everybody = SELECTIONS["power_of_choice"].choose(known(records=heard(losses), candidates=9), 3, np.random.default_rng(0))
    assert sorted(everybody.tolist()) == [2, 4, 6]
    few = frequencies("power_of_choice", known(records=heard(losses), candidates=1), 1)
    np.testing.assert_allclose(few, EXAMPLES / EXAMPLES.sum(), atol=0.03)  # d = m: by examples
    more = frequencies("power_of_choice", known(records=heard(losses), candidates=4), 1)
    assert more[6] > few[6] + 0.1
    nobody = frequencies("power_of_choice", known(candidates=9), 1)
    np.testing.assert_allclose(nobody, (EXAMPLES > 0) / 9, atol=0.03)  # of equal losses, any


def test_oort_explores_less_from_round_to_round_and_its_pacer_waits_for_slower_clients_once_less_is_gained() -> None:
    settings = SelectionSettings(pacer_rounds=2, preferred_percentile=30, pacer_step=10)
    assert [round(exploration_of(settings, number), 6) for number in (1, 2, 1000)] == [0.9, 0.882, 0.2]
    falls = np.array([5.0, 5, 4, 4, 6, 6, 1, 1, 0])  # windows of 10, 8, 12 and 2
    assert percentile_of(settings, falls) == 50
    assert percentile_of(settings, falls[:3]) == 30
    assert percentile_of(settings, np.arange(100.0)) == 30
    assert percentile_of(settings, -np.arange(100.0)) == 100


def test_oorts_utility_is_its_formula() -> None:
    losses = [3.0, 1.0, 9.0, 2.0, 8.0, 7.0, 5.0, 4.0, 5.0, 6.0]
    seconds = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    one, able = known(records=heard(losses, seconds)), np.flatnonzero(EXAMPLES)
    gains = [EXAMPLES[client] * losses[client] for client in able]
    cap = sorted(gains)[int(0.95 * (len(gains) - 1))]
    gains = [min(gain, cap) for gain in gains]
    preferred = sorted(seconds[client] for client in able)[int(0.3 * (len(able) - 1))]
    expected = []
    for client, gain in zip(able, gains, strict=True):
        worth = (gain - min(gains)) / (max(gains) - min(gains)) + np.sqrt(0.1 * np.log(5) / 4)
        slow = (preferred / seconds[client]) ** 2 if seconds[client] > preferred else 1.0
        expected.append(worth * slow)
    np.testing.assert_allclose(utilities(one, able), expected, rtol=1e-12)
    plain = utilities(known(records=one.records, slowness=0.0), able)
    assert (plain >= utilities(one, able)).all()
    assert not np.allclose(plain, expected)  # a control: time counts


def test_oort_prefers_the_useful_and_fast_and_explores_faster_device_types_first() -> None:
    alike = [2.0] * 10
    slow = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 50.0, 50.0, 1.0]
    settings: dict[str, Any] = {"exploration": 0.0, "least_exploration": 0.0, "preferred_percentile": 50.0}
    chosen = frequencies("oort", known(records=heard(alike, slow), **settings), 2, 500)
    assert chosen[8] == 0  # 60 examples, and 50 times the time
    assert chosen[4] > 0.5  # 80 examples
    assert frequencies("oort", known(records=heard(alike), **settings), 2, 500)[8] > 0.5  # a control: it is its time
    explored = frequencies("oort", known(exploration=1.0), 1, 4000)
    np.testing.assert_allclose(np.bincount(TYPES, weights=explored), np.array([4 / 9, 4 / 3, 1]) / (4 / 9 + 4 / 3 + 1), atol=0.03)


# --- in rounds


def reporting(losses: Callable[[int], float]) -> Callable[..., Any]:
    """Finishes a round in which everybody reports a loss."""

    def finished(setup: Any, state: Any, work: Any) -> Any:
        reports = [
            Report(client=job.client, plan=job.plan, examples=1, steps=1, loss=losses(job.client), seconds=0.0)
            for job in work.jobs
        ]
        update = Update({}, tuple(reports))
        return finish_round(setup, state, work, torch.zeros_like(state.parameters), [update])

    return finished


def test_what_is_remembered_is_what_came_back_in_time() -> None:
    clock = {"dropout": 0.5, "deadline_seconds": 0.1}
    prepared = prepare(tiny_experiment(clients={"selection": "oort"}, clock=clock, rounds=9))
    setup, state, finished = prepared.setup, state_of(prepared), reporting(lambda client: 100.0 + client)
    lost = 0
    for number in range(1, 7):
        work = begin_round(setup, state)
        before, state = state.records, finished(setup, state, work)
        assert before is not None
        after = state.records
        back = {visit.job.client: visit.cost.seconds for visit in work.visits if visit.outcome == "used"}
        lost += len(work.visits) - len(back)
        for client in range(12):
            chosen = client in work.chosen
            assert after.times[client] == before.times[client] + chosen
            assert after.last_round[client] == (number if chosen else before.last_round[client])
            if client in back:
                assert after.loss[client] == 100.0 + client
                assert after.seconds[client] == back[client]
            else:
                np.testing.assert_equal(after.loss[client], before.loss[client])
        assert after.gained[-1] == sum(setup.examples[client] * (100.0 + client) for client in back)
        assert len(after.gained) == number
    assert lost > 3


def test_a_late_loss_is_remembered_when_it_arrives() -> None:
    clock = {"over_selection": 1.75, "late": "accept", "late_rounds": 50}
    prepared = prepare(tiny_experiment(clients={"per_round": 4, "selection": "round_robin"}, clock=clock, rounds=9))
    setup, state = prepared.setup, state_of(prepared)
    came = 0
    for _ in range(8):
        work = begin_round(setup, state)
        stale = [visit.job for visit in work.visits if visit.outcome == "stale"]
        waiting = {one.visit.job.client for one in state.clock.late}
        updates = [
            Update({job.plan: 1.0}, (Report(client=job.client, plan=job.plan, examples=1, steps=1, loss=7.0, seconds=0.0),))
            for job in stale
        ]
        on_time = [Update({}, ()) for _ in range(len(work.blocks) - len(stale))]
        zero = torch.zeros_like(state.parameters)
        state = finish_round(setup, state, work, zero, [*on_time, *updates], [zero] * len(stale))
        arrived = waiting - {one.visit.job.client for one in state.clock.late}
        came += len(arrived)
        for client in arrived:
            assert state.records.loss[client] == 7.0
        for job in stale:
            assert np.isnan(state.records.loss[job.client]) or job.client in arrived or state.records.times[job.client] > 1
    assert came


def test_a_selection_of_ones_own_is_used_and_one_that_chooses_others_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(known: Known, wanted: int, rng: np.random.Generator) -> np.ndarray:
        return known.able[:wanted]

    def nobody(known: Known, wanted: int, rng: np.random.Generator) -> np.ndarray:
        return np.arange(100, 100 + wanted)

    try:
        raffm_ray.selection("first_of_all")(first)
        raffm_ray.selection("nobody", records=True)(nobody)
        prepared = prepare(tiny_experiment(clients={"selection": "first_of_all"}))
        assert begin_round(prepared.setup, state_of(prepared)).chosen == (0, 1, 2, 3, 4)
        prepared = prepare(tiny_experiment(clients={"selection": "nobody"}))
        assert state_of(prepared).records is not None
        with pytest.raises(UserError, match=r"clients.selection 'nobody': round 1: expected 5 of the clients .* got \[100, 101"):
            begin_round(prepared.setup, state_of(prepared))
    finally:
        SELECTIONS.forget([__name__])


@pytest.mark.parametrize(
    ("clients", "told"),
    [
        ({"selection": "oart"}, r"clients.selection 'oart' is not known .*'oort'"),
        ({"selection": {"name": "oort", "explore": 1}}, r"clients.selection.explore: unknown key.*exploration"),
        (
            {"selection": {"name": "power_of_choice", "candidates": 3}},
            r"selection.candidates 3 must be from per_round 5 to count 12",
        ),
        ({"selection": {"shares": "fleets"}}, r"clients.selection.shares: .*'fleet' or 'equal'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_done(clients, told) -> None:
    with pytest.raises(UserError, match=told):
        prepare(tiny_experiment(clients=clients))


def test_a_selection_is_written_as_its_name_where_nothing_else_is_set() -> None:
    def written(selection: Any) -> Any:
        return tiny_experiment(clients={"selection": selection}).model_dump(mode="json")["clients"]["selection"]

    assert written("oort") == written({"name": "oort"}) == "oort"
    assert written({"name": "oort", "slowness": 1.0})["slowness"] == 1.0
