"""Texts joined and cut into blocks: every token once, an end after each text, never two owners in a block."""

import numpy as np
import pytest
import torch
from conftest import small_tokenizer
from text_data import WORDS, load_texts, sentences, text_experiment, write

from raffm_ray.basics.errors import UserError
from raffm_ray.data.encoding import Words
from raffm_ray.data.examples import Ragged
from raffm_ray.data.tasks import Task
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.preparation.prepare import prepare

END, LENGTH = 3, 8
TEXTS = [*sentences(60), " ".join(WORDS * 3), "", "  "]
OWNERS = ["xyz"[at % 3] for at in range(len(TEXTS))]


def frameless(end: str | None = "[SEP]") -> Words:
    """A tokenizer that puts nothing around a text, as GPT-2's."""
    tokenizer = small_tokenizer(WORDS)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.eos_token = end
    return Words(tokenizer, 0, LENGTH)


def loaded(folder, words: Words, texts=TEXTS, **settings) -> Task:
    data = write(folder, "train", {"text": texts, "shop": OWNERS[: len(texts)]})
    write(folder, "validation", {"text": texts, "shop": OWNERS[: len(texts)]})
    return load_texts(words, name="language_modelling", data=str(data), held_out="validation", **{"public": 5, **settings})


def sequences(column: Ragged) -> list[list[int]]:
    return [column.values[start:stop].tolist() for start, stop in zip(column.edges, column.edges[1:], strict=False)]


def joined(words: Words, texts) -> list[int]:
    """Written out: each text's tokens, then the end."""
    return [token for text in texts if text.strip() for token in [*words.tokenizer(text)["input_ids"], END]]


def test_no_token_is_lost_or_doubled_and_blocks_are_full(tmp_path) -> None:
    words = frameless()
    held = loaded(tmp_path, words).held_out
    blocks, wanted = sequences(held.inputs["input_ids"]), joined(words, TEXTS)
    short = [block for block in blocks if len(block) != LENGTH]
    assert len(short) == (len(wanted) % LENGTH > 1)
    full = [block for block in blocks if len(block) == LENGTH]  # held-out blocks stand from short to long
    assert [token for block in (*full, *short) for token in block] == wanted[: len(wanted) - (len(wanted) % LENGTH == 1)]
    assert sum(block.count(END) for block in blocks) == len(TEXTS) - 2 - (len(wanted) % LENGTH == 1)
    cut = sequences(loaded(tmp_path, words, pack=False).held_out.inputs["input_ids"])
    assert sum(map(len, cut)) < len(wanted) - len(TEXTS), "control: without packing, long texts lose their ends"
    assert {len(text) for text in cut} != {LENGTH}


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_is_left_is_a_shorter_block_and_one_token_is_left_out(left, tmp_path) -> None:
    texts = ["a b c", "d e f", *[" ".join("a" * (LENGTH - 1))] * 8, *(["g"] if left == 2 else [])]
    texts[1] += " g" * (left == 1)
    task = loaded(tmp_path, frameless(), texts)
    lengths = sorted(task.held_out.lengths().tolist())
    assert lengths == [*([2] if left == 2 else []), *[LENGTH] * 9]


def test_a_text_that_ends_with_the_end_gets_no_second_one(tmp_path) -> None:
    words = Words(small_tokenizer(WORDS), 0, LENGTH)  # [CLS] text [SEP], and [SEP] is the end
    task = loaded(tmp_path, words, ["a b", "c", "d e f g h"] * 20)
    tokens = task.clients.inputs["input_ids"].values
    assert not ((tokens[1:] == END) & (tokens[:-1] == END)).any()
    assert (tokens[1:][tokens[:-1] == END] == 2).all(), "after an end a text begins"


def test_labels_are_the_next_tokens_also_over_ends_of_texts(tmp_path) -> None:
    task = loaded(tmp_path, frameless())
    batch = task.clients.batch(np.arange(len(task.clients)))
    real = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"][real], batch["input_ids"][real])
    assert (batch["labels"][~real] == -100).all()

    class Output:
        """The next token for certain: at each position, the one that stands behind it."""

        logits = 50.0 * torch.nn.functional.one_hot(batch["input_ids"].roll(-1, 1), 40).float()

    class Same:
        logits = 50.0 * torch.nn.functional.one_hot(batch["input_ids"], 40).float()

    objective = OBJECTIVES["causal_language_modelling"]
    assert float(objective.loss(Output, batch["labels"], "mean")) < 1e-6
    assert float(objective.loss(Same, batch["labels"], "mean")) > 1, "control: not shifted"
    assert objective.targets(batch["labels"]) == int(real.sum()) - len(task.clients)


def test_a_block_is_of_one_owner_and_natural_clients_own_theirs(tmp_path) -> None:
    """Control: without owners, blocks mix them."""
    words = frameless()
    # Every owner has words of its own.
    own = {"x": "a b c", "y": "d e f", "z": "g h the"}
    texts = [" ".join(np.random.default_rng(at).choice(own[owner].split(), 1 + at % 7)) for at, owner in enumerate(OWNERS)]
    numbers = {owner: set(words.tokenizer(text)["input_ids"]) for owner, text in own.items()}

    def owners_of(block: list[int]) -> list[str]:
        return [owner for owner in own if numbers[owner] & set(block)]

    task = loaded(tmp_path, words, texts, columns={"group": "shop"})
    for part in (task.clients, task.public, task.held_out):
        found = [owners_of(block) for block in sequences(part.inputs["input_ids"])]
        assert all(len(one) == 1 for one in found)
        assert [one for (one,) in found] == ["xyz"[group] for group in part.groups]
    mixed = [owners_of(block) for block in sequences(loaded(tmp_path, words, texts).clients.inputs["input_ids"])]
    assert max(map(len, mixed)) > 1

    words.tokenizer.save_pretrained(tmp_path / "tokenizer")
    asked = {"name": "language_modelling", "data": str(tmp_path), "columns": {"group": "shop"}, "held_out": "validation"}
    clients = {"count": 6, "per_round": 4, "partition": "natural"}
    prepared = prepare(text_experiment({**asked, "max_length": LENGTH}, "llama", str(tmp_path / "tokenizer"), clients=clients))
    examples = prepared.task.clients
    blocks = sequences(examples.inputs["input_ids"])
    assert sorted(np.concatenate(prepared.shares).tolist()) == list(range(len(blocks)))
    for share in prepared.shares:
        assert len({owner for index in share for owner in owners_of(blocks[index])}) == 1


def test_a_tokenizer_without_an_end_is_refused(tmp_path) -> None:
    words = frameless(None)
    with pytest.raises(
        UserError, match=r"task.pack: texts are joined by the tokenizer's end-of-text token .* set task.pack to false"
    ):
        loaded(tmp_path, words)
    assert len(loaded(tmp_path, words, pack=False).clients)


def test_only_language_modelling_is_packed(tmp_path) -> None:
    data = write(tmp_path / "data", "train", {"text": TEXTS[:40], "label": [0, 1] * 20})
    task = load_texts(frameless(), name="text_classification", data=str(data), held_out=0.5)
    assert len(task.public) + len(task.clients) + len(task.held_out) == 40
