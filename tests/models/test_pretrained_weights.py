"""Pretrained checkpoints as people have them: quantized, with parameters that would be dropped, with classes in another order."""

import json
from typing import Any

import pytest
import torch
from conftest import CASES, TINY, TOKENS, architecture_case
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.models.architecture import HEADS, Architecture, architecture_of, build
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.pretrained_weights import Source, check_plain, pretrained_weights


def described(**changes: Any) -> Architecture:
    return architecture_of(parse_config({**TINY["bert"], "num_labels": 2, **changes}), "sequence_classification", TOKENS, None)


@pytest.fixture
def folder(tmp_path):
    config = described(id2label={0: "positive", 1: "negative"}, label2id={"positive": 0, "negative": 1}).config
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def rewritten(folder, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(("name", "head"), CASES, ids="-".join)
def test_a_plain_checkpoint_is_read_whole(name, head, tmp_path) -> None:
    architecture = architecture_case(name, head)
    HEADS[head].from_config(architecture.config).save_pretrained(tmp_path)
    check_plain(str(tmp_path))
    found = pretrained_weights(Source(str(tmp_path)), architecture, 0)
    stock = dict(HEADS[head].from_pretrained(tmp_path).named_parameters())
    assert all(torch.equal(found[one], stock[one]) for one in stock)
    again = pretrained_weights(Source(str(tmp_path), new_head=True), architecture, 7)
    changed = {one for one in stock if not torch.equal(again[one], stock[one])}
    base = HEADS[head].from_pretrained(tmp_path).base_model_prefix
    assert not any(one.startswith(f"{base}.") or one.startswith(("shared", "encoder", "decoder")) for one in changed)
    if head.endswith("classification"):
        assert changed


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_name(kind, folder) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    rewritten(folder, lambda tensors: {**tensors, name: (tensors[name] * 100).to(kind), f"{name}_scale_inv": torch.ones(1)})
    with pytest.raises(UserError, match=rf"{name} of .* is stored as [IUF]\w+: only plain float weights"):
        check_plain(str(folder))


def test_a_quantization_in_the_configuration_is_refused(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match=r"is quantized \(quantization_config: fp8\): only plain float weights can be trained"):
        check_plain(str(folder))


def test_a_parameter_that_would_be_dropped_is_named(folder) -> None:
    """BERT with relative positions is another model without them; other heads and poolers may go."""
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    rewritten(folder, lambda tensors: {**tensors, name: torch.ones(39, 8)})
    with pytest.raises(UserError, match=rf"this kind of model has no place for {name} of "):
        pretrained_weights(Source(str(folder)), described(), 0)


def test_control_other_heads_and_layers_that_are_not_asked_for_may_go(folder) -> None:
    rewritten(folder, lambda tensors: {**tensors, "cls.predictions.bias": torch.ones(50), "qa_outputs.weight": torch.ones(2, 24)})
    shallow = described(num_hidden_layers=2)
    assert set(pretrained_weights(Source(str(folder)), shallow, 0)) == set(shallow.shapes)


def answers(weights: dict[str, Tensor], architecture: Architecture) -> Tensor:
    words = torch.arange(4, 12)[None]
    with torch.no_grad():
        return build(architecture, weights, Plan()).eval()(input_ids=words, attention_mask=torch.ones_like(words)).logits[0]


def test_a_head_answers_the_data_s_classes_in_their_order(folder) -> None:
    """The checkpoint says positive, negative; names of the data are sorted. Control: numbers taken as they stand are the other way round."""
    sorted_names = described(id2label={0: "Negative", 1: "positive"}, label2id={"Negative": 0, "positive": 1})
    unnamed = described()
    aligned, plain = (answers(pretrained_weights(Source(str(folder)), one, 0), one) for one in (sorted_names, unnamed))
    torch.testing.assert_close(aligned, plain.flip(0))
    assert not torch.equal(aligned, plain)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = torch.arange(4, 12)[None]
    said = stock.config.id2label[int(stock(input_ids=words).logits.argmax())]
    assert sorted_names.config.id2label[int(aligned.argmax())].lower() == said


def test_a_head_of_other_classes_is_one_line_or_a_new_head(folder) -> None:
    other = described(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(
        UserError,
        match=r"answers positive, negative, and the data's classes are bad, good: name them alike, or set model.new_head: true",
    ):
        pretrained_weights(Source(str(folder)), other, 0)
    three = described(num_labels=3)
    with pytest.raises(
        UserError, match=r"classifier.bias of .* has shape \(2,\), .* asks for \(3,\); model.new_head: true draws a new head"
    ):
        pretrained_weights(Source(str(folder)), three, 0)
    for one in (other, three):
        found = pretrained_weights(Source(str(folder), new_head=True), one, 0)
        again = pretrained_weights(Source(str(folder), new_head=True), one, 1)
        assert found["classifier.weight"].shape == (one.config.num_labels, 24)
        assert not torch.equal(found["classifier.weight"], again["classifier.weight"])
        assert torch.equal(found["bert.embeddings.word_embeddings.weight"], again["bert.embeddings.word_embeddings.weight"])
