"""`raffm-ray init`: looks at data, and writes an experiment on it that is ready to run."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.box import SIMPLE_HEAD

from raffm_ray.basics.errors import UserError, look_up, near_miss
from raffm_ray.basics.formatting import standard_output
from raffm_ray.basics.tables import WordTable
from raffm_ray.data.inspection import Column, columns_of, roles_of, task_of
from raffm_ray.data.sources import open_splits, split_of
from raffm_ray.data.task_types import TASK_TYPES, TaskType
from raffm_ray.models.foundation import PACKAGED
from raffm_ray.preparation.prepare import prepare
from raffm_ray.settings.loading import load

HELD_OUT = ("validation", "test", "dev", "valid", "eval")
"""Splits that evaluate, the first one that is there and has all columns: the tests of competitions have no labels."""
KNOWN = {
    "question_answering": ("distilbert-base-uncased", "bert-base-uncased"),
    "language_modelling": ("distilgpt2", "gpt2", "Qwen/Qwen2.5-0.5B"),
    "sequence_to_sequence": ("google/flan-t5-small", "t5-small"),
    "image_classification": ("google/vit-base-patch16-224-in21k", "facebook/deit-tiny-patch16-224"),
}
TEXT_MODELS = ("distilbert-base-uncased", "bert-base-uncased", "roberta-base")
"""Pretrained models that one would name, the first where nothing is on this machine; `KNOWN`: for kinds of tasks that need others."""
MOST_TOKENS, MOST_OF_CONTEXT, TOKENS_OF_A_WORD = 128, 384, 1.3
"""The largest `max_length` that is chosen, and where an answer may stand anywhere in the text: memory and time grow with it, and what is written is to run on a small
machine; about how many tokens a word of English has."""
PACKED = "language_modelling"
"""The kind of task whose texts are joined."""
MOST_CLIENTS, FEW, MANY_GROUPS = 100, 20, 5
FEW_RANK = (
    "salience:",
    "  source: public   # who ranks the parameters: of few clients, maybe none has a device that holds the full model",
)


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen, and why."""

    what: str
    value: str
    why: str


def command(data: str, task: str | None, model: str | None, out: Path) -> int:
    """Writes the experiment into a new file, and prints what was seen and chosen. Raises UserError for data that no task fits."""
    if out.exists():
        raise UserError(f"--out {out}: exists; nothing is overwritten")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: its folder is not there")
    if task is not None:
        look_up(TASK_TYPES, task, "--task: kind of task")
    splits, key = open_splits(data, None)
    split = "train" if "train" in splits else next(iter(splits))
    rows = split_of(splits, key, split, "task.train")
    columns = columns_of(rows)
    roles = roles_of(columns)
    kind = task or task_of(roles, columns)
    if kind is not None and "label" not in TASK_TYPES[kind].columns:
        roles = roles_of(columns, labelled=False)
    if kind is None:
        there = ", ".join(f"{column.name} ({column.kind})" for column in columns)
        raise UserError(f"init: {data}: no kind of task fits its columns: {there}; --task names one of {', '.join(TASK_TYPES)}")
    roles = _roles(TASK_TYPES[kind], roles, columns, kind, data)
    by_name = {column.name: column for column in columns}
    choices = [
        Choice("task", kind, "as you say" if task else "by its columns"),
        *(Choice(role, name, by_name[name].says()) for role, name in roles.items()),
    ]
    wanted, others = set(roles.values()), [name for name in HELD_OUT if name in splits and name != split]
    held_out = next((name for name in others if wanted <= set(splits[name][0].column_names)), None)
    settings = {
        "data": _beside(data, out.parent),
        "roles": roles,
        "split": split,
        "held_out": held_out or 0.25,
        "rows": len(rows),
    }
    chosen, local = _model(kind, model, by_name.get(roles.get("image", "")), out.parent)
    text = _experiment(out.stem, kind, settings, by_name, chosen)
    out.write_text(text, encoding="utf-8")
    if local:
        try:
            prepare(load(out))
        except UserError:
            out.unlink()
            raise
    _show(data, len(rows), columns, [*choices, chosen.choice], out)
    return 0


def _roles(kind: TaskType, found: Mapping[str, str], columns: Sequence[Column], name: str, data: str) -> dict[str, str]:
    """The columns of a kind of task. Raises UserError where one is not there."""
    there = {column.name for column in columns}
    roles = {role: found.get(role, usual if usual in there else "") for role, usual in kind.columns.items()}
    if missing := [role for role, column in roles.items() if not column]:
        raise UserError(
            f"init: {data}: no column looks like the {missing[0]} of {name}{near_miss(missing[0], there, listed=True)}: give it that name"
        )
    return {**roles, **{role: found[role] for role in kind.optional if role in found}}


def _named(word: str) -> str:
    """A word as YAML, in quotes where that would read a number, a date or a truth value: 2024, no."""
    return word if word[:1].isalpha() and yaml.safe_load(word) == word else _quoted(word)


def _quoted(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=False)


def _beside(data: str, folder: Path) -> str:
    """How a file in a folder names local data or a local model."""
    given = os.path.expanduser(data)
    if data.startswith("$") or os.path.isabs(given) or not os.path.exists(given):
        return data
    path = os.path.relpath(os.path.realpath(given), os.path.realpath(folder))
    return path if "/" not in path or path.startswith(".") else f"./{path}"


@dataclass(frozen=True)
class Model:
    """The section `model`, as lines of YAML; `choice`: what is said of it."""

    lines: Sequence[str]
    choice: Choice


def _model(kind: str, named: str | None, image: Column | None, folder: Path) -> tuple[Model, bool]:
    """The model of a kind of task, and whether it is on this machine."""
    known = KNOWN.get(kind, TEXT_MODELS)
    others = f"others: {', '.join(known[1:])}, or the folder of a model"
    if named:
        local = named in PACKAGED or os.path.exists(os.path.expanduser(named))
        return Model([f"  pretrained: {_quoted(_beside(named, folder))}"], Choice("model", named, "as you say")), local
    if image is not None:
        size = min(64, max(8, 8 * round(image.size / 8)))
        config = {
            "model_type": "vit",
            "image_size": size,
            "patch_size": max(4, size // 8),
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        }
        lines = [
            "  # A small vision transformer that is drawn at random: it runs at once, and needs no download.",
            f"  # Real photos want a pretrained one instead of `config`: pretrained: {known[0]}",
            f"  # ({others})",
            f"  config: {{{', '.join(f'{key}: {value}' for key, value in config.items())}}}",
            "  pretrain: {epochs: 20}   # on the public images, before round 1",
        ]
        return Model(lines, Choice("model", "a small ViT, drawn at random", f"runs at once; better: --model {known[0]}")), True
    packaged, (module, *_) = next(iter(PACKAGED.items()))
    if kind in KNOWN or find_spec(module) is None:
        why = "fetched from the hub at the first run"
        lines = [f"  pretrained: {known[0]}   # {why}", f"  # {others}"]
        return Model(lines, Choice("model", known[0], f"{why}; --model names another")), False
    lines = [
        f"  pretrained: {packaged}   # small, and on this machine: it runs at once",
        f"  # For better results name a larger one: {', '.join(known)} (from the hub), or the folder of a model.",
    ]
    return Model(lines, Choice("model", packaged, f"is on this machine; better, from the hub: --model {known[0]}")), True


def _length(texts: Sequence[Sequence[int]], most: int) -> int:
    """Tokens to keep, by the words of each text in each column: those of the 90th percentile, up to a multiple of 32, at most `most`. Columns of one row add up."""
    tokens = sum(float(np.percentile(lengths, 90)) for lengths in texts if len(lengths)) * TOKENS_OF_A_WORD
    return min(most, 32 * ceil(tokens / 32))


def _has_new_head(kind: str) -> bool:
    """Whether a pretrained model gets a new head: language models bring theirs."""
    return kind not in (PACKED, "sequence_to_sequence")


def _experiment(name: str, kind: str, settings: Mapping[str, Any], columns: Mapping[str, Column], model: Model) -> str:
    """The experiment as YAML with comments."""
    roles, rows = settings["roles"], settings["rows"]
    held_out = settings["held_out"]
    training = rows - round(held_out * rows) if isinstance(held_out, float) else rows
    public = max(1, min(200, training // 5))
    groups = columns[roles["group"]].distinct if "group" in roles else 0
    dealt = max(2, (training - public) // 20)
    clients = min(MOST_CLIENTS, groups if groups >= MANY_GROUPS else max(groups, dealt))
    classes = "label" in roles and kind.endswith("classification")
    lines = [
        f"# Written by raffm-ray init. Next: raffm-ray shares {name}.yaml (who owns what), raffm-ray run {name}.yaml",
        "# raffm-ray settings: all settings and what they mean.",
        f"name: {_named(re.sub(r'[^a-zA-Z0-9_.-]', '-', name))}",
        f"rounds: 20   # a first look takes a few minutes: raffm-ray run {name}.yaml --rounds 5 --evaluation.sizes 0",
        "task:",
        f"  name: {kind}",
        f"  data: {_quoted(settings['data'])}   # relative to this file",
        f"  columns: {{{', '.join(f'{role}: {_quoted(column)}' for role, column in roles.items())}}}   # role: column",
    ]
    if classes:
        counts = columns[roles["label"]].counts
        told = ", ".join(f"{label} {count:,}" for label, count in list(counts.items())[:8]) + (", ..." if len(counts) > 8 else "")
        printable = "".join(letter if letter.isprintable() else " " for letter in told)
        lines.append(f"  # {len(counts)} classes, with their examples: {printable}")
    if settings["split"] != "train":
        lines.append(f"  train: {_quoted(settings['split'])}")
    told = "the split that evaluates" if isinstance(held_out, str) else "part of the rows that only evaluates"
    use = "to train a new head before round 1 and to rank parameters" if _has_new_head(kind) else "to rank parameters"
    lines += [
        f"  held_out: {_quoted(held_out)}   # {told}",
        f"  public: {public}   # rows that the server keeps, {use}",
    ]
    if texts := [columns[column].lengths for role, column in roles.items() if role not in ("label", "group")]:
        told = "of a block: texts are joined, and cut into blocks" if kind == PACKED else "that are kept of a text"
        most = MOST_OF_CONTEXT if kind == "question_answering" else MOST_TOKENS
        need = _length(texts, 1 << 20)
        told = f"tokens {told}; 90% of the texts have at most about {need:,}" + (
            "; more take more memory and time" if need > most else ""
        )
        lines += [f"  max_length: {_length(texts, most)}   # {told}"] if any(map(len, texts)) else []
    lines += ["model:", *model.lines]
    lines += ["clients:", f"  count: {clients}", f"  per_round: {max(1, min(10, clients // 2))}"]
    if groups:
        told = "the rows of whole groups" if clients <= groups else "a part of the rows of one group"
        lines.append(f"  partition: natural   # each client owns {told}: {roles['group']} has {groups:,} values")
    elif classes:
        lines += [
            "  partition: dirichlet_by_class   # no column says whose a row is: clients get unequal shares of the classes",
            "  alpha: 0.5   # smaller is more unequal",
        ]
    else:
        lines.append("  partition: iid   # no column says whose a row is: rows are dealt at random")
    lines += [
        "fleet:",
        "  mix: medium   # raffm-ray fleet show: what each device type can train",
        "  budgets:   # part of the parameters in layers that each device type may train",
        "    raspberry_pi_5: {layer_params: 0.35}",
        "    laptop: {layer_params: 0.5}",
        "    jetson_agx_orin: {layer_params: 1.0}",
        *(FEW_RANK if clients < FEW else ()),
        "evaluation:",
        "  every: 5",
    ]
    return "\n".join(lines) + "\n"


def _show(data: str, rows: int, columns: Sequence[Column], choices: Sequence[Choice], out: Path) -> None:
    seen, chosen = (
        WordTable(title=title, box=SIMPLE_HEAD, title_justify="left") for title in (f"{data}: {rows:,} rows", "chosen")
    )
    for heading in ("column", "kind", "values", "missing"):
        seen.add_column(heading)
    for column in columns:
        seen.add_row(column.name, column.kind, column.says(), f"{column.missing:,}" if column.missing else "-")
    for heading in ("what", "value", "why"):
        chosen.add_column(heading)
    for choice in choices:
        chosen.add_row(choice.what, choice.value, choice.why)
    console = standard_output()
    console.print(seen, chosen)
    console.print(f"written: {out}\nnext:    raffm-ray run {out}", highlight=False, soft_wrap=True)
