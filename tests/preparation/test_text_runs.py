"""Whole runs on texts: every kind of task, every kind of model, from files to a saved checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from conftest import TINY, small_tokenizer
from safetensors.torch import load_file, save_file
from text_data import WORDS, glue_folder, sentences, squad_folder, text_experiment, write
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.data.metrics import METRICS
from raffm_ray.models.architecture import HEADS, build
from raffm_ray.models.foundation import load_foundation
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.pretrained_weights import Source, pretrained_weights
from raffm_ray.preparation.prepare import prepare
from raffm_ray.preparation.starting_parameters import starting_parameters
from raffm_ray.runs.reader import read_evaluations
from raffm_ray.runs.recorder import parameters_sha256
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.task_and_model import ModelSettings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(WORDS).save_pretrained(folder)
    return str(folder)


def texts_folder(folder: Path) -> Path:
    for split, seed in (("train", 0), ("validation", 1)):
        write(folder, split, {"text": sentences(40, seed), "source": sentences(40, seed + 2), "target": sentences(40, seed + 4)})
    return folder


RUNS = [
    ("rte", "bert"),
    ("stsb", "distilbert"),
    ("squad", "roberta"),
    ("sst2", "gpt2"),
    ("cola", "qwen3"),
    ("language_modelling", "llama"),
    ("language_modelling", "gpt2"),
    ("sequence_to_sequence", "t5"),
    ("sequence_to_sequence", "t5_gated"),
]


@pytest.mark.parametrize(("name", "model"), RUNS, ids=["-".join(one) for one in RUNS])
def test_every_kind_of_task_runs_from_files_to_a_checkpoint(name, model, tokenizer, tmp_path) -> None:
    data = tmp_path / "data"
    if name == "squad":
        squad_folder(data)
    elif name in ("language_modelling", "sequence_to_sequence"):
        texts_folder(data)
    else:
        glue_folder(data, name)
    public = {"public": 1, "max_length": 26} if name == "squad" else {}
    written = {"metric": "rouge_l"} if model == "t5_gated" else {}
    task = {"name": name, "data": str(data), "held_out": "validation", **public, **written}
    clients = {"count": 3, "per_round": 2} if name == "squad" else {"count": 6, "per_round": 4}
    clients |= {"partition": "iid", "held_out": 0.3}
    chosen = text_experiment(task, model, tokenizer, clients=clients, evaluation={"clients": "all"})
    if name == "squad":
        chosen.model.config["max_position_embeddings"] = 40
    summary = simulate(chosen, tmp_path / "run")
    assert summary["metric"] in METRICS
    values = [
        summary["start"],
        summary["full_model"],
        *(device_type["metric"] for device_type in summary["device_types"].values()),
    ]
    assert np.isfinite(values).all()
    sizes = {device_type["params"] for device_type in summary["device_types"].values()}
    assert len(sizes) == 3
    measured = read_evaluations(tmp_path / "run", 2)
    assert len({row["client"] for row in measured}) > 1
    assert all(np.isfinite(row["loss"]) for row in measured)
    known = [row["metric"] for row in measured if row["metric"] is not None]
    assert np.isfinite(known).all()
    assert known or summary["metric"] == "matthews"  # of so few examples, the true classes may all be the same
    final = tmp_path / "run" / "checkpoints" / "final"
    loaded = HEADS[prepare(chosen).task.head].from_pretrained(final).eval()
    assert sum(p.numel() for p in loaded.parameters()) == summary["params"]
    assert AutoTokenizer.from_pretrained(final).get_vocab() == AutoTokenizer.from_pretrained(tokenizer).get_vocab()


def test_a_run_goes_on_from_a_checkpoint_of_transformers(tokenizer, tmp_path) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    simulate(text_experiment(task, "bert", tokenizer), tmp_path / "first")
    folder = tmp_path / "first" / "checkpoints" / "final"
    again = text_experiment(task, "bert", tokenizer)
    again = again.model_copy(
        update={"model": again.model.model_copy(update={"config": {}, "tokenizer": None, "pretrained": str(folder)})}
    )
    prepared = prepare(again)
    weights = pretrained_weights(Source(str(folder)), prepared.setup.architecture, 0)
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    for name, values in stock.named_parameters():
        assert torch.equal(weights[name], values)
    assert simulate(again, tmp_path / "second")["rounds"] == 2


def test_weights_that_lack_layers_or_have_other_sizes_are_refused(tokenizer, tmp_path) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    chosen = text_experiment(task, "bert", tokenizer)
    prepared = prepare(chosen)
    folder = tmp_path / "model"
    config = prepared.setup.architecture.config
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)

    def with_config(**fields: Any) -> Experiment:
        return chosen.model_copy(update={"model": chosen.model.model_copy(update={"config": fields, "pretrained": str(folder)})})

    small_tokenizer(WORDS).save_pretrained(folder)
    deeper = prepare(with_config(num_hidden_layers=5)).setup.architecture
    with pytest.raises(UserError, match="lacks 32 parameters that are not the task head.s, such as bert.encoder.layer.3"):
        pretrained_weights(Source(str(folder)), deeper, 0)
    wider = prepare(with_config(intermediate_size=48)).setup.architecture
    with pytest.raises(
        UserError,
        match=r"bert.encoder.layer.0.intermediate.dense.bias of .* has shape .40,., and the configuration asks for .48,.",
    ):
        pretrained_weights(Source(str(folder)), wider, 0)


def test_weights_that_are_missing_or_no_safetensors_are_refused(tokenizer, tmp_path) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    prepared = prepare(text_experiment(task, "bert", tokenizer))
    architecture, folder = prepared.setup.architecture, tmp_path / "model"
    model = AutoModelForSequenceClassification.from_config(architecture.config)
    model.save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    save_file(
        {name: values for name, values in whole.items() if "word_embeddings" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(
        UserError, match="lacks 1 parameters that are not the task head's, such as bert.embeddings.word_embeddings"
    ):
        pretrained_weights(Source(str(folder)), architecture, 0)
    save_file(
        {name: values for name, values in whole.items() if "classifier" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    assert set(pretrained_weights(Source(str(folder)), architecture, 0)) == set(architecture.shapes)
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be used .only safetensors are read"):
        pretrained_weights(Source(str(folder)), architecture, 0)


def test_a_pretrained_t5_keeps_its_first_token(tmp_path) -> None:
    config = parse_config(TINY["t5"])
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    small_tokenizer(WORDS).save_pretrained(tmp_path / "t5")
    found = load_foundation(ModelSettings(pretrained=str(tmp_path / "t5")), "sequence_to_sequence", True, 16)
    assert found.config.decoder_start_token_id == TINY["t5"]["decoder_start_token_id"]


def test_law_6_a_text_run_has_the_same_bits_on_ray(tokenizer, tmp_path, four_cores) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    first = simulate(text_experiment(task, "bert", tokenizer), tmp_path / "here")
    second = simulate(text_experiment(task, "bert", tokenizer, pool={"backend": "ray", "workers": 2}), tmp_path / "ray")
    assert first["params_sha256"] == second["params_sha256"]
    assert first["full_model"] == second["full_model"]


def test_workers_map_examples_without_copying(tokenizer, tmp_path, four_cores) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    runner = ray.get(ray.put(prepare(text_experiment(task, "bert", tokenizer)).runner()))
    words = runner.examples.inputs["input_ids"]
    assert not words.values.flags.writeable, "an array of its own would be writable"
    assert runner.examples.batch(np.arange(3))["input_ids"].shape[0] == 3


def test_rotation_at_the_start_keeps_the_function_and_changes_the_weights(tokenizer, tmp_path) -> None:
    task = {"name": "sst2", "data": str(glue_folder(tmp_path / "data", "sst2"))}
    flats, answers, notes = {}, {}, []
    for rotation in ("none", "weights", "calibrated"):
        prepared = prepare(text_experiment(task, "bert", tokenizer, salience={"rotation": rotation}))
        flats[rotation] = starting_parameters(prepared, lambda *_: None, notes.append)
        architecture = prepared.setup.architecture
        model = build(architecture, views(flats[rotation].clone(), architecture.shapes), Plan()).eval()
        batch = prepared.task.held_out.batch(slice(0, 8))
        batch.pop("labels")
        with torch.no_grad():
            answers[rotation] = model(**batch).logits
    assert all(line.startswith("pretraining:") for line in notes)
    assert len({parameters_sha256(flat, architecture) for flat in flats.values()}) == 3
    for rotation in ("weights", "calibrated"):
        torch.testing.assert_close(answers[rotation], answers["none"], atol=1e-5, rtol=0)
