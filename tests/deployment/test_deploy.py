"""Deploying: what comes out is what the run measured, in every form, for any budget; mistakes are one line."""

import json
import re
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, TARGETS, TINY, TOKENS, architecture_case, tiny_experiment
from hostile import FULL
from live_bytes import LiveBytes
from plans import random_cut
from safetensors.torch import load_file, save_file

from raffm_ray.axes.flat_parameters import flatten
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main
from raffm_ray.deployment.command import parse_budget, parse_sizes
from raffm_ray.deployment.deploy import deploy, plan_for
from raffm_ray.deployment.exports import export_onnx, largest_difference, onnx_answer
from raffm_ray.deployment.inference import latencies, metric_of, torch_answer
from raffm_ray.deployment.model_folder import ExportFormats, answers_of, tuned, write_model
from raffm_ray.deployment.options import FLAGS
from raffm_ray.deployment.supernet import open_supernet
from raffm_ray.deployment.trained_model import TrainedModel, find_trained_model, of_run
from raffm_ray.models.architecture import Architecture, architecture_of, build, new_model
from raffm_ray.models.freezing import freeze, split
from raffm_ray.models.model_config import parse_config
from raffm_ray.runs.simulation import simulate
from raffm_ray.server.state import parameters_of
from raffm_ray.subnetworks.budgets import budget_from
from raffm_ray.subnetworks.costs import costs_of

PROFILES = Path(__file__).parents[2] / "raffm_ray" / "devices" / "profiles.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "run"
    simulate(tiny_experiment(strategy={"own": ["norms"]}), folder)
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return of_run(run)


def test_every_device_type_gets_what_the_run_measured(run: Path, trained: TrainedModel, tmp_path: Path) -> None:
    device_types = json.loads((run / "summary.json").read_text())["device_types"]
    for name, device_type in device_types.items():
        told = deploy(run, tmp_path / name, device=name)
        assert told["params"] == device_type["params"]
        assert told["forms"]["torch"]["metric"] == device_type["metric"]
    assert len({device_type["params"] for device_type in device_types.values()}) > 2


def test_control_without_its_own_norms_a_device_type_is_not_what_was_measured(run: Path, trained: TrainedModel) -> None:
    own = {key.split("/")[0] for key in _own(run)}
    assert own
    plan = plan_for(trained, {}, sorted(own)[0])
    architecture = trained.prepared.setup.architecture
    bare = TrainedModel(trained.prepared, _without_copies(trained), trained.origin)
    with_own, without = (torch.cat([values.flatten() for values in one.cut(plan).values()]) for one in (trained, bare))
    assert with_own.shape == without.shape
    assert not torch.equal(with_own, without)
    assert architecture.layout.norms


def _own(run: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(run / "checkpoints" / "final" / "own.safetensors", "pt") as file:
        return list(file.keys())


def _without_copies(trained: TrainedModel) -> Any:
    from dataclasses import replace

    setup = trained.prepared.setup
    size = sum(int(np.prod(shape)) for shape in setup.architecture.shapes.values())
    model = trained.state.parameters[:size]
    extra = trained.state.parameters[size:]
    own = torch.cat([model[_places(trained)]] * (len(setup.budgets) - 1))
    assert own.shape == extra.shape
    return replace(trained.state, parameters=torch.cat([model, own]))


def _places(trained: TrainedModel) -> torch.Tensor:
    setup, start, places = trained.prepared.setup, 0, []
    by_name = {}
    for name, shape in setup.architecture.shapes.items():
        size = int(np.prod(shape))
        by_name[name] = torch.arange(start, start + size)
        start += size
    places = [by_name[name] for name in setup.size_specific]
    return torch.cat(places)


def test_forms_agree_and_the_card_says_what_was_measured(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    told = deploy(run, tmp_path / "half", {"params": 0.6}, formats=ExportFormats(onnx=True, int8=True, torch_export=True))
    formats = told["forms"]
    assert set(formats) == {"torch", "onnx", "int8"}
    assert formats["onnx"]["metric"] == formats["torch"]["metric"]
    assert formats["onnx"]["difference"] < 1e-5
    assert formats["int8"]["bytes"] < formats["onnx"]["bytes"]
    text = (tmp_path / "half" / "README.md").read_text()
    assert f"{told['params']:,} parameters" in text
    needs = "**transformers alone cannot load this folder.** It needs the Python package raffm-ray"
    assert text.splitlines()[7].startswith(needs)
    assert "library_name: raffm_ray" in text
    assert "import raffm_ray\n" in text
    assert json.loads((tmp_path / "half" / "deployed.json").read_text()) == told
    loaded = torch.export.load(tmp_path / "half" / "model.pt2").module()
    assert loaded(torch.zeros(5, 1, 8, 8))[0].shape == (5, 10)
    for block, inputs in ((0, np.zeros((5, 1, 8, 8), np.float32)), (1, torch.zeros(5, 1, 8, 8))):
        lines = re.split(r"\n(?=import torch)", text.split("## Exported files")[1].split("```")[1].removeprefix("python\n"))[
            block
        ]
        names: dict[str, Any] = {"pixel_values": inputs}
        exec(lines.replace("DIR", str(tmp_path / "half")), names)
        assert names["outputs"][0].shape == (5, 10)


def test_a_size_below_all_that_was_trained_says_so(
    trained: TrainedModel, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = trained.least_params
    assert least == min(one["params"] for one in json.loads((run / "summary.json").read_text())["device_types"].values())
    assert main(["deploy", str(run), "--budget", f"params={least - 1}", "--out", str(tmp_path / "less")]) == 0
    assert f"below {least:,} parameters no device type was trained" in capsys.readouterr().out
    assert f"the smallest device type had {least:,} parameters" in (tmp_path / "less" / "README.md").read_text()
    assert main(["deploy", str(run), "--budget", f"params={least}", "--out", str(tmp_path / "as_much")]) == 0  # control
    assert "no device type" not in capsys.readouterr().out
    assert "Smaller than" not in (tmp_path / "as_much" / "README.md").read_text()


def test_from_python_a_mistake_is_one_line_too(run: Path, tmp_path: Path) -> None:
    for budgets, told in (
        ({"params": "0.5"}, "budget params must be a positive number, got '0.5'"),
        ({"params": None}, "budget params must be a positive number, got None"),
        ({"params": float("inf")}, "positive number, got inf"),
        ({"latency_ms": "5"}, "budget latency_ms must be a positive number, got '5'"),
        ({"latency_ms": float("nan")}, "positive number, got nan"),
        ({"latncy_ms": 5}, "did you mean 'latency_ms'"),
        ("params=0.5", "expected a mapping such as"),
        (None, "how small"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            deploy(run, tmp_path / "out", budgets)
    for wrong in ({"examples": 0}, {"tune": -1}, {"distill": True}, {"tune": 5, "elastic": True}):
        with pytest.raises(UserError, match=re.escape(next(iter(wrong)) if len(wrong) == 1 else "elastic")):
            ExportFormats(**wrong)
    assert deploy(run, tmp_path / "half", {"params": np.float32(0.6)})["params"] > 0


EXPORTED = [("vit", "image_classification"), ("bert", "sequence_classification"), ("gpt2", "causal_language_modelling")]


def one_layer(name: str, head: str) -> Architecture:
    """Every layer is exported alike, in seconds."""
    config = {key: 1 if key in ("num_hidden_layers", "n_layer") else value for key, value in TINY[name].items()}
    return architecture_of(parse_config(config), head, TOKENS, TARGETS)


@pytest.mark.parametrize(("name", "head"), CASES if FULL else EXPORTED)
def test_exports_answer_as_torch_for_any_length_and_number(name: str, head: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    architecture = architecture_case(name, head) if FULL else one_layer(name, head)
    plan = random_cut(architecture.layout, np.random.default_rng(2), ("groups", "heads", "qk", "vo", "ffn"))
    cut = take_all({key: one.detach() for key, one in new_model(architecture, 0).named_parameters()}, architecture.layout, plan)
    model = build(architecture, {key: one.clone() for key, one in cut.items()}, plan).eval()

    def inputs(examples: int, length: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(length)
        if head == "image_classification":
            return {"pixel_values": torch.randn(examples, 1, 8, 8, generator=rng)}
        mask = (torch.arange(length) < torch.randint(2, length + 1, (examples, 1), generator=rng)).long()
        mask[0] = 1
        words = torch.where(mask.bool(), torch.randint(4, 50, (examples, length), generator=rng), 1)
        given = {"input_ids": words, "attention_mask": mask}
        return given | ({"decoder_input_ids": words[:, :3]} if head == "sequence_to_sequence" else {})

    export_onnx(model, inputs(2, 6), head, tmp_path / "model.onnx")
    session = onnx_answer(tmp_path / "model.onnx", head)
    for given in (inputs(3, 9), inputs(1, 4)):
        assert largest_difference(torch_answer(model), session, given, head) < 1e-4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert largest_difference(torch_answer(model), session, inputs(3, 9), head) > 1e-4  # the control


def test_budgets_of_every_kind_bind(trained: TrainedModel) -> None:
    architecture = trained.prepared.setup.architecture
    full = costs_of(architecture, Plan())
    for kind in ("params", "layer_params", "bytes", "macs", "inference_bytes"):
        costs = costs_of(architecture, plan_for(trained, {kind: 0.7}))
        assert 0.45 * getattr(full, kind) < getattr(costs, kind) <= 0.7 * getattr(full, kind), kind
    both = costs_of(architecture, plan_for(trained, {"params": 0.7, "macs": 0.5}))
    assert both.macs <= 0.5 * full.macs


def test_a_latency_is_searched_with_real_timings(trained: TrainedModel) -> None:
    assert plan_for(trained, {"latency_ms": 1e4}) == Plan()
    with pytest.raises(UserError, match=r"latency_ms .* \(PyTorch\)"):
        plan_for(trained, {"latency_ms": 1e-6})
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"latency_ms .* \(onnxruntime, 8 bit integers\)"):
        plan_for(trained, {"latency_ms": 1e-6}, formats=ExportFormats(int8=True))


@pytest.mark.parametrize("distill", [False, True])
def test_tuning_keeps_to_what_training_keeps_to(trained: TrainedModel, distill: bool, monkeypatch) -> None:
    """What is frozen stays to the bit, clipping and precision are the clients'; control: without them it is another model."""
    setup = trained.prepared.setup
    name = next(one for one in setup.architecture.shapes if "layer.0" in one or "layers.0" in one or ".0." in one)
    frozen = replace(setup.architecture, layout=freeze(setup.architecture.layout, [name]))

    def after(**changes):
        local = setup.experiment.local.model_copy(update=changes.get("local", {}))
        experiment = setup.experiment.model_copy(update={"local": local})
        changed = replace(setup, architecture=changes.get("architecture", setup.architecture), experiment=experiment)
        flat = flatten(parameters_of(setup, trained.state), setup.architecture.shapes)
        parameters, kept = split(flat, changed.architecture)
        state = replace(trained.state, parameters=parameters, frozen=kept)
        one = replace(trained, prepared=replace(trained.prepared, setup=changed), state=state)
        return tuned(one, Plan(), trained.cut(Plan()), 5, distill)

    before, plain, held = trained.cut(Plan()), after(), after(architecture=frozen)
    assert torch.equal(held[name], before[name])
    assert not torch.equal(plain[name], before[name])
    clipped, precise = after(local={"clip": 1e-6, "optimizer": "sgd"}), after(local={"precision": "bfloat16"})
    assert (
        max(float((clipped[one] - before[one]).abs().max()) for one in before)
        <= 5 * 1e-6 * setup.experiment.local.learning_rate * 1.01
    )
    assert any(not torch.equal(precise[one], plain[one]) for one in plain)


def test_tuning_is_off_unless_asked_for_and_reported_apart(trained: TrainedModel, tmp_path: Path) -> None:
    plan = plan_for(trained, {"params": 0.6})
    told = []
    for number, (steps, distill) in enumerate(((0, False), (20, False), (20, True))):
        folder = tmp_path / str(number)
        folder.mkdir()
        told.append(write_model(trained, plan, folder, ExportFormats(tune=steps, distill=distill)))
    assert "before_tuning" not in told[0]
    assert told[1]["before_tuning"] == told[0]["forms"]["torch"]["metric"]
    assert [one.get("tuned_on") for one in told] == [None, "labels", "the full model's answers"]
    assert len({(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(3)}) == 3


def test_distilling_brings_answers_nearer_to_the_full_models(trained: TrainedModel) -> None:
    architecture, task = trained.prepared.setup.architecture, trained.prepared.task
    plan = plan_for(trained, {"params": 0.6})
    batch = task.public.batch(np.arange(len(task.public)))
    inputs = {name: values for name, values in batch.items() if name != "labels"}

    def chances(plan: Plan, tensors: Any) -> torch.Tensor:
        module = build(architecture, {name: values.clone() for name, values in tensors.items()}, plan).eval()
        return torch_answer(module)(inputs).logits.softmax(-1)

    full, cut, rng = chances(Plan(), trained.cut(Plan())), trained.cut(plan), torch.Generator().manual_seed(0)
    worse = {name: values + 0.1 * torch.randn(values.shape, generator=rng) for name, values in cut.items()}
    before, after = ((chances(plan, one) - full).abs().mean() for one in (worse, tuned(trained, plan, worse, 60, distill=True)))
    assert 0 < after < 0.7 * before


def test_the_full_model_is_a_plain_checkpoint_that_is_deployed_again(run: Path, tmp_path: Path) -> None:
    told = deploy(run, tmp_path / "full", {"params": 1.0})
    assert told["plain"] is (json.loads((tmp_path / "full" / "config.json").read_text())["model_type"] == "vit")
    assert told["plain"]
    text = (tmp_path / "full" / "README.md").read_text()
    assert text.splitlines()[7] == "It is a plain checkpoint: transformers loads it without raffm_ray."
    assert "library_name: transformers" in text
    assert "import raffm_ray" not in text
    again = deploy(
        tmp_path / "full",
        tmp_path / "again",
        {"params": 0.6},
        flags=["--task.name", "digits", "--extraction.steps", "{ffn: 4, qk: 2, vo: 2}"],
    )
    assert again["params_fraction"] <= 0.6
    for folder, told in ((tmp_path / "full", "name it by --task.name"), (tmp_path / "again", "a subnetwork already")):
        with pytest.raises(UserError, match=told):
            find_trained_model(str(folder), [])


def test_times_are_taken_in_turns() -> None:
    calls: list[str] = []
    found = latencies({name: lambda _, name=name: calls.append(name) for name in "ab"}, {}, 0.0)
    assert calls[:4] == ["a", "b", "a", "b"]
    assert all(0 <= median <= late for median, late in found.values())


def test_times_are_milliseconds() -> None:
    """Of an answer that sleeps, which takes no less than it sleeps."""
    (median, late), (short, _) = latencies({"slow": lambda _: sleep(0.02), "quick": lambda _: None}, {}, 0.0).values()
    assert 20 <= median <= late
    assert short < 20  # control: an answer that does not sleep


def test_the_metric_is_that_of_all_examples_whatever_the_batch(trained: TrainedModel) -> None:
    task, architecture = trained.prepared.task, trained.prepared.setup.architecture
    answer = torch_answer(build(architecture, trained.cut(Plan()), Plan()).eval())
    assert metric_of(answer, task, 7) == metric_of(answer, task, 1000)
    assert set(answers_of.__annotations__) == {"folder", "head", "return"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--budget", "parms=0.5"], "did you mean 'params'"),
        (["--budget", "params"], "KIND=VALUE"),
        (["--budget", "params=-1"], "positive number"),
        (["--budget", "params=0.001"], "below the smallest subnetwork"),
        (["--device", "raspbery_pi_4"], "did you mean 'raspberry_pi_4'"),
        (["--sizes", "0.5,0.5"], "each once"),
        (["--sizes", "1.5"], "up to 1"),
        (["--sizes", "0.5", "--budget", "params=0.5"], "by itself"),
        (["--tune", "many", "--sizes", "0.5"], "--tune: expected a whole number"),
        (["--tune", "5", "--distill", "5", "--sizes", "0.5"], "not both"),
        (["--examples", "999999", "--sizes", "0.5"], "of which there are"),
        (["--budgets", "params=0.5"], "unknown flag (did you mean '--budget'?)"),
        (["--examples", "0", "--sizes", "0.5"], "--examples: expected a whole number"),
        (["--rounds", "3", "--sizes", "0.5"], "deployed as it is"),
        ([], "how small"),
        (["--budget", "params=0.5", "--budget", "params=0.6"], "--budget params: given twice, as 0.5 and 0.6"),
        (["--budget", "foo=0.5"], "latency_ms"),
        (["--elastic", "--tune", "5"], "without further training"),
        (["--elastic", "--torch-export"], "--elastic alone is one file"),
    ],
)
def test_a_mistake_is_one_line(
    run: Path, words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(run), *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1], error
    assert not (tmp_path / "out").exists()


def test_sizes_and_the_supernet_are_written_by_one_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    simulate(tiny_experiment(), plain)
    out = tmp_path / "out"
    assert main(["deploy", str(plain), "--sizes", "1,0.6", "--elastic", "--examples", "3", "--out", str(out)]) == 0
    told = json.loads((out / "sizes.json").read_text())
    assert [one["timed_examples"] for one in told.values()] == [3, 3]
    assert "times of 3 examples at once" in " ".join(capsys.readouterr().out.split())
    assert "Times are of 3 examples at once" in (out / "size-0.6" / "README.md").read_text()
    card = (out / "README.md").read_text()
    assert card.startswith("# All sizes of a ")
    for line in (line.split(" | ") for line in card.splitlines() if "%)" in line):
        params = int(line[0].strip("| ").split()[0].replace(",", ""))
        module, read = open_supernet(out).read({"params": params})
        assert line[1] == f"{read:,}"
        assert sum(values.numel() for values in module.parameters()) == params
    module, _ = open_supernet(out).read({"layer_params": 0.6})
    stored = load_file(out / "size-0.6" / "model.safetensors")
    assert all(torch.equal(values, stored[name]) for name, values in module.named_parameters())
    assert main(["deploy", str(plain), "--budget", "params=0.6", "--elastic", "--out", str(tmp_path / "both")]) == 0
    card = (tmp_path / "both" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name")
    assert card.count("\n# ") == 2
    assert main(["deploy", str(plain), "--elastic", "--out", str(tmp_path / "all")]) == 0
    assert sorted(file.name for file in (tmp_path / "all").iterdir() if "elastic" in file.name) == [
        "elastic.json",
        "elastic.safetensors",
    ]
    assert (tmp_path / "all" / "README.md").read_text() == (out / "README.md").read_text()
    assert main(["deploy", str(run), "--elastic", "--out", str(tmp_path / "own")]) == 2
    assert "--elastic: sizes have parameters of their own" in capsys.readouterr().err
    assert not (tmp_path / "own").exists()


def test_damaged_and_foreign_folders_are_one_line(run: Path, tmp_path: Path) -> None:
    from shutil import copytree

    with pytest.raises(UserError, match="no such folder"):
        find_trained_model(str(tmp_path / "nothing"), [])
    with pytest.raises(UserError, match=f"no such folder .did you mean '{run}'"):
        find_trained_model(str(run.with_name("rn")), [])
    (tmp_path / "empty").mkdir()
    for file, told in (("", "it holds no config.json"), ("sizes.json", "holds sizes already"), ("elastic.json", "open_supernet")):
        if file:
            (tmp_path / "empty" / file).touch()
        with pytest.raises(UserError, match=f"empty: neither a finished run nor a checkpoint.*{told}"):
            find_trained_model(str(tmp_path / "empty"), [])
    with pytest.raises(UserError, match=f"it is a part of the run {run}"):
        find_trained_model(str(run / "checkpoints" / "final"), [])
    broken = copytree(run, tmp_path / "broken") / "checkpoints" / "final" / "model.safetensors"
    save_file({name: values * torch.nan for name, values in load_file(broken).items()}, broken)
    with pytest.raises(UserError, match="its parameters are not finite"):
        of_run(tmp_path / "broken")
    for number, name in enumerate(("model.safetensors", "salience.safetensors", "own.safetensors")):
        folder = tmp_path / str(number)
        copytree(run, folder)
        path = folder / "checkpoints" / "final" / name
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            of_run(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        of_run(folder)


def test_files_of_a_run_may_lie_in_another_place_if_they_are_the_same(run: Path, tmp_path: Path) -> None:
    text = PROFILES.read_text()
    (tmp_path / "same.yaml").write_text(text)
    start = text.index("memory_bytes:", text.index("laptop:"))
    (tmp_path / "other.yaml").write_text(f"{text[:start]}memory_bytes: 1.25e+9 #{text[start:]}")
    assert find_trained_model(str(run), ["--fleet.profiles", str(tmp_path / "same.yaml")]).origin
    with pytest.raises(UserError, match="fleet.profiles is not what it was when the run began"):
        find_trained_model(str(run), ["--fleet.profiles", str(tmp_path / "other.yaml")])
    with pytest.raises(UserError, match="--seed: a run is deployed as it is; only task.data, "):
        find_trained_model(str(run), ["--seed", "3"])


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in FLAGS)
    with pytest.raises(UserError, match="known: ") as refused:
        budget_from({"zzz": 1}, costs_of(architecture_case(*EXPORTED[0]), Plan()), ["latency_ms"])
    assert all(kind.strip(" )") in told for kind in str(refused.value).split(":")[-1].split(","))


def test_a_name_that_no_file_system_takes_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path / ("a" * 252), Path("/proc/nothing")):
        assert main(["deploy", str(run), "--budget", "params=0.6", "--out", str(place)]) == 2
        assert f"--out {place}: " in capsys.readouterr().err


def test_words_of_the_command_are_read() -> None:
    assert parse_budget("latency_ms=20") == ("latency_ms", 20.0)
    assert parse_sizes("1,0.5") == [1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "head"),
    [("vit", "image_classification"), ("bert", "sequence_classification"), ("llama", "causal_language_modelling")],
)
def test_memory_while_answering_is_near_what_is_measured(name: str, head: str) -> None:

    config = parse_config(
        {**TINY[name], "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 2}
        | ({"head_dim": 24} if name == "llama" else {})
        | ({"max_position_embeddings": 128} if name != "vit" else {"image_size": 32})
    )
    architecture = architecture_of(config, head, 64)
    model = new_model(architecture, 0).eval()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    example = {"pixel_values": torch.zeros(1, 1, 32, 32)} if name == "vit" else {"input_ids": torch.full((1, 64), 5)}
    with torch.inference_mode(), LiveBytes() as live:
        model(**example)
    costs = costs_of(architecture, Plan())
    estimated = costs.inference_bytes - costs.bytes
    assert 0.6 < estimated / live.most < 1.6, (estimated, live.most)


@pytest.mark.parametrize(("name", "head"), [("gpt2", "sequence_classification")])
def test_texts_of_one_token_are_answered_by_what_was_exported_with_longer_ones(name: str, head: str, tmp_path: Path) -> None:
    """Control: of a decoder that classifies, traced with one token, the length is a constant, or nothing can be exported at all."""
    pytest.importorskip("onnxruntime")
    model = new_model(one_layer(name, head), 0).eval()

    def inputs(examples: int, length: int) -> dict[str, torch.Tensor]:
        words = torch.randint(4, 50, (examples, length), generator=torch.Generator().manual_seed(length))
        return {"input_ids": words, "attention_mask": torch.ones_like(words)}

    export_onnx(model, inputs(2, 6), head, tmp_path / "model.onnx")
    session = onnx_answer(tmp_path / "model.onnx", head)
    for given in (inputs(2, 1), inputs(1, 1), inputs(3, 9)):
        assert largest_difference(torch_answer(model), session, given, head) < 1e-4

    def traced_short() -> None:
        export_onnx(model, inputs(2, 1), head, tmp_path / "short.onnx")
        assert largest_difference(torch_answer(model), onnx_answer(tmp_path / "short.onnx", head), inputs(3, 9), head) < 1e-4

    with pytest.raises(Exception):  # noqa: B017, PT011  # what torch or onnxruntime raises
        traced_short()


def test_an_export_is_made_with_texts_of_middling_length_and_tried_with_the_shortest_and_longest(trained: TrainedModel) -> None:
    from raffm_ray.deployment.inference import extreme_inputs, typical_inputs

    task = trained.prepared.task
    assert len(next(iter(typical_inputs(task, 2).values()))) == 2
    shortest, longest = extreme_inputs(task)
    assert len(next(iter(shortest.values()))) == len(next(iter(longest.values()))) == 2
