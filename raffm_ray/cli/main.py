"""The commands. A user's mistake is one line and exit code 2; everything else keeps its traceback."""

import os
import sys
from collections.abc import Sequence

from raffm_ray.basics.errors import BadUpdateError, ClientError, UserError, WorkerLostError, near_miss, without_secrets
from raffm_ray.basics.flags import is_url, take_flag
from raffm_ray.basics.version import __version__, version_text
from raffm_ray.cli.commands import COMMANDS
from raffm_ray.cli.signals import terminable

USAGE = f"""raffm-ray {__version__}: federated fine-tuning of one foundation model on devices that are not alike

  raffm-ray run CONFIG.yaml [--key.path value ...] [--out DIR]   a simulation; DIR defaults to runs/<name>-<time>; s3://bucket/run
                                                                 and the like: copied there after every round
  raffm-ray submit CONFIG.yaml [--address URL] [--key.path value ...] [--out DIR|URL] [--pip PACKAGE,...]
                                                                 the same as a job on a Ray cluster: its log, then its report here
  raffm-ray resume DIR|URL [--key.path value ...]                goes on with a run that was interrupted
  raffm-ray compare CONFIG.yaml [--seeds 0,1,2] [--equal compute|bytes|memory|time] [--tune TRIALS] [--key.path value ...] [--out DIR]
                                                                 its strategy and every baseline, over seeds: one table, one picture
  raffm-ray study STUDY.yaml|DIR [--key.path value ...] [--out DIR]   a search for the best settings, or on with the one in DIR
  raffm-ray shares CONFIG.yaml [--key.path value ...] [--out FILE.png]   a picture and a table of who owns which data; no training
  raffm-ray report DIR|URL [DIR|URL ...] [--out DIR]             pictures and one HTML page of a finished run, or of several side by side
  raffm-ray deploy DIR --budget KIND=VALUE|--device NAME|--sizes 0.75,0.5 [--onnx] [--int8] [--elastic] [--out DIR]
                                                                 a finished run's model, or a checkpoint's, in the size that fits
  raffm-ray deploy compare DIR [--sizes 1,0.5] [--out DIR]       metric, bytes, MACs, memory and time of every size in three forms
  raffm-ray bench [CASE ...] [--quick] [--out DIR]               how fast it is, beside limits measured in the same run; --help: the cases
  raffm-ray bench attention [--json]                             attention by shape: fused or plain, float32 or bfloat16
  raffm-ray bench extraction [--key.path value ...] [--out DIR]  what each way of cutting keeps of a fine-tuned model
  raffm-ray fleet show CONFIG.yaml [--cluster FILE.yaml] [--key.path value ...]
                                                                 every device class: its budget, its plan, what a round costs it; and a
                                                                 cluster's workers and seconds a round
  raffm-ray fleet calibrate [CONFIG.yaml] [--out FILE.yaml]      measures this machine: a profile for fleet.profiles

  raffm-ray run CONFIG.yaml --help                               every setting, its type and its value there
  raffm-ray --version                                            the version, and the commit where one is known
"""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        print(version_text())
        return 0
    _quiet_libraries()
    with terminable() as came:
        try:
            if words[0] not in COMMANDS:
                raise UserError(f"{words[0]!r} is not a command{near_miss(words[0], COMMANDS)}")
            if words[0] not in ("run", "submit") and is_url(out := take_flag(words[1:], "--out") or ""):
                raise UserError(f"{words[0]}: --out {out}: only run and submit write to a URL")
            return COMMANDS[words[0]](words[1:])
        except UserError as error:
            print(f"raffm-ray: {error}", file=sys.stderr)
            return 2
        except (WorkerLostError, ClientError, BadUpdateError) as error:
            print(f"raffm-ray: {without_secrets(str(error))}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as error:
            print(f"raffm-ray: interrupted{error}", file=sys.stderr)
            return 143 if came else 130
