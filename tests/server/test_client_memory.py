"""What clients keep, in rounds of real subnetworks: the server's sums over it, what is theirs alone, and what cannot go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import TINY, tiny_experiment
from documents import DOCS, blocks_of
from round_states import state_of
from torch import Tensor

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import scatter_add_selected, take, take_selected
from raffm_ray.basics.errors import UserError
from raffm_ray.clients import single_training
from raffm_ray.clients.client_state import ClientState
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.updates.control_variates import CONTROL, DUAL
from raffm_ray.clients.updates.row import OWN
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.server.aggregation import flat_coverage
from raffm_ray.server.device_type_plans import training_view
from raffm_ray.server.rounds import begin_round, finish_round
from raffm_ray.server.state import Round, ServerState, setup_strategy
from raffm_ray.settings.experiment import Experiment

PULL = 0.5
NEEDS: dict[str, dict[str, Any]] = {
    "feddyn": {"server": {"optimizer": "feddyn"}, "strategy": {"aggregation": "coverage"}},
    "fedrep": {"strategy": {"personal": ["classifier"]}},
}
"""What client updates need besides `local.proximal`."""
UNFELT = "vit.layers.0.attention.k_proj.bias"
"""Attention is the same whatever is added to all keys: no gradient, no change."""
PERSONAL = {"FedPer": ["classifier"], "FedBN": ["norms"], "LG-FedAvg": ["*embeddings*", "*layers.0.*"]}


def experiment_of(name: str = "standard", **changes: Any) -> Experiment:
    """Clients that take two steps of gradient descent."""
    local = {"steps": 2, "optimizer": "sgd", "learning_rate": 0.1, "clip": None, "client_update": name}
    local |= {"proximal": PULL} if CLIENT_UPDATES[name].proximal else {}
    config = {key: value for key, value in TINY["vit"].items() if key != "num_labels"} | {"num_hidden_layers": 1}
    merged = {key: {**NEEDS.get(name, {}).get(key, {}), **changes.get(key, {})} for key in ("server", "strategy")}
    return tiny_experiment(
        **{
            **changes,
            **merged,
            "model": {"config": config},
            "clients": {"count": 9, "per_round": 3},
            "local": {**local, **changes.get("local", {})},
        }
    )


@dataclass
class Rounds:
    """Rounds of real clients, one after the other. `states`: by client, what it keeps; `work`, `reports`: of the last round."""

    prepared: Prepared
    state: ServerState
    states: dict[int, ClientState] = field(default_factory=dict)
    work: Round = field(init=False)
    reports: tuple[Any, ...] = ()

    def next(self, only: int | None = None) -> "Rounds":
        """After another round; `only`: of the jobs of so many clients of the smallest plans alone."""
        setup = self.prepared.setup
        self.work = begin_round(setup, self.state)
        jobs = sorted(self.work.jobs, key=lambda job: (job.plan, job.client))[:only]
        update, summed = self.prepared.runner().block(self.work.context, self.state.sent_array, jobs, self.states)
        self.states |= update.states
        self.reports = update.reports
        self.state = finish_round(setup, self.state, self.work, torch.from_numpy(summed), [update])
        return self

    def mean_kept(self, kind: str, count_absent: bool = True) -> Tensor:
        """Flat, the weighted mean of what clients keep over those that hold an entry, one client after the other; `count_absent`: also those
        that have not trained yet."""
        setup, factory = self.prepared.setup, self.prepared.runner().module_factory
        shapes, (view, _) = setup.architecture.trained_shapes, training_view(setup, self.state, self.state.round)
        total, weight = torch.zeros_like(self.state.parameters), torch.zeros_like(self.state.parameters)
        for client, examples in enumerate(setup.examples):
            if client in self.states or count_absent:
                plan = setup.strategy.train(view, setup.budgets[setup.device_types[client]], client)
                kept = self.states[client].of_kind(kind) if client in self.states else {}
                for name, selected in factory.selections(plan).items():
                    ones = take_selected(torch.ones(shapes[name]), selected)
                    scatter_add_selected(views(weight, shapes)[name], ones, selected, float(examples))
                    if name in kept:
                        scatter_add_selected(views(total, shapes)[name], kept[name], selected, float(examples))
        return torch.where(weight > 0, total / weight.clamp(min=1e-9), 0.0)

    def named(self) -> dict[str, Tensor]:
        """The server's trained parameters, copied."""
        shapes = self.prepared.setup.architecture.trained_shapes
        return {name: values.clone() for name, values in views(self.state.parameters, shapes).items()}


def begun(name: str = "standard", **changes: Any) -> Rounds:
    prepared = prepare(experiment_of(name, **changes))
    return Rounds(prepared, state_of(prepared))


def test_the_servers_sums_are_means_over_all_that_hold_an_entry() -> None:
    for name, kind, scale in (("scaffold", CONTROL, 1.0), ("feddyn", DUAL, PULL)):
        rounds = begun(name)
        for _ in range(2):
            state = rounds.next().state
            found = state.memory.variate if name == "scaffold" else scale * state.moments["drift"]
            torch.testing.assert_close(found, rounds.mean_kept(kind), rtol=1e-4, atol=1e-6)
            assert not torch.allclose(found, rounds.mean_kept(kind, count_absent=False), rtol=1e-2, atol=1e-5)
        assert 3 <= len(rounds.states) < len(rounds.prepared.setup.examples)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_what_nobody_of_a_round_holds_stays(name: str) -> None:
    rounds = begun(name).next()
    before = rounds.state
    after = rounds.next(only=1).state
    resting = flat_coverage({rounds.reports[0].plan: 1.0}, rounds.work.context.plans, rounds.prepared.setup.architecture) == 0
    assert torch.equal(before.parameters[resting], after.parameters[resting])
    assert 0 < int(resting.sum()) < len(resting)
    pairs = [(before.memory.variate, after.memory.variate)] if name == "scaffold" else []
    pairs += [(before.moments[key], after.moments[key]) for key in after.moments]
    for one, two in pairs:
        assert bool(one[resting].any())
        assert torch.equal(one[resting], two[resting])
        assert not torch.equal(one, two)


def test_traffic_and_work_are_charged() -> None:
    """A control variate travels like the parameters; whatever else clients remember stays where it is."""
    plain = begun().next()
    cost = {visit.job.client: visit.cost for visit in plain.work.visits}
    for name, row in CLIENT_UPDATES.items():
        if row.prunes:
            continue  # of adapters alone: test_rank_pruning.py
        rounds = begun(name, **({"strategy": {"personal": []}} if name == "standard" else {})).next()
        for visit in rounds.work.visits:
            alone, times = cost[visit.job.client], 2 if row.variate else 1
            if not row.personal and not visit.job.calibrate:
                assert (visit.cost.bytes_up, visit.cost.bytes_down) == (times * alone.bytes_up, times * alone.bytes_down)
        planned = {visit.job.client: visit.report.forward_backward for visit in rounds.work.visits}
        assert {report.client: report.forward_backward for report in rounds.reports} == planned
        for report in rounds.reports:
            if not row.stacks:
                assert sum(examples for _, examples in report.forward_backward) == row.passes * report.stepped
            assert (report.state_bytes is not None) is bool(row.keeps or row.personal)


@pytest.mark.parametrize("method", PERSONAL)
def test_personal_parameters_stay_with_their_clients(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begins: dict[str, Tensor] = {}
    plain_update = single_training.updated

    def seen(module: Any, work: Any, given: Mapping[str, Tensor], memory: Any = None) -> Any:
        begins.clear()
        begins.update(given)
        return plain_update(module, work, given, memory)

    monkeypatch.setattr(single_training, "updated", seen)
    rounds, shared = (begun(strategy={"prefix": "none", "personal": one}) for one in (PERSONAL[method], []))
    names, start = rounds.prepared.setup.personal, rounds.named()
    for one in (rounds, shared):
        one.next()
    moved = {name for name, values in rounds.named().items() if not torch.equal(values, start[name])}
    assert not moved & set(names)
    control = {name for name, values in shared.named().items() if not torch.equal(values, start[name])}
    assert control == set(start) - {UNFELT}
    assert moved == control - set(names)
    # What stays is neither sent up, nor down again once a client has it.
    client, state = next(iter(sorted(rounds.states.items())))
    assert {key.removeprefix(f"{OWN}/") for key in state.tensors} == set(names)
    costs = [{visit.job.client: visit.cost for visit in one.work.visits} for one in (rounds, shared)]
    assert costs[1][client].bytes_up - costs[0][client].bytes_up == state.nbytes
    assert costs[1][client].bytes_down == costs[0][client].bytes_down
    # The next round begins with the client's own values, and with the server's of all others.
    setup = rounds.prepared.setup
    again = next(job for job in rounds.work.jobs if job.client == client)
    rounds.prepared.runner().block(rounds.work.context, rounds.state.sent_array, [again], rounds.states)
    assert all(torch.equal(begins[name], state.of_kind(OWN)[name]) for name in names)
    own, server = dict(begins), rounds.named()
    rounds.prepared.runner().block(
        rounds.work.context, rounds.state.sent_array, [again], {}
    )  # control: of a client without a state
    plan, layout = rounds.work.context.plans[again.plan or 0], setup.architecture.layout
    for name, values in begins.items():
        corrected = name.rpartition(".")[0] in layout.norms and rounds.work.context.norms
        assert corrected or torch.equal(values, take(server[name], layout.parameters[name].dims, layout.axes, plan))
        assert torch.equal(own[name], values) is (name not in names or name == UNFELT)


def test_the_update_that_the_guide_shows_keeps_what_it_leaves_out() -> None:
    (code,) = (one.text for one in blocks_of((DOCS / "how_to" / "remember_clients.md").read_text()) if one.language == "python")
    try:
        exec(code, {"__name__": "guide"})
        rounds = begun("error_feedback")
        start = rounds.named()
        rounds.next()
        assert any(not torch.equal(values, start[name]) for name, values in rounds.named().items())
        for state in rounds.states.values():
            assert {key.partition("/")[0] for key in state.tensors} == {"error"}
            assert any(bool(values.any()) for values in state.tensors.values())
        assert rounds.states
    finally:
        CLIENT_UPDATES.forget({"guide"})


REFUSED = {
    r"server.optimizer: 'feddyn' is the server's side of local.client_update feddyn, got 'standard'": (
        "standard",
        {"server": {"optimizer": "feddyn"}},
    ),
    r"server.optimizer: must be feddyn with local.client_update 'feddyn', whose server's side it is, got 'adam'": (
        "feddyn",
        {"server": {"optimizer": "adam"}},
    ),
    r"local.proximal: must be above 0 with local.client_update 'ditto': it is the lambda of Ditto": (
        "ditto",
        {"local": {"proximal": 0.0}},
    ),
    r"strategy.personal: local.client_update 'fedrep' trains personal parameters in turn": (
        "fedrep",
        {"strategy": {"personal": []}},
    ),
    r"strategy.personal: norms: with local.client_update 'pfedme' all parameters are the clients' own": (
        "pfedme",
        {"strategy": {"personal": ["norms"]}},
    ),
    r"evaluation.keep_best: must be false where clients have parameters of their own \(local.client_update 'ditto'\)": (
        "ditto",
        {"evaluation": {"keep_best": True}, "task": {"validation": 20}},
    ),
    r"evaluation.keep_best: .* \(strategy.personal\)": (
        "standard",
        {"evaluation": {"keep_best": True}, "task": {"validation": 20}, "strategy": {"personal": ["norms"]}},
    ),
    r"strategy.own: norms: local.client_update 'scaffold' corrects the model's own parameters alone": (
        "scaffold",
        {"strategy": {"own": ["norms"]}},
    ),
    r"strategy.name: local.client_update 'scaffold' needs clients that hold the same part in every round, and 'fedrolex'": (
        "scaffold",
        {"strategy": {"name": "fedrolex"}},
    ),
    r"strategy.aggregation: must be coverage with server.optimizer 'feddyn', .* got 'damped'": (
        "feddyn",
        {"strategy": {"aggregation": "damped"}},
    ),
    r"server.agnostic_rate: 0.1 cannot be with server.optimizer 'feddyn', which takes means by weights that stay": (
        "feddyn",
        {"server": {"optimizer": "feddyn", "agnostic_rate": 0.1}},
    ),
    r"clock.staleness: must be 0 with local.client_update 'scaffold', .* got 0.5": ("scaffold", {"clock": {"late": "accept"}}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_go_together_is_one_line_before_work_starts(message: str) -> None:
    name, changes = REFUSED[message]
    with pytest.raises(UserError, match=message) as caught:
        prepare(experiment_of(name, **changes))
    assert "\n" not in str(caught.value)
    setup_strategy(experiment_of(name))  # control: it is the changes that are refused
