"""Data as users of other tools have it, by what they reported: layouts of folders, writers of Parquet, missing values, and what stands for classes.

Each test names the report that the kind is from, where there is one; `UserError` is one line that says where to look.
"""

import bz2
import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.metrics import f1_score
from text_data import load_texts, sentences, write

from raffm_ray.basics.errors import UserError
from raffm_ray.data.examples import UNOWNED
from raffm_ray.data.inspection import columns_of, roles_of, task_of
from raffm_ray.data.layouts import plain_type
from raffm_ray.data.metrics import METRICS
from raffm_ray.data.partition import partition
from raffm_ray.data.sources import open_splits, split_of
from raffm_ray.data.tasks import Task
from raffm_ray.settings.clients import ClientSettings

ROWS = 20
TEXTS, NAMES = sentences(ROWS), ["a", "b"] * (ROWS // 2)
CSV = "text,label\n" + "".join(f"{text},{name}\n" for text, name in zip(TEXTS, NAMES, strict=True))
LINES = "\n".join(json.dumps({"text": text, "label": name}) for text, name in zip(TEXTS, NAMES, strict=True))


def loaded(words, data: Path | str, **settings) -> Task:
    return load_texts(words, **{"name": "text_classification", "data": str(data), "held_out": 0.3, "public": 2, **settings})


def table(labels, texts=TEXTS, **more) -> pa.Table:
    return pa.table({"text": texts, "label": labels, **more})


def png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- layouts


@pytest.mark.parametrize("splits", [False, True])
def test_what_save_to_disk_wrote_is_read(splits, words, tmp_path) -> None:
    """huggingface/datasets 2424, axolotl 1430."""
    data = datasets.Dataset.from_dict({"text": TEXTS, "label": NAMES})
    (datasets.DatasetDict(train=data, test=data) if splits else data).save_to_disk(tmp_path / "saved")
    task = loaded(words, tmp_path / "saved", held_out="test" if splits else 0.3)
    assert task.class_names == ("a", "b")
    assert len(task.held_out) == (ROWS if splits else 6)


@pytest.mark.parametrize("place", ["data/{split}-00000-of-00001-0a1b.parquet", "{split}/part-0.parquet", "{split}.parquet"])
def test_files_that_describe_data_are_no_split(place, words, tmp_path) -> None:
    """A folder of the hub, one of Spark, and one with what competitions and other systems put beside files (fastai 488)."""
    for split in ("train", "test"):
        file = tmp_path / place.format(split=split)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(NAMES), file)
    for name in ("dataset_infos.json", "README.md", "labels.json", "sample_submission.csv", "._train.parquet", ".DS_Store"):
        put(tmp_path / name, "{}")
    assert len(loaded(words, tmp_path, held_out="test").held_out) == ROWS


def test_a_card_that_names_files_is_followed(words, tmp_path) -> None:
    put(tmp_path / "a.csv", CSV)
    card = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.csv"
    put(tmp_path / "README.md", f"---\n{card}\n---\n# data\n")
    assert loaded(words, tmp_path).class_names == ("a", "b")


@pytest.mark.parametrize("place", [".", "train"])
def test_images_with_their_labels_in_a_table(place, words, tmp_path) -> None:
    folder = tmp_path / place
    for row in range(ROWS):
        put(folder / f"{row}.png", png(row))
    put(folder / "metadata.csv", "file_name,label\n" + "".join(f"{row}.png,{name}\n" for row, name in enumerate(NAMES)))
    task = loaded(words, tmp_path, name="image_classification")
    assert task.class_names == ("a", "b")
    pixels = task.clients.inputs["pixel_values"].values[:, 0, 0, 0]
    assert list(pixels % 2) == list(task.clients.labels)


@pytest.mark.parametrize("test", ["test/{}.png", "test/unknown/{}.png"])
def test_only_splits_that_are_named_are_read_of_images(test, words, tmp_path) -> None:
    """huggingface/datasets 5153 (folders of another depth took all labels away); names in capitals as in anomalib 3058; a table beside them."""
    put(tmp_path / "labels.json", "{}")
    for row in range(ROWS):
        put(tmp_path / "train" / NAMES[row] / f"{row}.PNG", png(row))
        put(tmp_path / test.format(row), png(row))
    assert loaded(words, tmp_path, name="image_classification").class_names == ("a", "b")


def test_only_splits_that_are_named_are_read_of_tables(words, tmp_path) -> None:
    """Control: the other one, where it is named, has no labels, or cannot be read at all."""
    put(tmp_path / "train.csv", CSV)
    put(tmp_path / "test.csv", "text\na b\n")
    put(tmp_path / "broken.parquet", "no Parquet")
    assert loaded(words, tmp_path).class_names == ("a", "b")
    with pytest.raises(UserError, match=r"the data has no column 'label' \(known: text\)"):
        loaded(words, tmp_path, held_out="test")
    with pytest.raises(UserError, match="task.data: .* cannot be read as a data set"):
        loaded(words, tmp_path, held_out="broken")
    with pytest.raises(
        UserError, match="task.held_out: the data has no split 'tset' .did you mean 'test'. known: broken, test, train"
    ):
        loaded(words, tmp_path, held_out="tset")


def test_two_kinds_of_files_of_one_split_are_not_guessed_at(words, tmp_path) -> None:
    put(tmp_path / "train.csv", CSV)
    put(tmp_path / "train.jsonl", LINES)
    with pytest.raises(UserError, match=r"holds files of several kinds \(.csv, .jsonl\): name one of them"):
        loaded(words, tmp_path)


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("packed.csv.gz", gzip.compress(CSV.encode())),  # huggingface/datasets 2977
        ("packed.csv.bz2", bz2.compress(CSV.encode())),
        ("packed.jsonl.gz", gzip.compress(LINES.encode())),  # huggingface/datasets 5088
        ("CAPITALS.CSV", CSV),
        ("marked.csv", b"\xef\xbb\xbf" + CSV.encode()),  # inspect_ai 5353
        ("marked.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("wide.csv", CSV.encode("utf-16")),  # Vibe-Trading 862
        ("lines.ndjson", LINES),
        ("field.json", json.dumps({"version": 1, "data": [json.loads(line) for line in LINES.splitlines()]})),  # datasets 372
    ],
)
def test_files_as_other_programs_write_them(name, content, words, tmp_path) -> None:
    task = loaded(words, put(tmp_path / name, content))
    assert task.class_names == ("a", "b")
    assert len(task.clients) == 12


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("semi.csv", CSV.replace(",", ";"), r"'text;label': its columns seem to be separated by ';'"),  # datasets 2658
        ("latin.csv", "text,label\nca\xe9f,a\n".encode("latin-1"), "texts must be stored as UTF-8"),
        ("columns.json", pd.DataFrame({"text": TEXTS, "label": NAMES}).to_json(), "write it by rows"),
        ("heading.csv", "text,label\n", "cannot be read as a data set: it has no rows"),
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(name, content, told, words, tmp_path, capfd) -> None:
    with pytest.raises(UserError, match=told):
        loaded(words, put(tmp_path / name, content))
    assert capfd.readouterr().err == "", "the library says nothing besides"


VIEWS = [
    pa.string_view(),
    pa.large_string(),
    pa.dictionary(pa.uint32(), pa.large_string()),
    pa.dictionary(pa.int8(), pa.string()),
]
WHOLE = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64(), pa.bool_()]
WHOLE += [pa.decimal128(20, 0), pa.decimal256(40, 2), pa.float32(), pa.float64()]


def test_every_arrow_type_of_texts_and_whole_numbers_is_read(words, tmp_path) -> None:
    """As Polars, Spark, DuckDB and pandas with missing values write them: the same task to the bit, whatever the type. Control: other labels."""

    def digests(labels, texts) -> tuple[str, str]:
        pq.write_table(table(labels, texts), tmp_path / "data.parquet")
        task = loaded(words, tmp_path / "data.parquet")
        return task.clients.digest(), task.held_out.digest()

    def stored(values, kind):
        return pa.array(values).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(values).cast(kind)

    plain = digests(pa.array(NAMES), pa.array(TEXTS))
    for kind in VIEWS:
        assert digests(stored(NAMES, kind), stored(TEXTS, kind)) == plain, kind
    for kind in WHOLE:
        assert digests(pa.array([0, 1] * (ROWS // 2)).cast(kind), pa.array(TEXTS)) == plain, kind
    assert digests(pa.array([1, 0] * (ROWS // 2)), pa.array(TEXTS)) != plain
    nested = pa.struct([("text", pa.large_list(pa.string_view())), ("answer_start", pa.list_view(pa.int32()))])
    assert plain_type(nested) == pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])


def test_columns_that_nobody_asked_for_may_be_of_any_type(words, tmp_path) -> None:
    """huggingface/datasets 5612: a map beside the text; and images as bytes, as writers other than `datasets` store them."""
    more = {"headers": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int32())), "none": pa.nulls(ROWS)}
    pq.write_table(table(NAMES, **more), tmp_path / "maps.parquet")
    assert loaded(words, tmp_path / "maps.parquet").class_names == ("a", "b")
    whole = pa.struct([("bytes", pa.large_binary()), ("path", pa.string_view())])
    for images in (
        pa.array([png(row) for row in range(ROWS)]),
        pa.array([{"bytes": png(row), "path": None} for row in range(ROWS)], whole),
    ):
        pq.write_table(pa.table({"image": images, "label": [0, 1] * (ROWS // 2)}), tmp_path / "images.parquet")
        task = loaded(words, tmp_path / "images.parquet", name="image_classification")
        assert list(task.clients.inputs["pixel_values"].values[:, 0, 0, 0] % 2) == list(task.clients.labels)


def test_numbers_of_rows_that_pandas_left_are_no_labels(tmp_path) -> None:
    """huggingface/datasets 3563. Control: the same numbers under a name of their own are."""
    frame = pd.DataFrame({"comment": [f"some longer words here {row}" for row in range(30)]})

    def task(name, **index) -> str | None:
        frame.rename_axis(**index).to_csv(tmp_path / name)
        columns = columns_of(split_of(*open_splits(str(tmp_path / name), None), "train", "task.train"))
        return task_of(roles_of(columns), columns)

    assert task("left.csv") == "language_modelling"
    assert task("named.csv", index="height") == "text_regression"


# --- missing values


def missing(values: list, row: int = 39) -> list:
    return [None if at == row else value for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("label", "no value in 'label': leave out what has no label"),
        ("text", "there is no text: leave out what has none"),
        ("number", "expected a finite number in 'number'"),
        ("image", "no image in 'image'"),
    ],
)
def test_a_missing_value_is_told_with_its_file_and_the_file_s_row(column, told, words, tmp_path) -> None:
    """Whatever part of the task the row came into. The second of two files, so that rows of the split are others."""
    columns = {
        "text": sentences(60),
        "label": ["a", "b"] * 30,
        "number": [float(row) for row in range(60)],
        "image": [png(row) for row in range(60)],
    }
    write(tmp_path, "train-00000-of-00002", {name: values[:10] for name, values in columns.items()})
    write(tmp_path, "train-00001-of-00002", {**columns, column: missing(columns[column])})
    name = {"number": "text_regression", "image": "image_classification"}.get(column, "text_classification")
    role = {"number": "label"}.get(column, column)
    with pytest.raises(
        UserError,
        match=rf"task.columns.{role}: train-00001-of-00002.parquet, row 40 \(rows are counted from 1, without a heading\): {told}",
    ):
        loaded(words, tmp_path, name=name, columns={"label": "number"} if column == "number" else {})


def test_examples_of_nobody_are_refused_with_their_number_or_left_out(words, tmp_path) -> None:
    """Nulls, blanks and not-a-numbers (flower 5235). What is left is divided as if the others were not there."""
    names = [None if row % 5 == 0 else "  " if row % 5 == 1 else f"g{row % 5}" for row in range(ROWS)]
    numbers = [float("nan") if row % 5 < 2 else float(row % 5) for row in range(ROWS)]
    pq.write_table(table(NAMES, names=names, numbers=numbers), tmp_path / "data.parquet")
    first, second = (
        loaded(words, tmp_path / "data.parquet", columns={"group": column}).clients.groups for column in ("names", "numbers")
    )
    assert list(first) == list(second)
    nobodys = int((first == UNOWNED).sum())
    assert 0 < nobodys < len(first)
    settings = {"count": 3, "per_round": 1, "partition": "natural"}
    with pytest.raises(UserError, match=rf"natural: {nobodys} of the clients' {len(first)} examples have no value in the column"):
        partition(first, ClientSettings(**settings), np.random.default_rng(0))
    shares = partition(first, ClientSettings(**settings, missing_group="drop"), np.random.default_rng(0))
    assert sorted(np.concatenate(shares)) == list(np.flatnonzero(first != UNOWNED))
    assert all(len(set(first[share])) == 1 for share in shares)
    kept = partition(first[first != UNOWNED], ClientSettings(**settings), np.random.default_rng(0))
    assert [list(np.flatnonzero(first != UNOWNED)[share]) for share in kept] == [list(share) for share in shares]
    iid = partition(first, ClientSettings(**{**settings, "partition": "iid"}), np.random.default_rng(0))
    assert sum(map(len, iid)) == len(first), "who goes by nothing needs no owner"


# --- classes


@pytest.mark.parametrize(("low", "high"), [(1, 2), (-1, 1), (0, 4), (0, 1)])
def test_f1_is_of_the_later_of_two_classes_whatever_they_are_called(low, high, words, tmp_path) -> None:
    """1 and 2, -1 and 1, and 0 and 4, as in Sentiment140. Control: of the other class it is another number."""
    rng = np.random.default_rng(0)
    labels = rng.choice([low, high], ROWS, p=[0.3, 0.7])
    write(tmp_path, "train", {"text": TEXTS, "label": labels})
    write(tmp_path, "test", {"text": TEXTS, "label": labels})
    task = loaded(words, tmp_path, held_out="test", metric="f1")
    assert task.class_names == ((str(low), str(high)) if low else ())
    truth = task.held_out.labels
    given = rng.permutation(truth)
    positive = truth.max()
    assert task.score(given[:, None].astype(float)) == pytest.approx(f1_score(truth == positive, given == positive))
    assert task.score(given[:, None].astype(float)) != pytest.approx(f1_score(truth == truth.min(), given == truth.min()))
    assert ("task.metric: f1 is that of class 2" in task.notes) == (high == 2)
    assert ("task.metric: f1 is that of class 4" in task.notes) == (high == 4)


def test_f1_of_more_classes_is_chosen_by_name(words, tmp_path) -> None:
    write(tmp_path, "train", {"text": TEXTS[:18], "label": [1, 2, 10] * 6})
    with pytest.raises(
        UserError, match="f1 is of two classes, and the data has 3: use f1_macro, f1_micro, f1_weighted, accuracy or matthews"
    ):
        loaded(words, tmp_path, metric="f1")
    for name in ("f1_macro", "f1_micro", "f1_weighted"):
        task = loaded(words, tmp_path, metric=name)
        assert (task.labels, task.class_names) == (3, ("1", "2", "10"))
        truth, given = task.held_out.labels, np.roll(task.held_out.labels, 1)
        expected = f1_score(truth, given, average=name.removeprefix("f1_"), zero_division=0.0)
        assert task.score(given[:, None].astype(float)) == pytest.approx(expected) == METRICS[name].score(given[:, None], truth)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [True, False], ["a", "b"]])
def test_classes_however_they_are_stored(labels, words, tmp_path) -> None:
    """Whole numbers as floats, as pandas has them once one was missing; controls: halves, and what is beyond 64 bits, are no classes."""
    write(tmp_path, "train", {"text": TEXTS, "label": labels * (ROWS // 2)})
    assert loaded(words, tmp_path).labels == 2
    for wrong in (0.5, 1e30):
        write(tmp_path, "train", {"text": TEXTS, "label": [0.0, wrong] * (ROWS // 2)})
        with pytest.raises(UserError, match="row [0-9]+ .* expected classes .whole numbers or names., got"):
            loaded(words, tmp_path)
