"""The commands. A user's mistake is one line and exit code 2; everything else keeps its traceback."""

import os
import sys
from collections.abc import Sequence

from raffm_ray.basics.errors import BadUpdateError, ClientError, UserError, WorkerLostError, without_secrets
from raffm_ray.basics.version import version_text
from raffm_ray.cli.signals import terminable

BROKEN_PIPE = 141
"""Exit code where nobody reads what is printed: a shell's for a program that SIGPIPE ended."""


def _quiet_libraries() -> None:
    """Progress and errors are ours to show; libraries' chatter and look-ups on the network are switched off before they start."""
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["MPLBACKEND"] = "Agg"  # pictures are files here; one inherited from a notebook may not even be installed


def _called(words: Sequence[str]) -> int:
    """Does what a call asks for; returns the exit code."""
    if words[:1] == ["--version"]:
        print(version_text())
        return 0
    from raffm_ray.cli.parser import HELP, parsed, show_help

    if not words or words == ["help"]:
        show_help([])
        return 0 if words else 2
    if set(HELP) & set(words):
        show_help(words)
        return 0
    return parsed(words)()


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _quiet_libraries()
    with terminable() as came:
        try:
            code = _called(words)
            sys.stdout.flush()  # here, and not at the end of the process, where nothing could be done about a broken pipe
            return code
        except UserError as error:
            print(f"raffm-ray: {error}", file=sys.stderr)
            return 2
        except (WorkerLostError, ClientError, BadUpdateError) as error:
            print(f"raffm-ray: {without_secrets(str(error))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as error:
            print(f"raffm-ray: interrupted{error}", file=sys.stderr)
            return 143 if came else 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
