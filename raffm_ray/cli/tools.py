"""What the commands beside runs do: deploying, devices, benchmarks, settings."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from raffm_ray.basics.errors import UserError, near_miss
from raffm_ray.basics.flags import whole
from raffm_ray.basics.machine import usable_cores
from raffm_ray.cli.flags import Config, Moved, Out, Plugins, Settings, Switch
from raffm_ray.deployment.options import DeployOptions
from raffm_ray.runs.locations import fresh_folder

Source = Annotated[str, Parameter(name="DIR", help="folder of a finished run, or of a checkpoint of transformers")]
Options = Annotated[DeployOptions, Parameter(name="*")]
AS_GIVEN = DeployOptions()
FLEET = ("show", "calibrate")


def _deploy(source: str, settings: tuple[str, ...], options: DeployOptions, plugins: tuple[str, ...], comparing: bool) -> int:
    from raffm_ray.deployment.command import deploy as write

    folder = Path(options.out) if options.out else fresh_folder(f"deployed-{Path(source).name}")
    return write(source, settings, options, folder, comparing, plugins)


def deploy(source: Source, /, *settings: Settings, options: Options = AS_GIVEN, plugin: Moved = ()) -> int:
    """Write the part of a trained model that fits a budget, as a model for transformers.

    The part is a folder that transformers loads after `import raffm_ray`. A checkpoint that is no run needs data that ranks and measures
    it: --task.name names it.
    """
    return _deploy(source, settings, options, plugin, comparing=False)


def deploy_compare(source: Source, /, *settings: Settings, options: Options = AS_GIVEN, plugin: Moved = ()) -> int:
    """Compare the sizes of a trained model as PyTorch, ONNX and int8: a table and a picture.

    The metric, bytes, MACs, memory and time of every size. Default: --sizes 1,0.75,0.5,0.35,0.25
    """
    return _deploy(source, settings, options, plugin, comparing=True)


Workers = Annotated[
    int | None, Parameter(metavar="N", converter=whole("a whole number of at least 1"), help="default: one for each core")
]
Repetitions = Annotated[
    int | None,
    Parameter(metavar="N", converter=whole("a whole number of at least 1"), help="of each measurement; default: 5"),
]


def _no_case(_: Any, name: str) -> None:
    from raffm_ray.benchmarks.suite import check_case

    check_case(name)


def bench(
    *cases: Annotated[
        str,
        Parameter(name="CASE", allow_leading_hyphen=True, validator=_no_case, help="default: all of them"),
    ],
    workers: Workers = None,
    repetitions: Repetitions = None,
    quick: Annotated[
        Switch, Parameter(help="small sizes and one repetition, to see that all works; its numbers mean nothing")
    ] = False,
    json: Annotated[Switch, Parameter(help="print JSON instead of a table")] = False,
    out: Out = None,
) -> int:
    """Measure the speed, beside limits that are measured in the same run."""
    from raffm_ray.benchmarks.suite import Options as Measuring
    from raffm_ray.benchmarks.suite import bench as measure

    measuring = Measuring(workers or usable_cores(), repetitions or (1 if quick else 5), quick)
    return measure(cases, measuring, Path(out) if out else fresh_folder("bench"), json)


Result = Annotated[str, Parameter(help="a result of raffm-ray bench: its bench.json, or the folder of that")]


def bench_compare(first: Result, second: Result, /) -> int:
    """Compare two results of the speed suite: ratios, and what became slower."""
    from raffm_ray.benchmarks.comparison import compare

    return compare(first, second)


def bench_attention(
    *,
    repetitions: Repetitions = None,
    quick: Annotated[Switch, Parameter(help="small sizes and one repetition, to see that all works")] = False,
    json: Annotated[Switch, Parameter(help="print JSON instead of a table")] = False,
) -> int:
    """Measure attention by shape: fused or plain, in float32 and bfloat16."""
    from raffm_ray.benchmarks.attention import bench_attention as measure

    return measure(repetitions, quick, json)


def bench_extraction(*settings: Settings, out: Out = None) -> int:
    """Measure what each way of cutting keeps of a fine-tuned model."""
    from rich.console import Console

    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.benchmarks.extraction import extraction

    folder = Path(out) if out else fresh_folder("bench-extraction")
    table = extraction(settings, folder, Console(stderr=True))
    console = standard_output()
    console.print(table)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
    return 0


def fleet_show(
    config: Config,
    /,
    *settings: Settings,
    cluster: Annotated[
        str | None,
        Parameter(
            metavar="FILE.yaml",
            help="a described cluster: also the workers that the run would get there, and the time of a round",
        ),
    ] = None,
    plugin: Plugins = (),
) -> int:
    """Show what each device type may use, trains and pays in a round. Nothing is trained."""
    from raffm_ray.fleet.command import show

    return show(Path(config), settings, Path(cluster) if cluster else None, plugin)


def fleet_calibrate(
    config: Annotated[str | None, Parameter(name="CONFIG", help="an experiment whose steps are estimated and measured")] = None,
    /,
    *settings: Settings,
    out: Annotated[str | None, Parameter(metavar="FILE.yaml", help="file of the profile; default: it is printed")] = None,
    name: Annotated[str, Parameter(metavar="NAME", help="name of the profile")] = "this_machine",
    watts: Annotated[str | None, Parameter(metavar="WATTS", help="power of this machine while it computes")] = None,
    plugin: Plugins = (),
) -> int:
    """Measure this machine: a device profile for fleet.profiles."""
    from raffm_ray.fleet.command import calibrate

    return calibrate(settings, Path(config) if config else None, out, name, watts, plugin)


def settings(
    prefix: Annotated[
        str,
        Parameter(
            name="PREFIX",
            allow_leading_hyphen=True,
            help="a setting or a group, such as clients or local.learning_rate; default: all",
        ),
    ] = "",
    /,
    *,
    plugin: Plugins = (),
) -> int:
    """Print each setting of an experiment: its type, default, allowed values and meaning."""
    from raffm_ray.cli.settings_text import settings_text
    from raffm_ray.settings.plugins import with_plugins

    with_plugins({}, plugin)
    print(settings_text(prefix))
    return 0


def init(
    data: Annotated[
        str, Parameter(name="DATA", help="file of data (CSV, TSV, Parquet, JSON lines), or a folder of such files or of images")
    ],
    /,
    *,
    task: Annotated[str | None, Parameter(metavar="NAME", help="kind of task; default: what the columns look like")] = None,
    model: Annotated[
        str | None,
        Parameter(metavar="NAME|DIR", help="pretrained model: a name on the hub, or a folder; default: one that can run here"),
    ] = None,
    out: Annotated[str, Parameter(metavar="FILE", help="the file that is written")] = "experiment.yaml",
) -> int:
    """Write an experiment on your own data: looks at it, and writes a YAML file that is ready to run.

    Nothing is overwritten. What was seen and what was chosen is printed.
    """
    from raffm_ray.cli.starter import command

    return command(data, task, model, Path(out))


def _no_fleet_command(_: Any, word: str) -> None:
    raise UserError(f"fleet: {word!r} is not one of them{near_miss(word, FLEET, listed=True)}")


def fleet(*words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True, validator=_no_fleet_command)]) -> int:
    """Show the devices of an experiment, or measure this machine as one."""
    raise UserError(f"fleet: name one{near_miss('', FLEET, listed=True)}")


def shares(
    config: Config,
    /,
    *settings: Settings,
    out: Annotated[
        str | None, Parameter(metavar="FILE", help="the picture: a new file .png, .svg or .pdf; default: a new one in runs/")
    ] = None,
    plugin: Plugins = (),
) -> int:
    """Show who owns which data, as a table and a picture. Nothing is trained."""
    from raffm_ray.settings.loading import load

    experiment = load(config, settings, plugin)
    image = Path(out) if out else Path(f"{fresh_folder(f'{experiment.name}-shares')}.png")
    if image.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {image}: expected a name that ends in .png, .svg or .pdf")
    if image.exists():
        raise UserError(f"--out {image}: exists; nothing is overwritten")

    from raffm_ray.basics.formatting import counted, standard_output
    from raffm_ray.data.data_summary import group_line
    from raffm_ray.data.shares import by_device, share_table
    from raffm_ray.preparation.prepare import prepare
    from raffm_ray.reports.drawing import save
    from raffm_ray.reports.share_picture import picture_of_shares

    prepared = prepare(experiment)
    label_distribution, devices = prepared.label_distribution, by_device(prepared.setup.device_types, prepared.setup.budgets)
    title = f"{experiment.name}: {prepared.setup.experiment.clients.partition}, {counted(experiment.clients.count, 'client')}, seed {experiment.seed}"
    figure = picture_of_shares(label_distribution, devices, title)
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        save(figure, image)
    except OSError as error:
        raise UserError(f"--out {image}: cannot be written: {error.strerror}") from None
    console = standard_output()
    console.print(share_table(label_distribution, devices, title, group_line(prepared.task, prepared.parts.owned)))
    if left := len(prepared.task.clients) - int(label_distribution.sizes.sum()):
        console.print(f"{left:,} of {len(prepared.task.clients):,} examples are nobody's", highlight=False)
    console.print(f"picture: {image}", highlight=False, soft_wrap=True)
    return 0
