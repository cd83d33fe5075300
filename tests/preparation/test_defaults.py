"""Learning rates and epochs where the user sets none: by whether the model is pretrained, and whether its head is new."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, small_tokenizer, tiny_experiment
from transformers import AutoModel, AutoModelForImageClassification, ViTConfig

from raffm_ray.axes.flat_parameters import flatten, views
from raffm_ray.basics.errors import UserError
from raffm_ray.models.pretrained_weights import new_parameters
from raffm_ray.preparation import defaults
from raffm_ray.preparation.baselines import with_strategy
from raffm_ray.preparation.defaults import learning_rate
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.preparation.pretraining import pretrain, starting_model
from raffm_ray.preparation.starting_parameters import pretraining_of, starting_parameters, worse_warning
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import override, parse
from raffm_ray.settings.task_and_model import PretrainSettings
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS
from raffm_ray.subnetworks.costs import output_floats

HEAD = {"classifier.weight", "classifier.bias"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A ViT without a head, and one with a head for the digits."""
    config = ViTConfig(**{**TINY["vit"], "num_labels": 10})
    folders = {name: tmp_path_factory.mktemp(name) for name in ("headless", "whole")}
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folders["headless"])
    AutoModelForImageClassification.from_config(config).save_pretrained(folders["whole"])
    return folders


def from_checkpoint(folder: Path, **local: object) -> Experiment:
    experiment = tiny_experiment(local=local)
    values = experiment.model_dump(mode="json", exclude_unset=True)
    return parse({**values, "model": {"pretrained": str(folder)}})


def chosen(experiment: Experiment) -> tuple[float | None, int | None, int | None, int | str | None]:
    prepared = prepare(experiment).setup.experiment
    pretraining = prepared.model.pretrain
    return prepared.local.learning_rate, prepared.local.warmup_rounds, pretraining.epochs, pretraining.head_epochs


def test_a_new_model_is_pretrained_and_a_pretrained_one_only_gets_a_head(checkpoints) -> None:
    assert chosen(tiny_experiment(model={"pretrain": {}})) == (1e-3, 0, 100, 0)
    width = TINY["vit"]["hidden_size"]
    rate = min(1e-3, 5e-5 * 768 / width)
    assert chosen(from_checkpoint(checkpoints["headless"])) == (rate, 2, 0, "auto")
    assert chosen(from_checkpoint(checkpoints["whole"])) == (rate, 2, 0, 0)


def test_a_pretrained_model_s_clients_have_balanced_batches(checkpoints) -> None:
    def skew(experiment: Experiment) -> str | None:
        return prepare(experiment).setup.experiment.local.label_skew

    assert skew(tiny_experiment()) == "ignore"
    assert skew(from_checkpoint(checkpoints["whole"])) == skew(from_checkpoint(checkpoints["headless"])) == "balanced_batches"
    assert skew(from_checkpoint(checkpoints["whole"], label_skew="ignore")) == "ignore"
    assert skew(tiny_experiment(local={"label_skew": "logit_adjustment"})) == "logit_adjustment"
    whole = from_checkpoint(checkpoints["whole"]).model_dump()
    own = parse(
        override(whole, ["--strategy.personal", "[classifier]"])
    )  # a client's own model is for its own shares of the classes
    assert skew(own) == skew(from_checkpoint(checkpoints["whole"], client_update="ditto", proximal=0.1)) == "ignore"
    with_own = parse(override(whole, ["--baselines", "[{name: raffm, label: own, personal: [classifier]}]"]))
    prepared = prepare(with_own)
    beside = with_strategy(prepared, prepared.setup.experiment.baselines[0]).setup.experiment
    assert beside.local.label_skew == "balanced_batches"  # local training is the protocol's
    assert prepare(beside).setup.experiment.local.label_skew == "balanced_batches"  # its folder is read again


def test_a_pretrained_model_is_found_by_a_variable_of_the_environment(checkpoints, monkeypatch) -> None:
    monkeypatch.setenv("MODELS", str(checkpoints["whole"].parent))
    place = f"$MODELS/{checkpoints['whole'].name}"
    experiment = from_checkpoint(Path(place))
    assert prepare(experiment).setup.experiment.model.pretrained == place  # another machine has its own
    monkeypatch.delenv("MODELS")
    with pytest.raises(UserError, match=r"model.pretrained: .* needs the environment variable MODELS, which is not set"):
        prepare(experiment)


def test_data_without_classes_is_dealt_at_random(tmp_path) -> None:
    assert prepare(tiny_experiment()).setup.experiment.clients.partition == "dirichlet_by_class"
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "".join(f"word {number} and another\n" for number in range(60)))
    tokenizer = small_tokenizer(["word", "and", "another", *map(str, range(60))])
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = {"config": {**TINY["gpt2"], "vocab_size": 80}, "tokenizer": str(tmp_path / "tokenizer")}
    task = {
        "name": "language_modelling",
        "data": str(texts),
        "columns": {"text": "text"},
        "public": 5,
        "held_out": 0.2,
        "pack": True,
    }
    values = tiny_experiment(clients={"count": 4, "per_round": 2}).model_dump(mode="json", exclude_unset=True)
    values |= {"model": model, "task": {**task, "max_length": 8}, "extraction": {}, "fleet": {}}
    assert prepare(parse(values)).setup.experiment.clients.partition == "iid"
    endless = {**values, "model": {**model, "config": {**model["config"], "eos_token_id": None}}}
    with pytest.raises(UserError, match="end-of-text token"):  # control: the tokenizer has none, and took the model's
        prepare(parse(endless))
    with pytest.raises(UserError, match="dirichlet_by_class goes by classes"):  # control: where it is asked for
        prepare(parse({**values, "clients": {**values["clients"], "partition": "dirichlet_by_class"}}))


def test_outputs_of_the_examples_that_are_evaluated_at_once_are_bounded(tmp_path, monkeypatch) -> None:
    small_tokenizer([f"w{number}" for number in range(40)]).save_pretrained(tmp_path / "words")
    (tmp_path / "texts.csv").write_text("text\n" + "w1 w2 w3 w4 w5 w6 w7 w8\n" * 100)
    task = {"name": "language_modelling", "data": str(tmp_path / "texts.csv"), "columns": {"text": "text"}, "max_length": 8}
    values = {"model": {"config": TINY["llama"], "tokenizer": str(tmp_path / "words")}, "task": {**task, "public": 5}}
    fleet = {"budgets": {"laptop": {"params": 1.0}}, "mix": "medium"}
    values |= {"clients": {"count": 2, "per_round": 1}, "salience": {"metric": "l1"}, "fleet": fleet}
    prepared = prepare(parse(values))
    assert prepared.setup.experiment.evaluation.batch_size == 256  # control: outputs of few words are small
    each = 4 * output_floats(prepared.setup.architecture)
    assert each >= 4 * 8 * TINY["llama"]["vocab_size"]  # a number for every word at every position
    monkeypatch.setattr(defaults, "ANSWERED_BYTES", 3 * each + 1)
    chosen = prepare(parse(values)).setup.experiment
    assert chosen.evaluation.batch_size == 3
    assert chosen.local.label_skew == "ignore"
    with pytest.raises(
        UserError,
        match="local.label_skew: must be ignore for task 'language_modelling', which has no classes, got balanced_batches",
    ):
        prepare(parse(values | {"local": {"label_skew": "balanced_batches"}}))
    assert prepare(parse(values | {"evaluation": {"batch_size": 64}})).setup.experiment.evaluation.batch_size == 64
    monkeypatch.setattr(defaults, "ANSWERED_BYTES", 1)
    assert prepare(parse(values)).setup.experiment.evaluation.batch_size == 1
    assert prepare(chosen).setup.experiment.evaluation.batch_size == 3  # what a run recorded stays


def test_what_the_user_sets_is_kept_and_choosing_again_changes_nothing(checkpoints) -> None:
    experiment = from_checkpoint(checkpoints["headless"], learning_rate=0.0123, warmup_rounds=0)
    first = prepare(experiment).setup.experiment
    assert (first.local.learning_rate, first.local.warmup_rounds) == (0.0123, 0)
    assert prepare(first).setup.experiment == first
    assert first != experiment  # control: something had been left open


def test_rates_go_with_optimizer_width_and_what_is_trained(checkpoints) -> None:
    assert learning_rate("adamw", 768, pretrained=True, head_alone=False) == 5e-5
    assert learning_rate("adamw", 384, pretrained=True, head_alone=False) == pytest.approx(1e-4)
    assert learning_rate("adamw", 8, pretrained=True, head_alone=False) == 1e-3
    assert learning_rate("adamw", 768, pretrained=False, head_alone=False) == 1e-3
    for optimizer, row in OPTIMIZERS.items():
        assert learning_rate(optimizer, 768, pretrained=True, head_alone=True) == row.rates.head > row.rates.pretrained
    experiment = parse(override(from_checkpoint(checkpoints["headless"]).model_dump(), ["--model.freeze", "[vit*]"]))
    assert chosen(experiment)[0] == OPTIMIZERS["adamw"].rates.head


def test_which_parameters_are_new(checkpoints) -> None:
    def found(folder: Path, **model: object) -> set[str]:
        values = from_checkpoint(folder).model_dump(mode="json", exclude_unset=True)
        prepared = prepare(parse({**values, "model": {**values["model"], **model}}))
        return set(new_parameters(prepared.foundation.source, prepared.setup.architecture))

    assert found(checkpoints["headless"]) == HEAD
    assert found(checkpoints["whole"]) == set()
    assert found(checkpoints["whole"], new_head=True) == HEAD


def changed_by_pretraining(prepared: Prepared) -> set[str]:
    architecture, work = prepared.setup.architecture, pretraining_of(prepared)
    before = flatten(dict(starting_model(architecture, work.source, work.seed).named_parameters()), architecture.shapes)
    after = pretrain(work, lambda *_: None).flat
    pairs = zip(views(before, architecture.shapes).items(), views(after, architecture.shapes).values(), strict=True)
    return {name for (name, old), new in pairs if not torch.equal(old, new)}


def test_only_the_new_head_is_trained_first(checkpoints) -> None:
    prepared = prepare(from_checkpoint(checkpoints["headless"]))
    assert changed_by_pretraining(prepared) == HEAD
    work = pretraining_of(prepared)
    made = pretrain(work, lambda *_: None)
    assert made.after < made.before
    whole = replace(work, settings=work.settings.model_copy(update={"epochs": 1, "head_epochs": 0}))
    control = replace(
        prepared,
        setup=replace(
            prepared.setup,
            experiment=prepared.setup.experiment.model_copy(
                update={"model": prepared.setup.experiment.model.model_copy(update={"pretrain": whole.settings})}
            ),
        ),
    )
    assert changed_by_pretraining(control) > HEAD


def test_what_is_done_before_round_1_is_said_and_a_worse_model_is_warned_of(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    lines: list[str] = []
    steps: list[tuple[int, int, float]] = []
    for _ in range(2):
        starting_parameters(prepare(tiny_experiment()), lambda *step: steps.append(step), lines.append)
    assert [one[:2] for one in steps] == [(step, 21) for step in range(22)]  # the first before anything is done
    assert lines[0].startswith("pretraining: 3 epochs of the full model on 200 public examples, 21 steps: loss on 449 held-out")
    assert "21 steps (from the cache): loss" in lines[1]
    assert not any(line.startswith("warning") for line in lines)
    lines.clear()
    starting_parameters(
        prepare(tiny_experiment(model={"pretrain": {"epochs": 3, "learning_rate": 1.0}})), lambda *_: None, lines.append
    )
    assert lines[1].startswith("warning: pretraining made the model worse: a lower model.pretrain.learning_rate, or")


def test_the_warning_of_a_worse_model_names_the_settings_of_what_was_trained() -> None:
    head = worse_warning(PretrainSettings(epochs=0, head_epochs=10))
    assert "a lower model.pretrain.head_learning_rate, or model.pretrain.head_epochs 0, may serve better" in head
    assert "pretrain.epochs" not in head
    assert "pretrain.learning_rate" not in head
    assert head.endswith("the rounds may still improve it")
    both = worse_warning(PretrainSettings(epochs=1, head_epochs=10))
    for name in ("epochs", "learning_rate", "head_epochs", "head_learning_rate"):
        assert f"model.pretrain.{name}" in both


def test_nothing_to_train_is_neither_said_nor_cached(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_CACHE", str(tmp_path))
    lines: list[str] = []
    starting_parameters(prepare(tiny_experiment(model={"pretrain": {"epochs": 0}})), lambda *_: None, lines.append)
    assert lines == []
    assert list(tmp_path.iterdir()) == []


def test_runs_of_every_seed_may_begin_with_one_model() -> None:
    def start(*flags: str) -> torch.Tensor:
        experiment = parse(override(tiny_experiment().model_dump(), ["--model.pretrain.epochs", "1", *flags]))
        return starting_parameters(prepare(experiment), lambda *_: None, lambda _: None)

    assert torch.equal(start("--model.seed", "3"), start("--model.seed", "3", "--seed", "1"))
    assert torch.equal(start("--seed", "3"), start("--model.seed", "3"))
    assert not torch.equal(start(), start("--seed", "1"))  # control


def test_blocks_of_texts_are_counted_as_blocks() -> None:
    work = pretraining_of(prepare(tiny_experiment(model={"pretrain": {"epochs": 1}})))
    assert "1 epoch of the full model on 200 public examples, 7 steps" in work.described()
    assert "on 200 blocks of 40 public texts, 7 steps" in replace(work, texts=40).described()
