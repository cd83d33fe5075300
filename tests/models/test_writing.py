"""Answers in words: greedy writing is that of transformers, whole and cut, and ROUGE-L is its formula."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, architecture_case, small_tokenizer
from plans import random_cut
from round_states import state_of
from text_data import WORDS, load_texts, sentences, text_experiment, write

from raffm_ray.axes.flat_parameters import views
from raffm_ray.axes.indexing import Plan
from raffm_ray.axes.layout import take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.data.encoding import Words
from raffm_ray.data.metrics import Writing, rouge_l
from raffm_ray.deployment.inference import metric_of, torch_answer
from raffm_ray.models.architecture import build, new_model
from raffm_ray.models.writing import write_greedily
from raffm_ray.pool.worker_pool import InProcessPool
from raffm_ray.preparation.prepare import prepare
from raffm_ray.runs.evaluation import measure

FIRST, MOST = TINY["t5"]["decoder_start_token_id"], 9


@pytest.mark.parametrize(
    ("given", "true", "value"),
    [
        # Lin 2004, section 3.1: "police killed the gunman" against these; three words in common, or two.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("a b c d e", "a c e", 2 * (3 / 5) * 1 / (3 / 5 + 1)),
        ("The film, was GOOD!", "the film was good", 1.0),
        ("c b a", "a b c", 1 / 3),
        ("a a a", "a", 2 * (1 / 3) / (1 / 3 + 1)),
        ("Größe 7", "größe 8", 1 / 2),
        ("snake_case", "snake case", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_l_is_the_f_of_the_longest_common_subsequence(given, true, value) -> None:
    assert rouge_l(given, true) == rouge_l(true, given) == pytest.approx(value)


def test_the_subsequence_is_the_longest_of_all() -> None:
    """Against every subsequence that there is; control: shared words in any order are more."""
    rng, more = np.random.default_rng(0), 0
    for _ in range(40):
        one, other = (list(rng.choice(list("abcd"), size=rng.integers(1, 8))) for _ in range(2))
        subsequences = [
            {tuple(word for at, word in enumerate(words) if bits >> at & 1) for bits in range(2 ** len(words))}
            for words in (one, other)
        ]
        longest = max(map(len, subsequences[0] & subsequences[1]))
        assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(2 * longest / (len(one) + len(other)))
        more += sum(min(one.count(word), other.count(word)) for word in "abcd") > longest
    assert more > 5


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
@pytest.mark.parametrize("cut", [False, True])
def test_greedy_writing_is_that_of_transformers(name, cut) -> None:
    architecture = architecture_case(name, "sequence_to_sequence")
    model = new_model(architecture, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    plan = random_cut(architecture.layout, np.random.default_rng(1), ("ffn", "heads", "residual")) if cut else Plan()
    whole = {name: values.detach() for name, values in model.named_parameters()}
    module = build(architecture, take_all(whole, architecture.layout, plan), plan).eval()
    words = torch.randint(4, 50, (8, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(words)
    mask[3, 4:] = mask[5, 1:] = 0
    inputs = {"input_ids": words, "attention_mask": mask}
    asked = {"do_sample": False, "num_beams": 1, "max_new_tokens": MOST, "pad_token_id": FIRST}
    with torch.inference_mode():
        free = module.generate(**inputs, **asked, eos_token_id=None)[:, 1:]
        end = int(free[0, 3])  # a token that ends some answers before the others
        stock = module.generate(**inputs, **asked, eos_token_id=end)[:, 1:]
        found = write_greedily(module, {**inputs, "decoder_input_ids": words}, Writing(FIRST, end, MOST))
        endless = write_greedily(module, inputs, Writing(FIRST, None, MOST))
    assert torch.equal(endless, free)
    for mine, theirs in zip(found.tolist(), stock.tolist(), strict=True):
        wanted = theirs[: theirs.index(end)] if end in theirs else theirs
        assert mine == [*wanted, *[-1] * (MOST - len(wanted))]
    assert not torch.equal(found, endless), "control: some answers end"


def folder_of(folder: Path) -> str:
    for split, seed in (("train", 0), ("validation", 1)):
        write(folder, split, {"source": sentences(40, seed), "target": sentences(40, seed + 4)})
    return str(folder)


def test_tokens_are_compared_with_the_whole_targets_of_their_rows(tmp_path) -> None:
    """Held-out examples stand from short to long. Control: answers of other rows."""
    words = Words(small_tokenizer(WORDS), 0, 8)
    data = folder_of(tmp_path / "data")
    task = load_texts(words, name="sequence_to_sequence", data=data, held_out="validation", metric="rouge_l")
    assert task.writing == Writing(1, 3, 8)
    targets = {tuple(words.tokenizer(text, truncation=True, max_length=8)["input_ids"]): text for text in sentences(40, 5)}
    labels = task.held_out.labels
    rows = [labels.values[start:stop] for start, stop in zip(labels.edges, labels.edges[1:], strict=False)]
    answers = np.full((len(rows), 40), -1.0)
    for at, row in enumerate(rows):
        answers[at, : len(row)] = row
    whole = [targets[tuple(row.tolist())] for row in rows]
    wanted = np.mean(
        [rouge_l(words.tokenizer.decode(row, skip_special_tokens=True), text) for row, text in zip(rows, whole, strict=True)]
    )
    assert task.score(answers) == pytest.approx(wanted)
    assert 0.8 < wanted < 1.0, "targets of more than eight tokens count whole"
    assert task.score(np.roll(answers, 1, axis=0)) < 0.6
    assert load_texts(words, name="sequence_to_sequence", data=data, held_out="validation").writing is None
    with pytest.raises(UserError, match="task.metric: 'rouge_l' is not for language_modelling"):
        load_texts(words, name="language_modelling", data=data, metric="rouge_l")


def test_what_is_measured_is_what_subnetworks_write(tmp_path) -> None:
    small_tokenizer(WORDS).save_pretrained(tmp_path / "tokenizer")
    task = {"name": "sequence_to_sequence", "data": folder_of(tmp_path / "data"), "metric": "rouge_l", "validation": 8}
    experiment = text_experiment({**task, "held_out": "validation"}, "t5", str(tmp_path / "tokenizer"))
    prepared = prepare(experiment)
    setup, state, small = prepared.setup, state_of(prepared), Plan({"encoder/0/ffn": np.arange(8)})
    named = views(state.parameters, setup.architecture.shapes)
    pool = InProcessPool(prepared.runner())
    for plan in (Plan(), small):
        cut = {name: values.clone() for name, values in take_all(named, setup.architecture.layout, plan).items()}
        module = build(setup.architecture, cut, plan).eval()
        ((metric, loss),) = measure(setup, state, [plan], pool, prepared.task)

        def like_onnx(inputs, model=module):
            return SimpleNamespace(logits=model(**inputs).logits)  # nothing of its encoder

        assert metric == pytest.approx(metric_of(torch_answer(module), prepared.task, 7))
        assert metric == pytest.approx(metric_of(like_onnx, prepared.task, 40))
        assert np.isfinite(loss)
        ((validated, _),) = measure(setup, state, [plan], pool, prepared.task, validating=True)
        assert 0 <= validated <= 1
