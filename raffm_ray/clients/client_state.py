"""What a client keeps from round to round, and how it is carried over to another plan.

Kept tensors are cut to the plan that the client trained last, whose indices are the full model's: a new ranking moves nothing. Entries
that a new plan adds begin as the update's row says; entries that it drops are forgotten, since the device does not hold them any more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from raffm_ray.axes.indexing import Plan, Selection, scatter_add_selected, take_selected
from raffm_ray.clients.module_factory import ModuleFactory
from raffm_ray.clients.updates.row import OWN, Memory, Named


@dataclass(frozen=True)
class ClientState:
    """`plan`: what the client trained last; `tensors`: by kind/name, in the plan's shapes, on the CPU; `numbers`: by name."""

    plan: Plan
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(values.nbytes for values in self.tensors.values())

    def of_kind(self, kind: str) -> dict[str, Tensor]:
        """The tensors of a kind, by name of parameter."""
        return {key[len(kind) + 1 :]: values for key, values in self.tensors.items() if key.startswith(f"{kind}/")}


NO_STATE = ClientState(Plan())
"""Of a client that never trained: it holds nothing of any parameter."""


def state_of(plan: Plan, kept: Mapping[str, Named], numbers: Mapping[str, float]) -> ClientState:
    """A state of what is kept, by kind and name."""
    tensors = {
        f"{kind}/{name}": values.detach().to("cpu", copy=True) for kind, named in kept.items() for name, values in named.items()
    }
    return ClientState(plan, tensors, dict(numbers))


def carried_over(values: Tensor, before: Selection, after: Selection, start: Tensor) -> Tensor:
    """A tensor that was cut by one selection, as another one cuts it. `start`: [full shape], what entries begin at that it did not have."""
    whole = start.clone()
    scatter_add_selected(whole, take_selected(whole, before).neg(), before)  # x - x is 0 to the bit
    return take_selected(scatter_add_selected(whole, values.to(whole.device), before), after)


def recall(state: ClientState, plan: Plan, kinds: Mapping[str, str], given: Named, full: Named, factory: ModuleFactory) -> Memory:
    """The memory of a client for a plan, tensors of all of `given`. `kinds`: by kind, what entries begin at; `given`: the plan's trained
    parameters; `full`: the full model's."""
    before, after = factory.selections(state.plan), factory.selections(plan)
    kept: dict[str, dict[str, Tensor]] = {}
    for kind, start in kinds.items():
        had = state.of_kind(kind)
        kept[kind] = {}
        for name, received in given.items():
            values = had.get(name)
            begins = received.clone() if start == "received" else received.new_zeros(received.shape)
            if values is None:
                kept[kind][name] = begins
            elif state.plan == plan:
                kept[kind][name] = values.to(received.device, copy=True)
            else:
                first = full[name].float() if start == "received" else full[name].new_zeros(full[name].shape)
                kept[kind][name] = carried_over(values, before[name], after[name], first)
    return Memory(kept, state.numbers)


def own_parameters(state: ClientState, plan: Plan, given: Named, full: Named, factory: ModuleFactory) -> dict[str, Tensor]:
    """By name, the parameters of the client's own for a plan, of those that it has any of."""
    names = state.of_kind(OWN)
    mine = {name: values for name, values in given.items() if name in names}
    return dict(recall(state, plan, {OWN: "received"}, mine, full, factory).kept[OWN])
