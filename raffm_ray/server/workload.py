"""How much a client computes in a round: expected before it, or reported after it."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import VOCABULARY
from raffm_ray.clients.client_updates import CLIENT_UPDATES
from raffm_ray.clients.messages import Report, RoundContext
from raffm_ray.data.examples import steps_of
from raffm_ray.devices.round_costs import Workload, training_work
from raffm_ray.server.state import Round, Setup
from raffm_ray.subnetworks.calibration import backward_passes
from raffm_ray.subnetworks.costs import Costs, with_words


@lru_cache(maxsize=4096)
def _of_one_word(plan: Plan) -> Plan:
    return Plan({**plan, VOCABULARY: np.zeros(1, dtype=np.int64)})


def client_costs(setup: Setup, plan: Plan, client: int) -> Costs:
    """What a plan costs a client, which may have only its own words of it."""
    whole, words = setup.costs(plan), setup.words
    return whole if words is None else with_words(whole, setup.costs(_of_one_word(plan)), words.vocabulary, words.sent(client))


def flops_per_example(setup: Setup, context: RoundContext, report: Report) -> float:
    """FLOPs of training an example, on average over a client's steps, its prefixes included: what a budget of `training_flops` limits."""
    flops = sum(setup.costs(context.plans[plan]).training_flops * examples for plan, examples in report.forward_backward)
    return flops / report.stepped if report.stepped else 0.0


def training_flops(setup: Setup, context: RoundContext, report: Report) -> float:
    """FLOPs that a client's work takes on its device: every example through every plan it trains, its calibration, and a forward pass of all its
    examples where it measures what it received."""
    flops = sum(setup.costs(context.plans[plan]).training_flops * examples for plan, examples in report.forward_backward)
    if context.received_loss and report.plan is not None:
        flops += setup.costs(context.plans[report.plan]).forward_flops * report.examples
    if not report.calibrated:
        return float(flops)
    # Statistics take a forward pass and some backward, those of norms another forward pass.
    full, architecture = setup.costs(Plan()), setup.architecture
    outputs = architecture.config.num_labels if architecture.head.endswith("classification") else None
    backward = backward_passes(context.statistic, outputs) * (full.calibration_flops - full.forward_flops)
    flops += report.calibrated * ((1 + context.measure_norms) * full.forward_flops + backward)
    return float(flops)


def _batch_size(setup: Setup, examples: int) -> float:
    """Examples in a step on average: the last batch of a pass is smaller."""
    return examples / steps_of(examples, setup.experiment.local.batch_size, 1, None)


def _measuring(costs: Costs, examples: int, batch_size: float) -> Workload:
    """A forward pass of so many examples, charged the memory traffic of as many training FLOPs."""
    return training_work(costs, examples * costs.forward_flops / costs.training_flops, batch_size)


def reported_work(setup: Setup, context: RoundContext, report: Report) -> Workload:
    """What a client computed. FLOPs besides training, of calibration, are charged the memory traffic of as many training FLOPs of the
    full model."""
    flops = training_flops(setup, context, report)
    batch_size = _batch_size(setup, report.examples)
    total = Workload()
    for plan, examples in report.forward_backward:
        total = total.plus(training_work(client_costs(setup, context.plans[plan], report.client), examples, batch_size))
    if context.received_loss and report.plan is not None:
        measured = client_costs(setup, context.plans[report.plan], report.client)
        total = total.plus(_measuring(measured, report.examples, batch_size))
    full = client_costs(setup, Plan(), report.client)
    total = total.plus(training_work(full, (flops - total.flops) / full.calibration_flops, batch_size))
    return total._replace(flops=flops)


def expected_work(setup: Setup, plan: Plan, smaller: Sequence[Plan], examples: int) -> Workload:
    """What training `plan` takes a client with `examples`, `smaller` plans (smallest first) besides as the strategy's `prefix` says.

    Draws count with their probability; of "one", that the first step is never a smaller plan's is left out.
    """
    local, prefix = setup.experiment.local, setup.strategy.prefix
    batch_size = _batch_size(setup, examples)
    seen = batch_size * steps_of(examples, local.batch_size, local.epochs, local.steps)
    seen *= CLIENT_UPDATES[local.client_update].passes
    passes = {plan: seen}
    if smaller and prefix == "smallest":
        passes[smaller[0]] = seen
    elif smaller and prefix in ("random", "one"):
        drawn = len(smaller) + (prefix == "one")
        passes = {plan: seen if prefix == "random" else seen / drawn, **dict.fromkeys(smaller, seen / drawn)}
    total = Workload()
    for one, count in passes.items():
        total = total.plus(training_work(setup.costs(one), count, batch_size))
    return total.plus(_measuring(setup.costs(plan), examples, batch_size)) if setup.measures_received else total


def block_costs(setup: Setup, work: Round) -> list[float]:
    """FLOPs of a round's blocks: of every example of every step through every plan, and of calibrating. The costliest start first, and
    what a call may take follows from them."""
    flops = {visit.job.client: training_flops(setup, work.context, visit.report) for visit in work.visits}
    return [float(sum(flops[job.client] for job in block)) for block in work.blocks]
