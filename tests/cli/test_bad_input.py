"""A user's mistake: one clear line, exit code 2, before any training starts."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.runs.recorder import Past, Recorder
from raffm_ray.runs.simulation import simulate
from raffm_ray.settings.loading import load, override, parse

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "experiments" / "digits.yaml")


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr("raffm_ray.preparation.starting_parameters.pretrained", started)
    monkeypatch.setattr("raffm_ray.runs.simulation.open_pool", started)
    monkeypatch.setattr("raffm_ray.pool.ray_start.start_ahead", lambda _: None)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--clients.cuont", "5"], "clients.cuont: unknown key (did you mean 'count'?)"),
        (["--cleints.count", "5"], "cleints: unknown key (did you mean 'clients'?)"),
        (["--clients.count", "many"], "clients.count: input should be a valid integer"),
        (["--clients.count", "0"], "clients.count: input should be greater than or equal to 1, got 0"),
        (["--clients.count=0"], "clients.count: input should be greater than or equal to 1, got 0"),
        (["--clients.per_round", "101"], "clients: per_round 101 must not exceed count 100"),
        (["--rounds", "[1, 2]"], "rounds: input should be a valid integer, got [1, 2]"),
        (["--rounds"], "'--rounds': expected pairs like --clients.count 200"),
        (["--clients.count", "[1"], "--clients.count line 1: not valid YAML"),
        (["--name.x", "1"], "--name.x: 'name' has no keys below it"),
        (["--local.learning_rate", ".nan"], "local.learning_rate: input should be a finite number"),
        (["--strategy.name", "rafm"], "strategy.name 'rafm' is not known (did you mean 'raffm'?)"),
        (["--salience.metric", "fischer"], "salience.metric 'fischer' is not known (did you mean 'fisher'?)"),
        (["--task.name", "digit"], "task 'digit' is not known (did you mean 'digits'?)"),
        (["--model.config.model_type", "vitt"], "model type 'vitt' has no table of axes (did you mean 'vit'?)"),
        (["--model.config.hiden_size", "3"], "model.config: 'hiden_size' is not a field of vit (did you mean 'hidden_size'?)"),
        (["--model.config.num_labels", "7"], "labels of the public part run from 0 to 9, but the model has 7 (0..6)"),
        (["--model.config.image_size", "16"], "model.config does not fit the examples of task 'digits': Input image size"),
        (
            ["--model.config.layer_norm_eps", "-x"],
            "transformers cannot build this model: Validation error for field 'layer_norm_eps': TypeError",
        ),
        (
            ["--model.config.num_hidden_layers", "0"],
            "model.config.num_hidden_layers: must be a whole number of at least 1, got 0",
        ),
        (["--model.config.num_attention_heads", "2.5"], "model.config.num_attention_heads: must be a whole number"),
        (["--model.config.dtype", "float16"], "model.config: 'dtype' cannot be set: parameters are float32 here"),
        (["--fleet.budgets.v100", "{params: 1.5}"], "budget params: 1.5 would be a count of params; fractions"),
        (["--clients.alpha", "1e-9"], "clients.alpha: input should be greater than or equal to 0.0001"),
        (["--model.config.hidden_act", "gelo"], "model.config: transformers cannot build this model"),
        (["--fleet.budgets.v100", "{params: 0.001}"], "device type v100: the budget is below the smallest subnetwork: params"),
        (["--fleet.budgets.v200", "{params: 0.5}"], "fleet.budgets: device type 'v200' is not known (did you mean 'v100'?)"),
        (
            ["--fleet.budgets.v100", "{parms: 0.5}"],
            "fleet.budgets.v100: budget kind 'parms' is not known (did you mean 'params'?)",
        ),
        (["--fleet.mix", "mediun"], "fleet mix 'mediun' is not known (did you mean 'medium'?)"),
        (["--fleet.shares.v100", "1.5"], "fleet shares must add up to 1"),
        (["--fleet.shares.v100", "-1"], "fleet share of v100 must not be negative, got -1"),
        (["--extraction.steps.fnf", "4"], "extraction.steps: 'fnf' is not a kind of axis of this model (did you mean 'ffn'?)"),
        (["--extraction.steps.ffn", "0"], "extraction.steps.ffn: must be at least 1, got 0"),
        (["--extraction.floors.ffn", "2"], "extraction.floors.ffn: must be between 0 and 1, got 2"),
        (["--clients.count", "5000"], "clients.count: 5000 clients cannot share"),
        (["--task.public", "1790"], "task: 1790 public and 449 held-out examples leave none of 1797 to the clients"),
        (["--baselines", "[raffm]"], "baselines: 'raffm' is there already"),
        (["--baselines", "[fulll]"], "baselines: strategy 'fulll' is not known (did you mean 'full'?)"),
        (["--pool.gpus_per_worker", "0.6"], "gpus_per_worker 0.6 must be 1/k"),
        (["--fleet.budgets.v100", "{params: 0.5}"], "salience.metric 'fisher' is calibrated by clients that hold the full model"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, words, out, capsys) -> None:
    assert cli(["run", DIGITS, *flags, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.startswith("raffm-ray: ")
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_control_the_experiment_itself_reaches_training(out) -> None:
    with pytest.raises(AssertionError, match="training started"):
        cli(["run", DIGITS, "--out", str(out)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "'rnu' is not a command (did you mean 'run'?)"),
        (["run"], "run: expected the path of a YAML file"),
        (["run", DIGITS.replace("digits", "digit")], "no such file (did you mean"),
        (["run", str(ROOT / "nowhere" / "x.yaml")], "no such file"),
        (["run", DIGITS, "--out"], "--out: expected a value after it"),
        (["run", DIGITS, "--out", "--rounds", "3"], "--out: expected a value after it, got '--rounds'"),
        (["run", DIGITS, "--out="], "--out: expected a value after it, got ''"),
        (["report", str(ROOT)], "no finished run here (summary.json is missing)"),
        (["report"], "report: expected folders of finished runs"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(arguments, words, capsys) -> None:
    assert cli(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1


def test_an_output_folder_that_is_not_empty_is_left_alone(out, capsys) -> None:
    out.mkdir()
    (out / "precious").write_text("mine")
    assert cli(["run", DIGITS, "--out", str(out)]) == 2
    assert "exists and is not an empty folder; nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["precious"]
    file = out / "precious"
    assert cli(["run", DIGITS, "--out", str(file)]) == 2
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a mapping of settings, got NoneType"),
        ("- 1", "expected a mapping of settings, got list"),
        ("a: [", "not valid YAML"),
        ("clients: 5", "clients: input should be a valid dictionary or instance of ClientSettings, got 5"),
        ("fleet:\n  budgets:   # none yet", "fleet.budgets: nothing is written below it: leave out the key, or write {}"),
        ("clients:", "clients: nothing is written below it: leave out the key, or write {}"),
        ("loggers:", "loggers: nothing is written below it: leave out the key, or write []"),
        ("name:", "name: input should be a valid string, got None"),  # control: a value is missing, no section
        ("name: x", "model: is required"),
        ("modle: {config: {model_type: vit}}", "modle: unknown key (did you mean 'model'?)"),
        ("name: ../x\nmodel: {config: {model_type: vit}}", "name: string should match pattern"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_file_is_one_line(text, words, tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_binary_file_is_refused(tmp_path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(tiny_experiment().model_dump())), JSON)
def test_any_value_anywhere_is_accepted_or_one_clear_error(key, value) -> None:
    values = tiny_experiment().model_dump(mode="json") | {key: value}
    with contextlib.suppress(UserError):
        parse(values)


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_any_unknown_key_is_one_line(key) -> None:
    with pytest.raises(UserError) as caught:
        parse({**tiny_experiment().model_dump(mode="json"), f"x{key}": 1})
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_accepted_or_one_clear_error(tmp_path_factory, text) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load(path)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"name": 1}'])
def test_a_foreign_summary_is_one_line(text, out, capsys) -> None:
    out.mkdir()
    (out / "summary.json").write_text(text)
    assert cli(["report", str(out)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_numbers_are_read_as_everybody_writes_them() -> None:
    assert load(Path(DIGITS), ["--model.config.layer_norm_eps", "1e-6"]).model.config["layer_norm_eps"] == 1e-6
    assert load(Path(DIGITS), ["--local.learning_rate", "1e-3"]).local.learning_rate == 1e-3


def test_flags_override_and_leave_the_rest() -> None:
    before = yaml.safe_load(Path(DIGITS).read_text())
    after = override(before, ["--clients.count", "7", "--baselines", "[]", "--fleet.shares={v100: 0.5}"])
    assert after["clients"]["count"] == 7
    assert after["clients"]["alpha"] == before["clients"]["alpha"]
    assert after["baselines"] == []
    assert after["fleet"]["shares"] == {"v100": 0.5}
    assert before == yaml.safe_load(Path(DIGITS).read_text())


def test_a_fleet_that_cannot_calibrate_may_use_public_data(out) -> None:
    half = {device: {"params": 0.5} for device in tiny_experiment().fleet.budgets}
    with pytest.raises(UserError, match="salience.source to public"):
        simulate(tiny_experiment(fleet={"budgets": half}), out)
    with pytest.raises(AssertionError, match="training started"):
        simulate(tiny_experiment(fleet={"budgets": half}, salience={"source": "public"}), out)


def test_help_lists_every_setting(capsys) -> None:
    assert cli(["run", DIGITS, "--help"]) == 0
    assert "--clients.count" in capsys.readouterr().out
    assert cli(["--help"]) == 0
    assert cli([]) == 2


@pytest.mark.parametrize("key", ["flops_per_second", "up_bytes_per_second", "sustained"])
def test_a_rate_that_is_next_to_nothing_is_refused(key, tmp_path, capsys) -> None:
    profiles = tmp_path / "profiles.yaml"
    whole = yaml.safe_load((ROOT / "raffm_ray" / "devices" / "profiles.yaml").read_text())
    whole["devices"]["laptop"][key] = 5e-324
    profiles.write_text(yaml.safe_dump(whole))
    assert cli(["fleet", "show", str(ROOT / "experiments" / "digits.yaml"), "--fleet.profiles", str(profiles)]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "must be at least 1e-09" in told


def test_a_file_where_records_go_is_one_line(tmp_path) -> None:
    out = tmp_path / "run"
    recorder = Recorder(out, tiny_experiment())
    del recorder
    (out / "rounds").rmdir()
    (out / "rounds").write_text("")
    with pytest.raises(UserError, match="rounds: cannot be made: File exists"):
        Recorder(out, tiny_experiment(), Past(None))
