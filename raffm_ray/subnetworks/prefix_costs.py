"""What a client's local training costs where it trains smaller prefixes of its plan as well. Closed formulas over `Costs`."""

from collections.abc import Sequence
from dataclasses import replace

from raffm_ray.subnetworks.costs import Costs


def with_prefixes(own: Costs, smaller: Sequence[Costs], prefix: str, distill: bool = False) -> Costs:
    """The costs of a plan for who trains it: the FLOPs of an example in the costliest step, and the peak of memory.

    `smaller`: of the plans that may be trained beside it; those that have as many parameters or more are no prefixes of it. `prefix`: a
    `strategy.prefix`. A step of "random" or "smallest" trains the own plan and one prefix after the other, a step of "one" either.

    A prefix's pass needs its weights and their gradients besides its activations, while the own plan's activations are freed already:
    memory is what stays (weights, gradients, optimizer) and the largest of the passes. A step of "one" has no gradients of the own plan before
    those of its prefix, which they replace. With `distill` the own plan's outputs stay too.
    """
    inside = [one for one in smaller if one.params < own.params]
    if prefix == "none" or not inside:
        return own
    drawn = [min(inside, key=lambda one: one.params)] if prefix == "smallest" else inside
    beside = 0 if prefix == "one" else max(one.training_flops for one in drawn)
    unused = own.bytes_up if prefix == "one" else 0
    passes = [one.bytes + max(0, one.bytes_up + one.activation_bytes - unused) + distill * own.output_bytes for one in drawn]
    return replace(
        own,
        training_flops=own.training_flops + beside,
        memory_bytes=own.memory_bytes - own.activation_bytes + max(own.activation_bytes, *passes),
    )
