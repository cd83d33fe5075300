"""The tree of commands, made by cyclopts from their functions: what the words of a call mean, and the help of each command.

Every mistake is a UserError of one line. Settings, such as `--local.learning_rate 1e-4`, are no flags here: they are checked with the file.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cyclopts
from cyclopts import App, Group
from cyclopts.help import DefaultFormatter, PanelSpec
from rich.box import HORIZONTALS
from rich.console import Console

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.basics.flags import is_url
from raffm_ray.cli import commands, tools

RUNS, LOOKING, DEVICES = map(Group.create_ordered, ("Runs", "Before and after a run", "Devices and speed"))
EXPECTED = {
    "CONFIG": "the path of a YAML file, for example: raffm-ray {} experiments/digits.yaml",
    "STUDY|DIR": "the path of a YAML file, or the folder of a study to go on with",
    "DATA": "a file or folder of data, for example: raffm-ray {} reviews.csv",
}
"""What a command expects first, by the name of the argument."""
FOLDERS = {
    "resume": "the folder of a run, for example: raffm-ray resume runs/digits-20250101-120000",
    "deploy": "first the folder of a finished run, or of a checkpoint: raffm-ray deploy runs/mine --budget layer_params=0.5 --out small",
}
"""The same of commands that expect the folder of a run."""
SETTINGS_OF = {
    "run": "experiment",
    "submit": "experiment",
    "compare": "experiment",
    "shares": "experiment",
    "fleet show": "experiment",
    "fleet calibrate": "experiment",
    "bench extraction": "extraction",
    "resume": "run",
    "study": "study",
    "deploy": "checkpoint",
    "deploy compare": "checkpoint",
}
"""Command -> whose settings its flags may be."""
NARROW, WIDEST = 80, 100
"""Columns of help."""
HELP = ("-h", "--help")
TO_A_URL = ("run", "submit")
ANY_SETTINGS = "[--key.path value ...]"

FORM = DefaultFormatter(panel_spec=PanelSpec(box=HORIZONTALS, padding=(0, 0)))


def _paragraphs(function: Callable[..., int]) -> str:
    """A function's docstring, each paragraph in one line."""
    return "\n\n".join(" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))


def _tree() -> App:
    plain: dict[str, Any] = {
        "help_format": "plaintext",
        "help_formatter": FORM,
        "version_flags": [],
        "result_action": "return_value",
    }
    app = App(
        name="raffm-ray",
        help="Federated fine-tuning of one foundation model on devices that are not alike, simulated on Ray.",
        usage="Usage: raffm-ray COMMAND ...",
        help_epilogue="raffm-ray COMMAND --help: its flags and settings. raffm-ray --version: the version.",
        **plain,
    )

    def add(function: Callable[..., int], usage: str, group: Group | None = None, to: App = app, **more: Any) -> App:
        called = f"Usage: raffm-ray {usage}" if to is app else f"Usage: raffm-ray {to.name[0]} {usage}"
        given = {"help_epilogue": "", **plain, **more}
        inner = App(name=usage.split()[0], usage=called, help=_paragraphs(function), group=group, sort_key=len(list(to)), **given)
        inner.default(function)
        to.command(inner)
        return inner

    app["--help"].show = False
    add(commands.run, f"run CONFIG.yaml {ANY_SETTINGS} [--out DIR|URL] [--plugin FILE]", RUNS)
    add(commands.submit, f"submit CONFIG.yaml [--address URL] {ANY_SETTINGS} [--out DIR|URL] [--pip PACKAGE,...]", RUNS)
    add(commands.resume, f"resume DIR|URL {ANY_SETTINGS}", RUNS)
    add(
        commands.compare,
        f"compare CONFIG.yaml [--seeds 0,1,2] [--equal RESOURCE] [--tune TRIALS] [--target VALUE] [--page FILE.md] {ANY_SETTINGS} [--out DIR]",
        RUNS,
    )
    add(commands.study, f"study STUDY.yaml|DIR {ANY_SETTINGS} [--out DIR]", RUNS)
    add(tools.init, "init DATA [--task NAME] [--model NAME|DIR] [--out FILE]", LOOKING)
    add(tools.settings, "settings [PREFIX]", LOOKING)
    add(tools.shares, f"shares CONFIG.yaml {ANY_SETTINGS} [--out FILE]", LOOKING)
    add(commands.report, "report DIR|URL [DIR|URL ...] [--out DIR]", LOOKING)
    deploy = add(
        tools.deploy, "deploy DIR --budget KIND=VALUE|--device NAME|--client N|--sizes LIST|--elastic [...] [--out DIR]", LOOKING
    )
    add(tools.deploy_compare, "compare DIR [--sizes LIST] [--out DIR]", to=deploy)
    fleet = add(tools.fleet, "fleet show|calibrate ...", DEVICES)
    add(tools.fleet_show, f"show CONFIG.yaml [--cluster FILE.yaml] {ANY_SETTINGS}", to=fleet)
    add(
        tools.fleet_calibrate, f"calibrate [CONFIG.yaml {ANY_SETTINGS}] [--out FILE.yaml] [--name NAME] [--watts WATTS]", to=fleet
    )
    bench = add(tools.bench, "bench [CASE ...] [--workers N] [--repetitions N] [--quick] [--json] [--out DIR]", DEVICES)
    add(tools.bench_compare, "compare A.json B.json", to=bench)
    add(tools.bench_attention, "attention [--repetitions N] [--quick] [--json]", to=bench)
    add(tools.bench_extraction, f"extraction {ANY_SETTINGS} [--out DIR]", to=bench)
    return app


TREE = _tree()


def command_of(words: Sequence[str]) -> str:
    """The command that words begin with: `fleet show`. Raises UserError for a first word that is none."""
    chain, *_ = TREE.parse_commands(list(words))
    if not chain:
        known = [name for name in TREE if not name.startswith("-")]
        raise UserError(f"{words[0]!r} is not a command{near_miss(words[0], known)}")
    return " ".join(chain)


def _arguments(command: str) -> cyclopts.ArgumentCollection:
    app = TREE
    for name in command.split():
        app = app[name]
    return app.assemble_argument_collection()


def flags_of(command: str) -> list[str]:
    """The flags of a command that its help shows."""
    return [name for one in _arguments(command) if one.show for name in one.names if name.startswith("--")]


def parsed(words: Sequence[str]) -> Callable[[], int]:
    """What a call is to do, not yet done. Raises UserError of one line for a call that cannot be."""
    command = command_of(words)
    rest = list(words)[len(command.split()) :]
    flags = flags_of(command)
    for word in rest:
        if word.endswith("=") and word[:-1] in flags:
            raise UserError(f"{word[:-1]}: expected a value after it, got ''")
    try:
        function, bound, _ = TREE.parse_args(list(words), print_error=False, exit_on_error=False)
    except cyclopts.CycloptsError as error:
        raise _told(error, command, rest, flags) from None
    given = bound.arguments
    options = given.get("options")
    out = given.get("out") or (options and options.out) or ""
    if is_url(str(out)) and command not in TO_A_URL:
        raise UserError(f"{command}: --out {out}: only run and submit write to a URL")
    if command in SETTINGS_OF:
        _check_spelling(given.get("settings", ()), flags, command)
    return partial(function, *bound.args, **bound.kwargs)


def _check_spelling(settings: Sequence[str], flags: Sequence[str], command: str) -> None:
    """Raises UserError for what is no setting, but nearly a flag."""
    from difflib import get_close_matches

    for word in settings:
        name = word.split("=")[0]
        if re.fullmatch(r"--[\w-]+", name) and (close := get_close_matches(name, flags, 1, 0.8)):
            from raffm_ray.cli.settings_text import top_keys

            if name[2:] not in top_keys(command):
                raise UserError(f"{name}: unknown flag (did you mean {close[0]!r}?)")


def _told(error: cyclopts.CycloptsError, command: str, rest: Sequence[str], flags: Sequence[str]) -> UserError:
    """What cyclopts says of a call, in one line as all mistakes are told."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    flag = next((name for name in (error.argument.names if error.argument else ()) if name.startswith("--")), None)
    if isinstance(error, cyclopts.UnknownOptionError) and (command not in SETTINGS_OF or command == "fleet calibrate"):
        word = error.token.keyword or error.token.value
        return UserError(f"{command}: {word!r} is not a flag of it{near_miss(word, flags)}")
    if isinstance(error, cyclopts.MissingArgumentError) and flag:
        after = [rest[position + 1] for position, word in enumerate(rest[:-1]) if word == flag]
        return UserError(f"{flag}: expected a value after it{f', got {after[0]!r}' if after else ''}")
    if isinstance(error, cyclopts.MissingArgumentError | cyclopts.UnknownOptionError):
        (name,) = [one.name for one in _arguments(command) if one.required] or [""]
        expected = (
            FOLDERS.get(command.split()[0], "") if name == "DIR" else EXPECTED.get(name, "another argument").format(command)
        )
        return UserError(f"{command}: expected {expected}")
    if isinstance(error, cyclopts.RepeatArgumentError):
        return UserError(f"{error.token.keyword}: given more than once")
    told = " ".join(str(error).split())
    return UserError(f"{command}: {told[:1].lower()}{told[1:]}")


def show_help(words: Sequence[str]) -> None:
    """Prints the help that a call asks for: of all commands, or of one, with its settings and their values where it names a file.

    Raises UserError for a command that there is not, and for a file that cannot be read.
    """
    asked = [word for word in words if word not in HELP]
    command = command_of(asked) if asked else ""
    console = Console(width=min(Console().width, WIDEST), highlight=False)
    with console.capture() as written:
        TREE.help_print(command.split(), console=console)
    print(written.get(), end="")
    if command == "bench":
        from raffm_ray.benchmarks.suite import cases_text

        print(f"\n{cases_text(NARROW)}")
    if command not in SETTINGS_OF:
        return
    from raffm_ray.cli.settings_text import settings_help

    first, flags, plugins = "", list[str](), list[str]()
    try:
        _, bound, _ = TREE.parse_args(asked, print_error=False, exit_on_error=False)
        first, flags = str(bound.arguments.get("config") or ""), list(bound.arguments.get("settings", ()))
        plugins = list(bound.arguments.get("plugin", ()))
    except cyclopts.CycloptsError:
        pass  # help is also for whoever does not know yet what a call needs
    print(f"\n{settings_help(command, SETTINGS_OF[command], first, flags, plugins)}")
