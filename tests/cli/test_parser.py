"""What a call means, and the help of every command: it fits 80 columns, needs nothing heavy, and may be cut off."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raffm_ray.cli.main import BROKEN_PIPE
from raffm_ray.cli.main import main as cli
from raffm_ray.cli.parser import SETTINGS_OF, TREE, flags_of
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.settings.description import groups
from raffm_ray.settings.experiment import Experiment

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "experiments" / "digits.yaml")


def commands() -> Iterator[str]:
    for name in TREE:
        if not name.startswith("-"):
            yield name
            yield from (f"{name} {inner}" for inner in TREE[name] if not inner.startswith("-"))


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_there_are_all_commands() -> None:
    assert set(commands()) >= {
        "run",
        "submit",
        "resume",
        "compare",
        "study",
        "init",
        "settings",
        "shares",
        "report",
        "fleet show",
    }
    assert set(SETTINGS_OF) <= set(commands())


@pytest.mark.parametrize("command", ["", *commands()])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_that_names_its_flags(command, flag, capsys) -> None:
    assert cli([*command.split(), flag]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: raffm-ray {command}".rstrip())
    assert narrow(told)
    assert [name for name in (flags_of(command) if command else TREE) if not name.startswith("-h") and name not in told] == []


@pytest.mark.parametrize("command", [name for name, kind in SETTINGS_OF.items() if kind == "experiment"])
def test_help_with_a_file_shows_its_values(command, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cli([*command.split(), "experiments/digits.yaml", "--local.learning_rate=0.0625", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--rounds  integer, >= 1; default: 40; here: 100" in told
    assert "here: 0.0625" in told
    assert narrow(told)
    assert cli([*command.split(), "--help"]) == 0
    assert "; here:" not in capsys.readouterr().out  # control


def test_help_says_how_to_list_the_names_in_a_table(capsys) -> None:
    assert cli(["run", "--help"]) == 0
    (advice,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The names in a table")]
    assert cli(["settings", advice.rpartition(" ")[2]]) == 0
    assert "Names: raffm, raffm_reference, full" in " ".join(capsys.readouterr().out.split())


def test_help_with_a_file_that_is_not_there_is_one_line(capsys) -> None:
    assert cli(["run", "nowhere.yaml", "--help"]) == 2
    assert capsys.readouterr().err == "raffm-ray: nowhere.yaml: no such file\n"


def test_help_and_settings_import_nothing_heavy() -> None:
    program = (
        "import sys; from raffm_ray.cli.main import main; "
        "main(['--help']), main(['run', '--help']), main(['settings']), main(['deploy', '--help']); "
        "print([name for name in ('torch', 'ray', 'transformers', 'datasets', 'pandas', 'matplotlib') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("words", ["settings", "run --help"])
def test_a_reader_that_goes_away_is_no_traceback(words) -> None:
    command = f"{sys.executable} -m raffm_ray.cli {words} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", str(BROKEN_PIPE))  # what fits into the pipe is written before its reader goes


def test_a_closed_pipe_has_its_own_code(monkeypatch) -> None:
    command = f"(sleep 0.2; {sys.executable} -m raffm_ray.cli settings; echo $? >&2) | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == f"{BROKEN_PIPE}\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", DIGITS, "--out", "a", "--out=b"], "--out: given more than once"),
        (["run", DIGITS, "--outt", "a"], "--outt: unknown flag (did you mean '--out'?)"),
        (["compare", DIGITS, "--sedes", "0"], "--sedes: unknown flag (did you mean '--seeds'?)"),
        (["run", "--rounds", "3"], "run: expected the path of a YAML file"),
        (["run", DIGITS, "more.yaml"], "'more.yaml': expected pairs like --clients.count 200"),
        (["report", "--otu", "x"], "report: '--otu' is not a flag of it (did you mean '--out'?)"),
        (["settings", "clinets"], "settings: 'clinets' is no setting and no group of settings (did you mean 'clients'?)"),
        (["settings", "local.learning_rat"], "(did you mean 'local.learning_rate'?)"),
        (["init"], "init: expected a file or folder of data"),
        (["deploy", "--budget", "params=1"], "deploy: expected first the folder of a finished run"),
        (["setings"], "'setings' is not a command (did you mean 'settings'?)"),
    ],
)
def test_a_mistake_in_a_call_is_one_line(words, told, capsys) -> None:
    assert cli(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_settings_are_named_with_type_default_and_meaning(capsys) -> None:
    every = {setting.path for _, _, own in groups(Experiment) for setting in own}
    every = {path for path in every if not path.startswith(("baselines.<name>", "plugins.<name>"))}
    assert cli(["settings"]) == 0
    told = capsys.readouterr().out
    assert {line.split()[0][2:] for line in told.splitlines() if line.startswith("  --")} == every
    assert narrow(told)
    assert cli(["settings", "local.optimizer"]) == 0
    told = capsys.readouterr().out
    assert "--local.optimizer  text; default: adamw" in told
    assert "optimizer of a client" in told
    assert "Names: adamw, sgd, momentum" in " ".join(told.split())
    assert "--local.learning_rate" not in told


def test_settings_and_help_are_plain_letters(capsys) -> None:
    assert cli(["settings"]) == 0
    assert capsys.readouterr().out.isascii()


def test_settings_of_a_table_list_its_names(capsys) -> None:
    assert cli(["settings", "strategy.name"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"Names: {', '.join(STRATEGIES)}" in told


def test_a_last_name_finds_settings_of_all_groups(capsys) -> None:
    assert cli(["settings", "--learning_rate"]) == 0
    told = capsys.readouterr().out
    assert all(f"--{group}.learning_rate" in told for group in ("local", "server", "model.pretrain"))
    assert "--rounds" not in told


def test_entries_of_a_list_are_no_flags(capsys) -> None:
    assert cli(["settings"]) == 0
    told = capsys.readouterr().out
    assert "entries of the list `baselines`: " in told
    assert "--baselines.<name>" not in told
    assert "--plugins.<name>" not in told
    assert "--pool.placement.<name>.labels" in told  # control: keys of a mapping are
