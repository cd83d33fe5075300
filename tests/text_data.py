"""Small data sets of texts with the columns that the hub's have, and experiments on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import TINY

from raffm_ray.data.encoding import Pictures, Words
from raffm_ray.data.tasks import TASKS, load_task
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import parse
from raffm_ray.settings.task_and_model import TaskSettings

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "the",
    "film",
    "was",
    "good",
    "bad",
    "fine",
    "and",
    "very",
    "long",
    "who",
    "wrote",
    "it",
]
SIZES = {"vocab_size", "num_labels", "pad_token_id"}


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(count)]


def write(folder: Path, split: str, columns: dict) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def glue_folder(folder: Path, name: str, count: int = 40) -> Path:
    """Parquet files with the columns that GLUE's files have on the hub."""
    recipe = TASKS[name]
    for split, seed in (("train", 0), (recipe.held_out, 1)):
        columns = {column: sentences(count, seed + at) for at, column in enumerate(recipe.columns.values())}
        rng = np.random.default_rng(seed)
        columns["label"] = (
            (5 * rng.random(count)).astype(np.float32)
            if name == "stsb"
            else rng.integers(0, 3 if name.startswith("mnli") else 2, count)
        )
        write(folder, str(split), {**columns, "idx": np.arange(count)})
    return folder


CONTEXT = "the film was very long and it was good"


def squad_folder(folder: Path) -> Path:
    """The columns of SQuAD's files: answers are lists of texts and where they begin."""
    long = " ".join(["a b c d e f g h"] * 6) + " " + CONTEXT
    for split in ("train", "validation"):
        contexts = [CONTEXT, long, CONTEXT, long]
        texts = ["very long", "good", "the film", "very long"]
        answers = [{"text": [text], "answer_start": [context.index(text)]} for text, context in zip(texts, contexts, strict=True)]
        write(folder, split, {"id": list("wxyz"), "question": ["who wrote it"] * 4, "context": contexts, "answers": answers})
    return folder


def load_texts(words: Words, rng=None, **settings):
    return load_task(
        TaskSettings(**{"public": 5, **settings}),
        rng or np.random.default_rng(0),
        words,
        Pictures(size=8, channels=3, mean=(0.5,) * 3, deviation=(0.5,) * 3),
        1,
    )


def text_experiment(task: dict[str, Any], model: str, tokenizer: str, **changes: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "texts",
        "rounds": 2,
        "task": {"public": 12, "max_length": 16, **task},
        "model": {
            "config": {key: value for key, value in TINY[model].items() if key not in SIZES and not key.endswith("dropout")},
            "tokenizer": tokenizer,
            "pretrain": {"epochs": 2},
        },
        "clients": {"count": 6, "per_round": 4, "partition": "iid"},
        "fleet": {
            "budgets": {
                "raspberry_pi_5": {"layer_params": 0.5},
                "laptop": {"layer_params": 0.7},
                "jetson_agx_orin": {"params": 1.0},
            }
        },
        "salience": {"rotation": "calibrated", "clients": 2, "every": 1},
        "extraction": {"steps": {"heads": 1, "qk": 2, "vo": 2, "ffn": 4}},
        "pool": {"backend": "in_process"},
    }
    return parse({**values, **changes})
