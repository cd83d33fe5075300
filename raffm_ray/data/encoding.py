"""Rows -> columns of numbers, made once, kept as files that are memory-mapped: tokenized texts, answer spans, images as bytes."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raffm_ray.basics.cache import writable_cache
from raffm_ray.basics.errors import UserError, in_short, shortened
from raffm_ray.data.examples import Column, Pixels, Ragged, ragged
from raffm_ray.data.sources import Rows

VERSION = 2
"""Changes when the same rows would be encoded otherwise."""
CHUNK = 1000
SHORTEST_SPAN = 24
"""Tokens of a question, its context and what frames them, at least."""
Columns = dict[str, Column]


def cached(key: object, encode: Callable[[], Columns]) -> Columns:
    """`encode()`, from the cache where it was done before; the arrays are memory-mapped. A damaged entry is made anew."""
    name = sha256(json.dumps([VERSION, key], sort_keys=True, default=str).encode()).hexdigest()[:24]
    folder = writable_cache() / f"examples-{name}"
    if folder.exists():
        try:
            return _load(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    temporary = Path(mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        _save(temporary, encode())
        if not folder.exists():
            temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # somebody else may have been faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _load(folder)


def _save(folder: Path, columns: Columns) -> None:
    kinds: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, Ragged):
            kinds[name] = {"fill": column.fill}
            np.save(folder / f"{name}.edges.npy", column.edges)
        elif isinstance(column, Pixels):
            kinds[name] = {"mean": column.mean, "deviation": column.deviation}
        else:
            kinds[name] = {}
        np.save(folder / f"{name}.npy", column if isinstance(column, np.ndarray) else column.values)
    (folder / "columns.json").write_text(json.dumps(kinds), encoding="utf-8")


def _map(path: Path) -> NDArray[Any]:
    # An empty array cannot be mapped. A plain view of the mapping travels to workers without being copied in this process.
    array = np.load(path, allow_pickle=False) if path.stat().st_size <= 128 else np.load(path, mmap_mode="r", allow_pickle=False)
    return np.asarray(array)


def _load(folder: Path) -> Columns:
    columns: Columns = {}
    for name, kind in json.loads((folder / "columns.json").read_text(encoding="utf-8")).items():
        values = _map(folder / f"{name}.npy")
        if "fill" in kind:
            columns[name] = Ragged(values, np.array(_map(folder / f"{name}.edges.npy")), kind["fill"])
        elif "mean" in kind:
            columns[name] = Pixels(values, tuple(kind["mean"]), tuple(kind["deviation"]))
        else:
            columns[name] = values
    return columns


def chunks(rows: Rows, *names: str) -> Iterator[tuple[int, list[list[Any]]]]:
    """The values of these columns, some thousand rows at a time, and which row is the first of them; no other column is decoded."""
    table = rows.table.select_columns(list(dict.fromkeys(names)))
    for start in range(0, len(rows), CHUNK):
        part = table[start : start + CHUNK]
        yield start, [part[name] for name in names]


def values_of(rows: Rows, name: str) -> list[Any]:
    """All values of a column."""
    return [value for _, (part,) in chunks(rows, name) for value in part]


def texts_of(rows: Rows, start: int, values: Iterable[Any], role: str) -> list[str]:
    """Raises UserError unless all are texts. `start`: the row of the first one."""
    listed = list(values)
    for row, value in enumerate(listed, start):
        if value is None:
            raise rows.mistake(role, row, "there is no text: leave out what has none")
        if not isinstance(value, str):
            raise rows.mistake(role, row, f"expected texts, got {shortened(value)}")
    return listed


@dataclass(frozen=True)
class Words:
    """A tokenizer and how far it may go; `padding` fills a batch, `length` tokens are kept of a text."""

    tokenizer: Any
    padding: int
    length: int

    @property
    def key(self) -> list[Any]:
        """What its results depend on."""
        described: Any = sorted(self.tokenizer.get_vocab().items())
        if self.tokenizer.is_fast:
            described = json.loads(self.tokenizer.backend_tokenizer.to_str())
            described |= {"truncation": None, "padding": None}  # what the last call left there
        others = [self.tokenizer.truncation_side, self.tokenizer.padding_side, self.tokenizer.eos_token_id]
        return [sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(), self.padding, self.length, *others]

    def texts(self, rows: Rows, columns: Mapping[str, str], *roles: str) -> Columns:
        """`input_ids` of one text or a pair of texts a row, and `token_type_ids` where the model tells the two apart."""
        found: dict[str, list[list[int]]] = {"input_ids": [], "token_type_ids": []}
        for start, values in chunks(rows, *(columns[role] for role in roles)):
            texts = [texts_of(rows, start, one, role) for one, role in zip(values, roles, strict=True)]
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.length, verbose=False)
            for name in found:
                found[name] += encoded.get(name, [])
        result: Columns = {"input_ids": ragged(found["input_ids"], self.padding)}
        if any(map(any, found["token_type_ids"])):  # all zero is what the model assumes
            result["token_type_ids"] = ragged(found["token_type_ids"], 0)
        return result


def spans(rows: Rows, columns: Mapping[str, str], words: Words, stride: int) -> Columns:
    """Questions with the parts of their contexts that fit, one after the other, `stride` tokens shared (SQuAD).

    A question longer than half of what fits is cut. `labels` [features, 4]: first and last token of the answer, 0 where this part does
    not hold it, and of the context; `row` [features]; `first` and
    `last`: where each token of the context begins and ends in it, -1 for other tokens.
    """
    found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "token_type_ids", "first", "last", "row", "labels")}
    if not words.tokenizer.is_fast:
        raise UserError(
            f"model.tokenizer: {type(words.tokenizer).__name__} cannot tell where tokens stand in a text, which question answering needs: use "
            "a fast tokenizer (a folder with tokenizer.json)"
        )
    if words.length < SHORTEST_SPAN:
        raise UserError(f"task.max_length: a question and its context need at least {SHORTEST_SPAN} tokens, got {words.length}")
    for at, (questions, contexts, answers) in chunks(rows, *(columns[role] for role in ("question", "context", "answers"))):
        encoded = words.tokenizer(
            _cut_questions(texts_of(rows, at, questions, "question"), words),
            texts_of(rows, at, contexts, "context"),
            truncation="only_second",
            max_length=words.length,
            stride=min(stride, words.length // 4 - 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for feature, source in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = [part == 1 for part in encoded.sequence_ids(feature)]
            offsets = [pair if kept else (-1, -1) for pair, kept in zip(encoded["offset_mapping"][feature], inside, strict=True)]
            first, last = ([pair[side] for pair in offsets] for side in (0, 1))
            found["input_ids"].append(encoded["input_ids"][feature])
            found["token_type_ids"].append(encoded.get("token_type_ids", [[0]] * (feature + 1))[feature])
            found["first"].append(first)
            found["last"].append(last)
            found["row"].append(at + source)
            context = [token for token, kept in enumerate(inside) if kept] or [0]
            try:
                span = _span(answers[source], first, last)
            except ValueError as error:
                raise rows.mistake("answers", at + source, str(error)) from None
            found["labels"].append((*span, context[0], context[-1]))
    result: Columns = {"input_ids": ragged(found["input_ids"], words.padding)}
    result |= {name: ragged(found[name], -1) for name in ("first", "last")}
    if any(map(any, found["token_type_ids"])):
        result["token_type_ids"] = ragged(found["token_type_ids"], 0)
    result["row"] = np.array(found["row"], dtype=np.int64)
    result["labels"] = np.array(found["labels"], dtype=np.int64).reshape(-1, 4)
    return result


def _cut_questions(questions: list[str], words: Words) -> list[str]:
    """Questions of at most half of the tokens that fit, so that something is left for their contexts."""
    most = words.length // 2 - 4
    encoded = words.tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [
        (question if len(offsets) <= most else question[: offsets[most - 1][1]]).strip()
        for question, offsets in zip(questions, encoded, strict=True)
    ]


def _span(answers: Any, first: list[int], last: list[int]) -> tuple[int, int]:
    """The tokens of the first answer; (0, 0) where it is not whole among them, or there is none.

    Raises ValueError for answers that are not in SQuAD's form.
    """
    texts, starts_at = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts_at, list) or len(texts) != len(starts_at):
        raise ValueError(f"expected lists `text` and `answer_start` of one length, got {shortened(answers)}")
    if not texts:
        return 0, 0
    begin, text = starts_at[0], texts[0]
    if not isinstance(begin, int) or not isinstance(text, str):
        raise ValueError(f"expected texts and whole numbers, got {shortened(answers)}")
    end = begin + len(text)
    starts = [token for token, place in enumerate(first) if 0 <= place <= begin < last[token]]
    ends = [token for token, place in enumerate(last) if place >= end > first[token] >= 0]
    return (starts[0], ends[0]) if starts and ends and starts[0] <= ends[0] else (0, 0)


@dataclass(frozen=True)
class Pictures:
    """To what an image is brought: `size` x `size` pixels, `channels` 1 (grey) or 3; normalised with mean and deviation by channel."""

    size: int
    channels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def images(self, rows: Rows, name: str) -> Columns:
        """`pixel_values`, bilinear where the size differs. Raises UserError for a column that holds no images."""
        from PIL import Image

        if self.channels not in (1, 3):
            raise UserError(f"model.config.num_channels: images have 1 (grey) or 3 (colours), got {self.channels}")
        values = np.empty((len(rows), self.channels, self.size, self.size), dtype=np.uint8)
        for at, image in enumerate(one_by_one(rows, name)):
            if image.mode.startswith(("I", "F")):
                raise UserError(f"task.columns.image: images of mode {image.mode} have more than 8 bits: convert them first")
            shaped = image.convert("L" if self.channels == 1 else "RGB")
            if shaped.size != (self.size, self.size):
                shaped = shaped.resize((self.size, self.size), Image.Resampling.BILINEAR)
            values[at] = np.atleast_3d(np.asarray(shaped)).transpose(2, 0, 1)
        return {"pixel_values": Pixels(values, self.mean, self.deviation)}


def one_by_one(rows: Rows, name: str) -> Iterator[Any]:
    """The images of a column, each decoded when it is asked for: whole photos would take a hundred times the memory of what is kept of
    them. Raises UserError, with its file or row, for one that cannot be decoded or is beyond PIL's limit against decompression bombs."""
    import datasets
    from PIL import Image

    feature = image_feature(rows.table.features[name])
    if feature is None:
        there = rows.table.features[name]
        raise UserError(f"task.columns.image: expected images in {name!r}, got {getattr(there, 'dtype', there)}")
    raw = rows.table.cast_column(name, datasets.Image(decode=False)).select_columns([name])
    for row in range(len(raw)):
        stored = raw[row][name]
        if stored is None:
            raise rows.mistake("image", row, f"no image in {name!r}")
        where = stored["path"] if stored["path"] and os.path.isfile(stored["path"]) else rows.place(row)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = feature.decode_example(stored)
        except Image.DecompressionBombError:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise UserError(f"task.data: {where}: an image of more than {most:,} pixels: scale it down first") from None
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"task.data: {where}: cannot be read as an image: {in_short(error)}") from None
        yield image


def image_feature(feature: Any) -> Any:
    """The column as images, None where it holds none: also bytes of image files, alone or with their `path`, as other writers than `datasets`
    store them."""
    import datasets

    if isinstance(feature, datasets.Image):
        return feature
    stored = feature.get("bytes") if isinstance(feature, dict) and set(feature) <= {"bytes", "path"} else feature
    return datasets.Image() if getattr(stored, "dtype", None) == "binary" else None
