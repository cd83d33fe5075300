"""The largest subnetwork that answers fast enough on this machine, searched with real timings."""

from pathlib import Path
from tempfile import TemporaryDirectory

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import TooSmallError
from raffm_ray.basics.formatting import rounded
from raffm_ray.deployment.inference import latencies, typical_inputs
from raffm_ray.deployment.model_card import NAMES
from raffm_ray.deployment.model_folder import ExportFormats, answers_of, write_onnx
from raffm_ray.deployment.trained_model import TrainedModel
from raffm_ray.subnetworks.budgets import Budget
from raffm_ray.subnetworks.costs import costs_of
from raffm_ray.subnetworks.standalone import save_standalone

GRID = 64
"""Sizes that a search chooses from: parts of the parameters in layers."""


def within_latency(trained: TrainedModel, limit_ms: float, formats: ExportFormats) -> Plan:
    """The largest subnetwork, of a grid over its parameters in layers, whose median answer to `formats.examples` examples of middling length
    takes at most `limit_ms` here, with one thread, in the last of the forms that are asked for. Raises TooSmallError where not even the
    smallest is as fast."""
    architecture, task = trained.prepared.setup.architecture, trained.prepared.task
    full, inputs = costs_of(architecture, Plan()).layer_params, typical_inputs(task, formats.examples)
    shown = typical_inputs(task, 2)
    plans: list[Plan] = []
    for step in range(1, GRID + 1):
        try:
            plans.append(trained.plan(Budget(layer_params=full * step / GRID)))
        except TooSmallError:
            continue
    times: dict[Plan, float] = {}

    def fits(plan: Plan) -> bool:
        if plan not in times:
            with TemporaryDirectory() as place:
                save_standalone(Path(place), architecture, plan, trained.cut(plan))
                write_onnx(Path(place), task.head, shown, formats)
                answer = answers_of(Path(place), task.head)[formats.last]
                times[plan] = latencies({"": answer}, inputs, 0.3)[""][0]
        return times[plan] <= limit_ms

    low, high = 0, len(plans) - 2
    if not fits(plans[0]):
        raise TooSmallError([f"latency_ms {rounded(times[plans[0]])} > {limit_ms:g} ({NAMES[formats.last]})"])
    if fits(plans[-1]):
        return plans[-1]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(plans[middle]) else (low, middle - 1)
    return plans[low]
