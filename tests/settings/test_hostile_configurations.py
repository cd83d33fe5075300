"""Whatever a configuration says, it is taken or refused in one line: as values, as YAML, as flags, and by the command itself."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY, tiny_experiment
from hostile import (
    TRIED,
    VALUES,
    HangingError,
    as_word,
    as_yaml,
    bounded,
    content,
    damaged,
    many,
    mutated,
    one_clear_line,
    places,
    settled,
)
from hypothesis import given
from hypothesis import strategies as st

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.runs.resuming import experiment_digest
from raffm_ray.settings.experiment import Experiment
from raffm_ray.settings.loading import dump, load, override, parse

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "experiments" / "digits.yaml"
TINY_VALUES = tiny_experiment().model_dump(mode="json")
BASES = [TINY_VALUES, *(yaml.safe_load(path.read_text()) for path in sorted((ROOT / "experiments").glob("*.yaml")))]
KIND = "configurations"


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr("raffm_ray.preparation.starting_parameters.pretrained", started)
    monkeypatch.setattr("raffm_ray.runs.simulation.open_pool", started)
    monkeypatch.setattr("raffm_ray.pool.ray_start.start_ahead", lambda _: None)


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "hostile.yaml"


def kept(experiment: Experiment | UserError) -> None:
    """What was taken can be written down, read back, and is the same then."""
    if isinstance(experiment, Experiment):
        again = parse(yaml.safe_load(dump(experiment)))
        assert again == experiment
        assert experiment_digest(again) == experiment_digest(experiment)


@many(1500, 60)
@given(st.data())
def test_settings_of_any_values(data) -> None:
    values = data.draw(mutated(data.draw(st.sampled_from(BASES))))
    kept(settled(KIND, lambda: parse(values)))


def small(values: dict[str, Any]) -> bool:
    """Whether trying to prepare settings costs seconds at most: their data and model are here."""
    return values["task"]["name"] == "digits" and not values["model"]["pretrained"]


@many(800, 25)
@given(mutated(TINY_VALUES, most=2))
def test_whatever_is_taken_can_be_prepared_or_is_refused(values) -> None:
    experiment = settled(KIND, lambda: parse(values))
    if isinstance(experiment, Experiment) and small(experiment.model_dump(mode="json")):
        assert isinstance(settled("configurations: prepared", lambda: prepare(experiment)), Prepared | UserError)


FIELDS = ["model_type", *sorted({key for settings in TINY.values() for key in settings} - {"model_type"})]


@many(500, 20)
@given(st.sampled_from(sorted(TINY_VALUES["model"]["config"])) | st.sampled_from(FIELDS), VALUES)
def test_a_model_of_any_fields(field, value) -> None:
    values = {**TINY_VALUES, "model": {"config": {**TINY_VALUES["model"]["config"], field: value}}}
    experiment = settled(KIND, lambda: parse(values))
    if isinstance(experiment, Experiment):
        settled("configurations: prepared", lambda: prepare(experiment))


HUGE = [
    {"clients.count": 10**15},
    {"clients.count": 10**15, "clients.partition": "iid"},
    {"rounds": 10**18},
    {"local.batch_size": 10**18},
    {"task.public": 10**18},
    {"task.validation": 10**18},
    {"evaluation.sizes": 10**15},
    {"salience.examples": 10**30},
    {"clock.over_selection": 1e300},
    {"seed": 10**4000},
    {"pool.stack_clients": 10**12},
    {"evaluation.batch_size": 10**30},
    {"clients.shots": 10**30, "clients.partition": "k_shot"},
    {"clients.shards": 10**30, "clients.partition": "shards"},
    {"model.config.hidden_size": 3 * 10**6},
    {"model.config.hidden_size": 3 * 10**12},
    {"model.config.num_hidden_layers": 10**9},
    {"model.config.intermediate_size": 10**12},
    {"model.config.intermediate_size": 10**30},
    {"model.config.num_hidden_layers": 10**5},
    {"local.steps": 10**30},
    {"local.epochs": 10**30},
    {"task.max_length": 10**30},
    {"checkpoint.keep": 10**30},
    {"salience.clients": 10**30},
]


@pytest.mark.parametrize("huge", HUGE, ids=str)
def test_what_is_too_large_is_refused_before_memory_is_taken(huge) -> None:
    flags = [word for key, value in huge.items() for word in (f"--{key}", str(value))]
    result = settled(KIND, lambda: prepare(parse(override(TINY_VALUES, flags))))
    if next(iter(huge)).startswith("model.config"):
        assert isinstance(result, UserError)
        assert "model.config" in str(result)


def test_control_what_takes_the_memory_or_the_time_is_seen(monkeypatch) -> None:
    with pytest.raises(MemoryError):
        settled("control", lambda: bytearray(2**40))
    monkeypatch.setattr("hostile.MOST_SECONDS", 0.05)
    with pytest.raises(HangingError):
        settled("control", lambda: time.sleep(5))
    with pytest.raises(AssertionError):
        one_clear_line("two lines\nof an error")
    with pytest.raises(KeyError):
        settled("control", lambda: {}["a fault"])
    content, rng = bytes(100), np.random.default_rng(0)
    assert all(damaged(content, rng) != content for _ in range(100))
    del TRIED["control"]


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
TAKEN = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{y: [*a{n - 1}, *a{n - 1}], <<: *a{n - 1}}}\n" for n in range(1, 40))
TEXTS = [
    LAUGHS,
    TAKEN,
    MERGED,
    "a: &a [*a]",
    "&a {name: *a, model: *a}",
    "name: &n x\nmodel: {config: &c {model_type: vit, id2label: *c}}",
    "name: x\nname: y\nmodel: {config: {model_type: vit}}",
    "seed: 1\nseed: 2",
    "---\nname: x\n---\nname: y\n",
    "%YAML 9.9\n---\nname: x",
    "!!python/object/apply:os.system ['touch owned']",
    "name: !!python/name:os.system ''",
    "model: !!python/object/new:os.system [touch owned]",
    "seed: !!binary aGVsbG8=",
    "seed: !!binary '%'",
    "name: !!set {a, b}",
    "name: !!omap [a: 1]",
    "seed: !!int x",
    "seed: !!float y",
    "seed: !!timestamp z",
    "seed: !!bool maybe",
    "seed: !!null x",
    "seed: !foreign 1",
    "seed: 1e400",
    "rounds: 0x" + "f" * 9000,
    "rounds: " + "9" * 9000,
    "seed: 0b" + "1" * 30000,
    "seed: 1:1:1:1:1",
    "name: 2020-01-01",
    "name: 2020-99-99",
    "name: 2020-01-01 99:99:99",
    'name: "\\ud800"',
    'name: "\\x00"',
    "\tname: x",
    "name:\n\tx: 1",
    "name: 'x",
    "name: |",
    "? [a, b]\n: 1",
    "? {a: b}\n: 1",
    "1: 2",
    "null: 1",
    "~: ~",
    "true: 1",
    ".nan: 1",
    "a: " + "[" * 50000,
    "a: " + "[" * 500 + "]" * 500,
    "a: " + "{a: " * 300 + "1" + "}" * 300,
    "- " * 20000,
    "? " * 5000,
    "a" * 1_000_000,
    "name: " + "x" * 1_000_000,
    "x" * 100_000 + ": 1",
    "#" * 1_000_000,
    "\n" * 100_000,
    "&" + "a" * 100_000 + " x",
    "*a",
    "name: *nobody",
    "<<: 1",
    "<<: [1]",
    "<<: {name: x}",
    "@",
    "`",
    "%",
    "name: x\nmodel: {config: {model_type: vit, id2label: " + "{a: " * 80 + "1" + "}" * 80 + "}}",
    "model: {config: {model_type: vit, layer_norm_eps: .nan}}",
    "model: {config: {model_type: vit, layer_norm_eps: !!binary aGVs/w==}}",
    "model: {config: {model_type: vit, hidden_act: 2020-01-01}}",
    "model: {config: {model_type: [vit]}}",
    "model: {config: {model_type: vit, id2label: {[1, 2]: 3}}}",
    'model: {config: {model_type: vit, num_labels: "\\ud800"}}',
]


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_text_that_was_made_to_hurt(path, number, monkeypatch) -> None:
    monkeypatch.chdir(path.parent)
    path.write_text(TEXTS[number], encoding="utf-8", errors="surrogatepass")
    before = content(path.parent)
    kept(settled(KIND, lambda: load(path)))
    assert content(path.parent) == before


SOURCES = [file.read_bytes() for file in sorted((ROOT / "experiments").glob("*.yaml"))] + [yaml.safe_dump(TINY_VALUES).encode()]
PIECES = st.sampled_from(
    [
        b"\t",
        b"\0",
        b"\xff",
        b"\xc3",
        b"&a ",
        b"*a",
        b"!!python/object:x.y ",
        b"!!set ",
        b"[",
        b"]",
        b"{",
        b"}",
        b"- ",
        b": ",
        b"\n",
        b"---\n",
        b"...\n",
        b"? ",
        b"'",
        b'"',
        b"|",
        b">",
        b"#",
        b"%",
        b"@",
        b"1e400",
        b"-",
        b".inf",
        b"<<: ",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\r",
        b"0x",
        b"2020-99-99",
    ]
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A valid file with pieces put in, taken out, doubled, cut; or random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    text = bytearray(draw(st.sampled_from(SOURCES)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 30))
        way = draw(st.integers(0, 4))
        if way == 0:
            text[at:at] = draw(PIECES)
        elif way == 1:
            del text[at : at + length]
        elif way == 2:
            text[at:at] = text[at : at + length]
        elif way == 3:
            text[at : at + length] = draw(st.binary(max_size=4))
        else:
            del text[at:]
    return bytes(text)


@many(1500, 40)
@given(texts())
def test_any_text(path, text) -> None:
    path.write_bytes(text)
    kept(settled(KIND, lambda: load(path)))


@many(500, 40)
@given(st.data())
def test_any_flag(data) -> None:
    key = ".".join(data.draw(st.sampled_from(places(Experiment, TINY_VALUES))))
    value = data.draw(
        VALUES | st.sampled_from(["[", "{", "a: b", "- a", "*a", "!!python/name:os.system", "'", "1e400", "2020-99-99", "{a: "])
    )
    word = as_word(value)
    key = data.draw(st.sampled_from([key, key, key, f"{key}.x", f".{key}", f"{key}.", key[1:], key.upper(), f"{key}="]))
    kept(settled(KIND, lambda: parse(override(TINY_VALUES, [f"--{key}", word]))))


@pytest.mark.parametrize(
    "flags", [["--model.freeze", "*embeddings*"], ["--baselines", "*a"], ["--strategy.own", "[norms"], ["--model.freeze=*"]]
)
def test_a_text_for_a_list_says_how_a_list_is_given(flags) -> None:
    result = settled(KIND, lambda: parse(override(TINY_VALUES, flags)))
    assert isinstance(result, UserError)
    assert str(result).startswith(flags[0].split("=")[0])
    assert "such as [" in str(result) or "needs quotes" in str(result)


@many(400, 8)
@given(st.data())
def test_the_command_says_one_line_and_makes_nothing(path, capsys, data) -> None:
    values = data.draw(mutated(TINY_VALUES, most=2))
    place = path.parent / "work"
    place.mkdir(exist_ok=True)
    if data.draw(st.booleans()):
        path.write_bytes(as_yaml(values))
    else:
        path.write_bytes(data.draw(texts()))
    command = data.draw(st.sampled_from([["run"], ["run"], ["compare"], ["shares"], ["fleet", "show"]]))
    out = [] if command == ["fleet", "show"] else ["--out", str(place / ("image.png" if command == ["shares"] else "run"))]
    TRIED[KIND] += 1
    try:
        experiment = load(path)
        prepare(experiment) if small(experiment.model_dump(mode="json")) else None
    except UserError:
        TRIED[f"{KIND}: refused"] += 1
        before = content(path.parent)
        with bounded():
            assert cli([*command, str(path), *out]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        one_clear_line(captured.err.rstrip("\n"))
        assert content(path.parent) == before
