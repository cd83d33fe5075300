"""GPUs: products in bfloat16, several workers a GPU, and blocks that find no room. What only a GPU shows is skipped without one."""

import io
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from conftest import outputs, tiny_experiment
from rich.console import Console

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import ClientError, UserError
from raffm_ray.benchmarks.gpu import OnGPU, why_no_gpu
from raffm_ray.benchmarks.plain_loop import train_clients
from raffm_ray.benchmarks.suite import CASES, Options, run_suite, table_of
from raffm_ray.benchmarks.synthetic_data import vit
from raffm_ray.benchmarks.training import batches_of
from raffm_ray.clients.client_runner import ClientRunner
from raffm_ray.clients.client_updates import train
from raffm_ray.clients.local_training import ClientData, Training, computing, decayed_groups, one_thread
from raffm_ray.clients.messages import Call, Job, RoundContext
from raffm_ray.data.examples import sent
from raffm_ray.pool.gpu_sharing import (
    CONTEXT_BYTES,
    LOSS_COPIES,
    USED,
    ExclusiveGpuQueue,
    describe_out_of_memory,
    memory_fraction,
    training_bytes,
    use_deterministic_kernels,
    worker_bytes,
    workers_a_gpu,
)
from raffm_ray.pool.ray_pool import RayPool, _share
from raffm_ray.pool.worker_pool import InProcessPool, device_of
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.rounds import begin_round
from raffm_ray.server.state import new_state
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.settings.experiment import LocalSettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import costs_of

# Workers cannot import this module: what it defines travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
SGD = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 16, "steps": 3}
FLAT = np.arange(4, dtype=np.float32)
GIGA = 1e9


def bf16(**local: Any) -> dict[str, Any]:
    return {"local": {**local, "precision": "bfloat16"}}


# bfloat16


def test_every_family_computes_in_bfloat16_and_learns_in_float32(model, inputs) -> None:
    exact = outputs(model, inputs).detach()
    with computing("bfloat16", "cpu"):
        rounded = outputs(model, inputs).float()
    rounded.square().sum().backward()
    assert 0 < float((rounded.detach() - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
    with computing("float32", "cpu"):
        assert torch.equal(outputs(model, inputs), exact)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment(local=SGD))


@pytest.fixture(scope="module")
def start(prepared) -> torch.Tensor:
    return starting_parameters(prepared, lambda *_: None, lambda _: None)


def block_of(prepared: Prepared, start: torch.Tensor, precision: str, stack: int, device: str = "cpu") -> Any:
    jobs = [Job(client, 0, weight=1.0) for client, share in enumerate(prepared.shares) if len(share)]
    local = prepared.setup.experiment.local.model_copy(update={"precision": precision})
    context = RoundContext(seed=0, round=1, plans=(Plan(),), local=local, learning_rate=local.learning_rate, stack=(stack,))
    runner = prepared.runner()
    runner.device = device
    with one_thread():
        return runner.block(context, start.numpy(), jobs)


@pytest.mark.parametrize("stack", [1, 4])
def test_clients_learn_nearly_the_same_in_bfloat16(prepared, start, stack) -> None:
    exact, exact_sum = block_of(prepared, start, "float32", stack)
    rounded, rounded_sum = block_of(prepared, start, "bfloat16", stack)
    off = np.linalg.norm(rounded_sum - exact_sum) / np.linalg.norm(exact_sum)
    assert 1e-6 < off < 0.1
    assert rounded_sum.dtype == np.float32
    for mine, theirs in zip(rounded.reports, exact.reports, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=0.05)
        assert mine.loss != theirs.loss
        assert (mine.steps, mine.forward_backward) == (theirs.steps, theirs.forward_backward)
    assert rounded_sum.tobytes() == block_of(prepared, start, "bfloat16", stack)[1].tobytes()


def test_evaluation_computes_in_the_precision_too(prepared, start) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        local = prepared.setup.experiment.local.model_copy(update={"precision": precision})
        context = RoundContext(seed=0, round=1, plans=(Plan(),), local=local, learning_rate=0.0)
        (_, losses[precision], _), _ = prepared.runner().evaluate(context, start.numpy(), 0, 0, 64)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_parameters_gradients_and_optimizer_stay_float32(prepared, start, monkeypatch) -> None:
    made: list[torch.optim.Optimizer] = []
    plain = OPTIMIZERS["momentum"]
    monkeypatch.setitem(OPTIMIZERS, "momentum", lambda *given: made.append(plain(*given)) or made[-1])
    runner = prepared.runner()
    module = runner.module_factory.module(views(start, prepared.setup.architecture.shapes), Plan(), {}).train()
    local = LocalSettings(optimizer="momentum", precision="bfloat16", steps=30, learning_rate=0.02)
    rng = np.random.default_rng(0)
    two_steps, client = local.model_copy(update={"steps": 2}), ClientData(np.arange(64), rng, rng)
    first, _ = train(module, Training(runner.objective, two_steps, 1e-9), runner.examples, client)
    mean, _ = train(module, Training(runner.objective, local, local.learning_rate), runner.examples, client)
    assert mean < 0.9 * first  # it learns
    (*_, optimizer) = made
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = [optimizer.state[parameter]["momentum_buffer"] for parameter in held]
    assert {values.dtype for values in [*held, *state, *(parameter.grad for parameter in held)]} == {torch.float32}


def test_a_run_in_bfloat16_learns(out) -> None:
    plain = simulate(tiny_experiment(), out / "float32")
    rounded = simulate(tiny_experiment(**bf16()), out / "bfloat16")
    same = simulate(tiny_experiment(local={"precision": "float32"}), out / "named")
    assert same["params_sha256"] == plain["params_sha256"]
    assert rounded["params_sha256"] != plain["params_sha256"]
    assert rounded["full_model"] > rounded["start"] + 0.05
    assert rounded["full_model"] == pytest.approx(plain["full_model"], abs=0.1)


# shares of a GPU


@pytest.mark.parametrize(
    ("need", "memory", "most", "workers"),
    [
        (10.0, 100.0, 16, 9),
        (10.0, 99.9, 16, 8),
        (10.0, 1000.0, 16, 16),
        (45.0, 100.0, 16, 2),
        (45.1, 100.0, 16, 1),
        (500.0, 100.0, 16, 1),
        (10.0, 100.0, 1, 1),
    ],
)
def test_as_many_workers_as_fit_share_a_gpu(need, memory, most, workers) -> None:
    assert workers_a_gpu(need, memory, most) == workers
    assert workers == 1 or workers * need <= USED * memory
    assert workers == most or (workers + 1) * need > USED * memory


def test_only_kernels_that_repeat_themselves_are_allowed_on_a_gpu(monkeypatch) -> None:
    """As flags: what they do needs a GPU."""
    strict = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *given, **more: strict.append((given, more)))
    before = torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        use_deterministic_kernels()
        assert strict == [((True,), {})]  # an operation that has none is an error, no warning
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(before[0])
        torch.backends.cuda.enable_cudnn_sdp(before[1])


def test_an_operation_without_such_a_kernel_is_said_with_a_way_out(prepared) -> None:
    runner = prepared.runner()
    assert runner.deterministic
    runner.block = lambda *_: (_ for _ in ()).throw(
        RuntimeError("histc_cuda does not have a deterministic implementation, but you set ...")
    )
    with pytest.raises(
        RuntimeError,
        match="pool.deterministic: histc_cuda has no kernel on this GPU .*: set pool.deterministic to false, or pool.device to cpu",
    ):
        runner.perform("block", None, None, ())
    runner.block = lambda *_: (_ for _ in ()).throw(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="^something else$"):
        runner.perform("block", None, None, ())


def test_a_worker_needs_its_largest_stack_and_the_round_s_parameters(prepared) -> None:
    architecture, local = prepared.setup.architecture, LocalSettings(batch_size=8)
    full, small = costs_of(architecture, Plan(), 8), Plan({"0/ffn": np.arange(8)})
    assert training_bytes(full, 3) == 3 * (full.memory_bytes + full.bytes + LOSS_COPIES * full.output_bytes)
    taught = training_bytes(full, 3, [costs_of(architecture, small, 8)], "random", distill=True)
    assert taught > training_bytes(full, 3, [costs_of(architecture, small, 8)], "random")
    stacks = [(Plan(), 1), (small, 16)]
    assert worker_bytes(architecture, stacks, local) == (
        16
        * (costs_of(architecture, small, 8).memory_bytes + costs_of(architecture, small).bytes + LOSS_COPIES * full.output_bytes)
        + 2 * full.bytes
        + CONTEXT_BYTES
    )
    assert worker_bytes(architecture, stacks[:1], local) < worker_bytes(architecture, stacks, local)
    pair, one = [(Plan(), 1), (small, 1)], costs_of(architecture, small, 8)
    beside = max(0, one.bytes + one.bytes_up + one.activation_bytes - full.activation_bytes)
    assert beside > 0
    assert worker_bytes(architecture, pair, local, "random") == worker_bytes(architecture, pair, local) + beside


def test_what_found_no_room_is_told_with_the_prefixes_beside_it(prepared) -> None:
    architecture, local = prepared.setup.architecture, LocalSettings(batch_size=8)
    plans = (Plan(), Plan({"0/ffn": np.arange(8)}))
    context = RoundContext(seed=0, round=3, plans=plans, local=local, learning_rate=0.1, stack=(2, 2))
    full, small = (costs_of(architecture, plan, 8) for plan in plans)

    def told(prefix: str) -> str:
        jobs = [Job(client, 0, (1,) if prefix != "none" else (), prefix) for client in (4, 5)]
        return describe_out_of_memory(architecture, Call("block", context, (jobs,)), RuntimeError("no room"))

    beside = max(0, small.bytes + small.bytes_up + small.activation_bytes - full.activation_bytes)
    assert beside > 0
    for prefix, extra, what in (("none", 0, ""), ("random", beside, " with its prefixes")):
        needed = 2 * (full.memory_bytes + full.bytes_up + extra + LOSS_COPIES * full.output_bytes)
        assert (
            f"2 clients at once of plan 0 of {full.params:,} parameters{what}, estimated at {needed / 1e9:.3g} GB: a GPU"
            in told(prefix)
        )
    assert told("none") != told("random").replace(" with its prefixes", "")  # control: the number differs


def test_only_a_run_that_asks_computes_what_a_worker_needs() -> None:
    assert prepare(tiny_experiment()).runner().gpu_bytes == 0
    asked = tiny_experiment(pool={"gpus_per_worker": "auto", "stack_clients": 4})
    alone = asked.model_copy(update={"pool": asked.pool.model_copy(update={"stack_clients": 1})})
    assert CONTEXT_BYTES < prepare(alone).runner().gpu_bytes < prepare(asked).runner().gpu_bytes
    assert device_of(asked.pool) == "cuda"


def test_workers_of_a_gpu_may_not_allocate_more_than_there_is() -> None:
    memory = 80 * GIGA
    for workers in (1, 2, 3, 8):
        each = memory_fraction(1 / workers, memory)
        assert workers * (each * memory + CONTEXT_BYTES) == pytest.approx(memory)
        alone = memory_fraction(1 / workers, memory, alone=True)
        assert alone * memory + workers * CONTEXT_BYTES == pytest.approx(memory)
        assert alone == pytest.approx(workers * each)
    assert memory_fraction(2.0, memory) == memory_fraction(1.0, memory)
    assert memory_fraction(0.5, GIGA) == 0.25  # contexts alone would fill it


def test_auto_takes_ray_s_gpus_and_their_memory() -> None:
    resources = {"CPU": 8.0, "GPU": 2.0}

    def workers(need: float, **settings: Any) -> int:
        pool = PoolSettings(gpus_per_worker="auto", gpu_memory_bytes=10 * GIGA, **settings)
        return round(1 / _share(pool, int(need), resources))

    assert workers(3 * GIGA) == 3
    assert workers(0.1 * GIGA) == 4  # a core each
    assert workers(0.1 * GIGA, workers=2) == 1  # no smaller shares than are asked for
    assert workers(30 * GIGA) == 1
    with pytest.raises(UserError, match="auto needs a GPU, and Ray sees none"):
        _share(PoolSettings(gpus_per_worker="auto"), 1, {"CPU": 8.0})
    assert _share(PoolSettings(gpus_per_worker=0.5), 0, resources) == 0.5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (-1, "gpus_per_worker -1.0 must be 0 or more"),
        (1.5, "must be whole above 1"),
        ("most", "gpus_per_worker"),
        (0.4, "must be 1/k"),
    ],
)
def test_a_share_that_cannot_be_is_one_line(given, told) -> None:
    with pytest.raises(UserError, match=told):
        tiny_experiment(pool={"gpus_per_worker": given})


def test_who_waits_to_be_alone_on_a_gpu() -> None:
    turns = ExclusiveGpuQueue()
    assert not turns.closed()
    assert turns.refused("a", 3)
    assert turns.refused("a", 5)
    assert turns.refused("b", 7)
    assert turns.closed() == turns.waiting() == ["a", "b"]
    assert turns.begin("a") == 3
    assert (turns.closed(), turns.waiting()) == (["a", "b"], ["b"])
    turns.ended(5)  # a call that was not alone
    assert turns.waiting() == ["b"]
    assert not turns.refused("a", 3)
    turns.ended(3)
    assert turns.begin("a") == 5
    assert turns.leave("b") == [7]
    assert turns.closed() == ["a"]
    turns.ended(5)
    assert not turns.closed()
    assert turns.refused("a", 3)  # not alone this time


# out of memory


class _Crowded(ClientRunner):
    """`take` needs its GPU for itself, or more than that; a block of a client named in a file finds no room the first time."""

    folder: Path

    def take(self, context: RoundContext, flat: Any, number: int, folder: Path, needs: int) -> Any:
        """`needs` workers' memory of the two that share the GPU."""
        place = f"{os.environ.get('CUDA_VISIBLE_DEVICES')}"
        mark = folder / f"busy-{place}-{os.getpid()}"
        mark.touch()
        (folder / f"try-{number}-{len(list(folder.glob(f'try-{number}-*')))}").touch()
        try:
            first, alone = len(list(folder.glob(f"try-{number}-*"))) == 1, True
            until = time.monotonic() + (0.3 if needs > 1 else 0.02)
            # The first time it waits for a neighbour; the second time there must be none.
            while time.monotonic() < until or (needs > 1 and first and alone and time.monotonic() < until + 20):
                alone = alone and len(list(folder.glob(f"busy-{place}-*"))) == 1
                time.sleep(0.005)
            if needs > 2 or (needs > 1 and not alone):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        finally:
            mark.unlink()
        return number, flat * number

    def block(self, context: RoundContext, flat: Any, jobs: Any) -> Any:
        mark = self.folder / f"{context.local.precision}-{context.round}-{jobs[0].client}"
        if context.round == 2 and not mark.exists():
            mark.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().block(context, flat, jobs)


def crowded(plain: ClientRunner, folder: Path) -> _Crowded:
    runner = _Crowded(plain.architecture, plain.examples, plain.shares, plain.held_out)
    runner.folder = folder
    return runner


@pytest.fixture(scope="module")
def noted() -> list[str]:
    return []


@pytest.fixture(scope="module")
def pool(four_cores, tmp_path_factory, noted) -> Iterator[RayPool]:
    runner = crowded(prepare(tiny_experiment()).runner(), tmp_path_factory.mktemp("blocks"))
    opened = RayPool(runner, PoolSettings(workers=2, gpus_per_worker=0.5, device="cpu"), noted.append)
    assert len({slot.place for slot in opened._slots}) == 1  # both on one GPU
    yield opened
    opened.close()


def taking(folder: Path, needs: dict[int, int]) -> list[Call]:
    context = RoundContext(seed=0, round=1, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1)
    return [Call("take", context, (number, folder, needs.get(number, 1))) for number in range(24)]


def test_a_call_that_finds_no_room_runs_again_without_neighbours(pool, noted, tmp_path) -> None:
    noted.clear()
    told: list[int] = []
    found = pool.run(FLAT, taking(tmp_path, {0: 2, 9: 2}), lambda index, _: told.append(index))
    assert [(small, large.tolist()) for small, large in found] == [(number, (FLAT * number).tolist()) for number in range(24)]
    assert sorted(told) == list(range(24))  # each counted once
    assert {number: len(list(tmp_path.glob(f"try-{number}-*"))) for number in (0, 1, 9)} == {0: 2, 1: 1, 9: 2}
    assert len(noted) == 2
    assert noted[0].startswith("note: round 1, take (0, ")
    assert "a GPU was out of memory (CUDA out of memory. Tried to allocate 2 GiB); it runs again while nothing else" in noted[0]


def test_a_call_that_finds_no_room_alone_either_is_an_error_that_helps(pool, tmp_path) -> None:
    with pytest.raises(
        ClientError, match=r"round 1, take \(3, .*also with nothing else at work there; a smaller local.batch_size"
    ):
        list(pool.run(FLAT, taking(tmp_path, {3: 3}), lambda *_: None))
    assert len(list(tmp_path.glob("try-3-*"))) == 2
    again = tmp_path / "again"
    again.mkdir()
    assert len(list(pool.run(FLAT, taking(again, {}), lambda *_: None))) == 24


@pytest.mark.parametrize("local", [{}, {"precision": "bfloat16"}])
def test_law_6_on_a_crowded_gpu(pool, noted, out, local) -> None:
    noted.clear()
    experiment = tiny_experiment(local=local)
    undisturbed = simulate(experiment, out / "in_process")
    run = simulate(experiment, out / "ray", pool=pool)
    for key in ("params_sha256", "full_model", "bytes_up", "bytes_down"):
        assert run[key] == undisturbed[key]
    assert noted
    assert all("round 2, block of clients" in line and "estimated at" in line for line in noted)


def test_in_this_process_no_room_is_an_error_that_names_the_block(tmp_path) -> None:
    plain = prepare(tiny_experiment())
    context = RoundContext(seed=0, round=2, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1, stack=(4,))
    call = Call("block", context, ([Job(0, 0), Job(1, 0)],))
    told = (
        r"round 2, block of clients 0, 1, 2 clients at once of plan 0 of [\d,]+ parameters, estimated at .* GB: .*local.precision"
    )
    with pytest.raises(ClientError, match=told):
        list(InProcessPool(crowded(plain.runner(), tmp_path)).run(FLAT, [call], lambda *_: None))


# the speed suite


def test_without_a_gpu_its_case_is_a_line_of_the_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_no_gpu() == "no GPU here"
    content = run_suite(
        names=["gpu"],
        folder=tmp_path / "bench",
        console=Console(quiet=True),
        options=Options(workers=1, repetitions=1, quick=True),
    )
    assert content["cases"]["gpu"]["rows"] == []
    console = Console(file=io.StringIO(), width=130)
    console.print(table_of(content["rows"], ""))
    assert "no GPU here" in console.file.getvalue()
    assert all(case.why_not() is None for name, case in CASES.items() if name != "gpu")


def test_the_plain_loop_trains_in_bfloat16_what_a_client_trains(monkeypatch) -> None:
    workload = OnGPU(vit(24, 1, 2), "grey", 4, 2, 2, 1, 1.0, 8, device="cpu")
    # As stock modules compute it: bfloat16 tells another order of sums from the same one.
    monkeypatch.setattr("raffm_ray.clients.module_factory.compute_first_position", lambda architecture, plan, model: model)
    prepared = workload.experiment({"precision": "bfloat16", "attention": "sdpa"})
    setup, architecture = prepared.setup, prepared.setup.architecture
    assert setup.experiment.local.precision == "bfloat16"
    from raffm_ray.models.architecture import new_model

    model = new_model(architecture, 0).train()
    start = flatten(dict(model.named_parameters()), architecture.shapes)
    work = begin_round(setup, new_state(start))
    context = replace(work.context, stack=())
    job = work.jobs[0]
    update, summed = prepared.runner().block(context, start.numpy(), [job])
    ours = torch.from_numpy(summed) / sum(update.weights.values())
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    data = prepared.task.clients.batch(slice(None))

    def plain(precision: str) -> torch.Tensor:
        local = setup.experiment.local.model_copy(update={"precision": precision})
        train_clients(model, weights, data, [batches_of(prepared, context, job)], local)
        return flatten(dict(model.named_parameters()), architecture.shapes) - start

    assert ours.abs().max() > 5e-4
    # Adam's first steps are signs: where a gradient is next to nothing, rounding decides.
    same, other = (((ours - plain(precision)).abs() > 1e-5).float().mean() for precision in ("bfloat16", "float32"))
    assert same < 1e-3
    assert other > 5 * same


# on a GPU


@needs_gpu
def test_a_batch_comes_whole_through_pinned_memory() -> None:
    values = torch.arange(1000.0)
    assert torch.equal(sent(values, "cuda").cpu(), values)


@needs_gpu
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_optimizers_are_fused_on_a_gpu(optimizer) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, device="cuda"))
    assert OPTIMIZERS[optimizer](decayed_groups([parameter], 0.0), 0.1).defaults["fused"]


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stack", [1, 4])
def test_a_gpu_trains_what_a_cpu_trains(prepared, start, precision, stack) -> None:
    (_, here), (_, there) = (block_of(prepared, start, precision, stack, device) for device in ("cpu", "cuda"))
    assert np.linalg.norm(here - there) / np.linalg.norm(here) < (1e-2 if precision == "float32" else 0.1)


@needs_gpu
def test_the_round_s_parameters_are_copied_to_a_gpu_once(prepared, start) -> None:
    runner = prepared.runner()
    runner.device = "cuda"
    flat = start.numpy()
    first = runner._flat(flat)
    assert runner._flat(flat) is first
    assert runner._flat(flat.copy()) is not first


@pytest.fixture
def real_gpu() -> Iterator[None]:
    """A Ray of the machine's own GPUs, not the logical ones of other tests."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    ray.shutdown()
    ray.init(address="local", num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def test_law_6_on_one_gpu_with_one_and_two_workers(real_gpu, out) -> None:
    runs = {
        (precision, workers): simulate(
            tiny_experiment(pool={"backend": "ray", "gpus_per_worker": 1 / workers}, local={"precision": precision}),
            out / f"{precision}-{workers}",
        )["params_sha256"]
        for precision in ("float32", "bfloat16")
        for workers in (1, 2)
    }
    assert runs["float32", 1] == runs["float32", 2]
    assert runs["bfloat16", 1] == runs["bfloat16", 2]
    assert runs["float32", 1] != runs["bfloat16", 1]


class _Hungry(ClientRunner):
    def take(self, context: RoundContext, flat: Any, number: int, part: float) -> Any:
        torch.empty(int(part * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device="cuda")
        return number, flat


def test_a_worker_s_share_of_a_gpu_is_a_limit_until_it_is_alone(real_gpu, prepared) -> None:
    plain, noted = prepared.runner(), list[str]()
    hungry = _Hungry(plain.architecture, plain.examples, plain.shares, plain.held_out)
    pool = RayPool(hungry, PoolSettings(gpus_per_worker=0.5), noted.append)
    context = RoundContext(seed=0, round=1, plans=(Plan(),), local=LocalSettings(), learning_rate=0.1)
    try:
        list(pool.run(FLAT, [Call("take", context, (0, 0.3))], lambda *_: None))
        assert not noted
        list(pool.run(FLAT, [Call("take", context, (0, 0.7))], lambda *_: None))
        assert len(noted) == 1
        with pytest.raises(ClientError, match="also with nothing else"):
            list(pool.run(FLAT, [Call("take", context, (0, 1.1))], lambda *_: None))
    finally:
        pool.close()


def test_the_case_of_the_speed_suite_runs_on_a_gpu(real_gpu, tmp_path) -> None:
    content = run_suite(
        names=["gpu"],
        folder=tmp_path / "bench",
        console=Console(quiet=True),
        options=Options(workers=1, repetitions=1, quick=True),
    )
    assert [row.what for row in content["rows"]["gpu"]] == ["BERT-base, a client", "ViT-B/16, a client"]
    assert all(row.ratio > 0 for row in content["rows"]["gpu"])
