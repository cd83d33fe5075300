"""Attention by shape: fused or two products, in float32 and bfloat16; alone, and inside a training step of the suite's models."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.machine import fast_bfloat16, processor
from raffm_ray.basics.tables import WordTable
from raffm_ray.benchmarks.training import WORKLOADS, Workload
from raffm_ray.clients.local_training import backward, decayed_groups, one_thread
from raffm_ray.models.architecture import build, new_model
from raffm_ray.models.attention import IMPLEMENTATIONS
from raffm_ray.models.attention_choice import AttentionShape, attention_for, shape_of
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.pool.worker import keep_freed_memory
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS

SHAPES: tuple[tuple[int, int, int, int], ...] = (
    (5, 8, 320, 4),
    (17, 32, 16, 6),
    (32, 32, 16, 12),
    (65, 32, 16, 6),
    (65, 64, 16, 12),
    (128, 32, 8, 12),
    (128, 64, 8, 12),
    (197, 64, 4, 12),
    (256, 64, 4, 12),
    (512, 64, 2, 12),
    (1024, 64, 1, 12),
    (2048, 64, 1, 12),
)
"""Positions, head size, examples, heads: stacked digits, the suite's models, BERT-base and ViT-B/16, longer texts."""
DROPPING = ((32, 32, 16, 12), (128, 64, 8, 12), (512, 64, 2, 12))
"""Shapes that are measured with dropout too."""
DROPOUT, RATE = 0.1, 1e-3
PRECISIONS = ("float32", "bfloat16")
Action = Callable[[], None]


@dataclass(frozen=True)
class AttentionRow:
    """Median milliseconds with each attention. `chosen`: what the rule takes."""

    what: str
    precision: str
    milliseconds: Mapping[str, float]
    chosen: str


def milliseconds_of(actions: Mapping[str, Action], repetitions: int, device: str) -> dict[str, float]:
    """Medians of repetitions that alternate; CPU time on a CPU, which other processes take less part of."""

    def seconds(action: Action) -> float:
        if device == "cpu":
            start = process_time()
            action()
            return process_time() - start
        torch.cuda.synchronize()
        start = perf_counter()
        action()
        torch.cuda.synchronize()
        return perf_counter() - start

    for action in actions.values():
        action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repetitions):
        for name, action in actions.items():
            taken[name].append(seconds(action))
    return {name: 1000 * median(values) for name, values in taken.items()}


def _alone(name: str, inputs: list[torch.Tensor], direction: torch.Tensor, dropout: float) -> None:
    module = nn.Module().train()
    module.is_causal = False  # type: ignore[assignment]  # what transformers' attention modules say
    size = inputs[0].shape[-1]
    context, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATIONS[name]](module, *inputs, None, scaling=size**-0.5, dropout=dropout)
    torch.autograd.grad(context, inputs, direction)


def kernel_row(
    shape: tuple[int, int, int, int], precision: str, device: str, repetitions: int, drops: bool = False
) -> AttentionRow:
    """Forward and backward of one attention."""
    positions, size, examples, heads = shape
    options = {"dtype": getattr(torch, precision), "device": device}
    # As projections leave them: heads are cut out of [examples, positions, heads * size].
    inputs = [
        torch.randn(examples, positions, heads, size, **options).transpose(1, 2).requires_grad_()
        for _ in ("query", "key", "value")
    ]
    direction = torch.randn(examples, positions, heads, size, **options)
    actions = {name: partial(_alone, name, inputs, direction, DROPOUT * drops) for name in IMPLEMENTATIONS}
    return AttentionRow(
        what=f"{positions} positions, head size {size}, {examples} x {heads} heads{', dropout' if drops else ''}",
        precision=precision,
        milliseconds=milliseconds_of(actions, repetitions, device),
        chosen=attention_for(AttentionShape(device, precision, drops, positions, size)),
    )


def step_row(name: str, workload: Workload, precision: str, device: str, repetitions: int) -> AttentionRow:
    """A training step of a model of the suite, of one client."""
    prepared = workload.prepared()
    architecture = prepared.setup.architecture
    batch = prepared.task.clients.batch(np.arange(workload.batch_size), device)
    objective, start = OBJECTIVES[architecture.head], dict(new_model(architecture, 0).named_parameters())

    def step(module: nn.Module, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        backward(module, batch, objective, precision)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    actions: dict[str, Action] = {}
    for attention in IMPLEMENTATIONS:
        values = {key: one.detach().clone().to(device) for key, one in start.items()}
        module = build(architecture, values, Plan(), attention).train()
        parameters = list(module.parameters())
        actions[attention] = partial(step, module, parameters, OPTIMIZERS["adamw"](decayed_groups(parameters, 0.0), RATE))
    return AttentionRow(
        what=f"a training step of {name}",
        precision=precision,
        milliseconds=milliseconds_of(actions, repetitions, device),
        chosen=attention_for(shape_of(architecture, precision, device)),
    )


def rows_of(device: str, repetitions: int, quick: bool = False) -> list[AttentionRow]:
    """All shapes and models in both precisions, on one thread. `quick`: few and small ones, whose numbers mean nothing."""
    shapes = SHAPES[:2] if quick else SHAPES
    models = {name: one.shortened() if quick else one for name, one in WORKLOADS.items()}
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        alone = [kernel_row(shape, one, device, repetitions) for one in PRECISIONS for shape in shapes]
        alone += [
            kernel_row(shape, one, device, repetitions, True) for one in PRECISIONS for shape in (() if quick else DROPPING)
        ]
        steps = [step_row(name, model, one, device, repetitions) for one in PRECISIONS for name, model in models.items()]
    return alone + steps


def table_of(rows: Sequence[AttentionRow], title: str) -> Table:
    """A line a row; what the rule takes is marked."""
    table = WordTable(title=title, box=SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("precision")
    for name in (*IMPLEMENTATIONS, "eager / sdpa"):
        table.add_column(name, justify="right")
    for row in rows:
        times = [f"{'*' if name == row.chosen else ''}{row.milliseconds[name]:.2f}" for name in IMPLEMENTATIONS]
        table.add_row(row.what, row.precision, *times, f"{row.milliseconds['eager'] / row.milliseconds['sdpa']:.2f}")
    table.caption = "median milliseconds, forward and backward; *: what local.attention auto takes"
    return table


def bench_attention(repetitions: int | None, quick: bool, as_json: bool) -> int:
    """Measures attention and training steps, and prints a table, or JSON."""
    repetitions = repetitions or (1 if quick else 9)
    keep_freed_memory()  # as workers do
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = rows_of(device, repetitions, quick)
    machine: dict[str, Any] = {
        "processor": processor(),
        "fast_bfloat16": fast_bfloat16(),
        "device": device,
        "torch": torch.__version__,
    }
    if as_json:
        print(json.dumps({**machine, "repetitions": repetitions, "rows": [vars(row) for row in rows]}, indent=2))
        return 0
    said = "" if fast_bfloat16() or device == "cuda" else ", on which bfloat16 is slow"
    console = Console()
    console = console if console.is_terminal else Console(width=130)
    console.print(table_of(rows, f"{device}, one thread, torch {torch.__version__}, {processor()}{said}"))
    return 0
