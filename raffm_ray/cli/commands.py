"""What each command about runs does. What is heavy is imported where it is needed: a command's help is shown at once."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from raffm_ray.basics.errors import UserError, without_secrets
from raffm_ray.basics.flags import is_url, whole
from raffm_ray.cli.flags import Config, Moved, Out, Plugins, Run, RunOut, Settings, Switch
from raffm_ray.cli.signals import telling_how_to_resume
from raffm_ray.runs.locations import fetched, fresh_folder, mirror_at

if TYPE_CHECKING:
    from raffm_ray.runs.mirror import Mirror
    from raffm_ray.settings.experiment import Experiment


def _start_ahead(experiment: "Experiment") -> None:
    """Lets Ray start while everything heavy is imported."""
    if experiment.pool.backend == "ray":
        from raffm_ray.pool.ray_start import start_ahead

        start_ahead(experiment.pool)


def _show(summary: dict[str, Any], folder: Path, mirror: "Mirror | None" = None) -> int:
    """A finished run's table, and where its picture, report and records are."""
    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.reports.run_report import report_of
    from raffm_ray.reports.run_story import summary_table
    from raffm_ray.runs.reader import of_a_run

    image, page = folder / "report.png", report_of(folder)
    if mirror is not None:
        mirror.save(folder)
    out = standard_output()
    with of_a_run(folder):
        table, refused = summary_table(summary), int(summary["rejected_updates"])
        out.print(table)
    if refused:
        told = f"{refused} updates of clients were refused: {folder / 'clients'} says why"
        out.print(f"warning: {told}; a lower local.learning_rate may help", style="bold red", highlight=False)
    out.print(f"picture: {image}\nreport:  {page}\nrecords: {folder}", highlight=False, soft_wrap=True)
    if mirror is not None:
        out.print(f"copy:    {without_secrets(mirror.url)}", highlight=False, soft_wrap=True)
    return 0


def run(
    config: Config,
    /,
    *settings: Settings,
    out: RunOut = None,
    plugin: Plugins = (),
    hand_over: Annotated[str | None, Parameter(show=False)] = None,
) -> int:
    """Run an experiment: a simulation, its records, a picture and a report."""
    from raffm_ray.settings.loading import load

    experiment = load(config, settings, plugin)
    mirror = mirror_at(out)
    folder = Path(out) if out and mirror is None else fresh_folder(experiment.name)
    _start_ahead(experiment)

    from rich.console import Console

    from raffm_ray.reports.run_report import write_report
    from raffm_ray.runs.simulation import simulate

    with telling_how_to_resume(folder, mirror.url if mirror else ""):
        summary = simulate(experiment, folder, Console(stderr=True), mirror=mirror, report=write_report)
        code = _show(summary, folder, mirror)
    if hand_over:
        from raffm_ray.cli.submit import hand_over as leave

        leave(folder, hand_over, experiment)
    return code


def submit(
    config: Config,
    /,
    *settings: Settings,
    address: Annotated[
        str | None,
        Parameter(metavar="URL", help="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS"),
    ] = None,
    out: Annotated[
        str | None,
        Parameter(
            metavar="DIR|URL",
            help="relative: folder here for the report that is brought back; absolute path or URL: folder of the whole run on the cluster",
        ),
    ] = None,
    pip: Annotated[str | None, Parameter(metavar="PACKAGE,...", help="Python packages that the job needs")] = None,
    plugin: Plugins = (),
) -> int:
    """Run an experiment as a job on a Ray cluster: shows its log, and brings its report back.

    The current folder is sent to the cluster, but for what .gitignore and .rayignore exclude.
    """
    from raffm_ray.cli.submit import command

    return command(Path(config), settings, address, out, pip, plugin)


def resume(run: Run, /, *settings: Settings, plugin: Moved = ()) -> int:
    """Go on with a run that was interrupted; with --rounds N, also with one that is finished, to more rounds.

    Otherwise only settings that change no result may be others, such as --pool.workers.
    """
    folder, mirror = fetched(run)

    from rich.console import Console

    from raffm_ray.reports.run_report import write_report
    from raffm_ray.runs.simulation import resume as go_on

    with telling_how_to_resume(folder, mirror.url if mirror else ""):
        summary = go_on(folder, settings, Console(stderr=True), mirror=mirror, plugins=plugin, report=write_report)
        return _show(summary, folder, mirror)


def _seeds(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]."""
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise UserError(f"--seeds: expected whole numbers with commas between them, such as 0,1,2, got {text!r}")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: every seed once, got {text!r}")
    return seeds


def compare(
    config: Config,
    /,
    *settings: Settings,
    seeds: Annotated[
        str | None, Parameter(metavar="0,1,2", help="seeds of every strategy's runs; default: the experiment's")
    ] = None,
    equal: Annotated[
        str | None,
        Parameter(metavar="compute|bytes|memory|time", help="what is held equal: budgets and rounds are converted to it"),
    ] = None,
    tune: Annotated[
        int | None,
        Parameter(
            metavar="TRIALS",
            converter=whole("a number of trials, at least 1"),
            help="chooses each strategy's learning rate before, with that many trials",
        ),
    ] = None,
    target: Annotated[
        float | None,
        Parameter(
            metavar="VALUE", help="a value of the metric, such as 0.85: what each strategy spent until its full model had it"
        ),
    ] = None,
    page: Annotated[
        str | None,
        Parameter(metavar="FILE.md", help="a page to publish, with what its numbers come from, and its picture beside it"),
    ] = None,
    renew: Annotated[Switch, Parameter(help="the page may replace numbers of another commit or of other settings")] = False,
    out: Out = None,
    plugin: Plugins = (),
) -> int:
    """Compare an experiment's strategy with its baselines, over seeds: one table, one picture.

    The same command with the same --out goes on with a comparison that was interrupted.
    """
    from raffm_ray.settings.loading import load

    experiment = load(config, settings, plugin)
    chosen = _seeds(seeds) if seeds else [experiment.seed]
    if renew and page is None:
        raise UserError("compare: --renew is for --page")
    folder = Path(out) if out else fresh_folder(f"compare-{experiment.name}")
    _start_ahead(experiment)

    from rich.console import Console

    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.reports.comparisons.sentences import notes
    from raffm_ray.reports.comparisons.table import tables
    from raffm_ray.studies.comparison import compare as compare_strategies

    try:
        content = compare_strategies(experiment, chosen, folder, Console(stderr=True), equal, tune, page, renew, target)
    except KeyboardInterrupt:
        told = f"; the same command with --out {quote(str(folder))} goes on where it stopped" if folder.exists() else ""
        raise KeyboardInterrupt(told) from None
    console = standard_output()
    for table in tables(content):
        console.print(table, "")
    for note in notes(content):
        console.print(note, style="dim", highlight=False)
    console.print(
        f"picture: {folder / 'comparison.png'}\ntable:   {folder / 'comparison.md'}\nruns:    {folder}",
        highlight=False,
        soft_wrap=True,
    )
    if page:
        console.print(f"page:    {page}", highlight=False, soft_wrap=True)
    return 0


def study(
    study: Annotated[str, Parameter(name="STUDY|DIR", help="file with a study, or the folder of one to go on with")],
    /,
    *settings: Settings,
    out: Out = None,
    plugin: Plugins = (),
) -> int:
    """Search for the best settings with Optuna.

    --key value overrides keys of the file. The same command with the same --out goes on with a study that was interrupted.
    """
    from raffm_ray.studies.study import command

    return command(Path(study), settings, out, fresh_folder, plugin)


def report(
    *runs: Annotated[str, Parameter(name="DIR", help="folders of runs, or URLs of their copies; one alone need not be finished")],
    out: Annotated[
        str | None, Parameter(metavar="DIR", help="with several runs: folder of the comparison; default: a new one in runs/")
    ] = None,
    plugin: Moved = (),
    live: Annotated[
        Switch, Parameter(help="show it in a browser, on this machine alone, and renew it while the run works")
    ] = False,
    port: Annotated[
        int | None,
        Parameter(metavar="N", converter=whole("the number of a port"), help="with --live: where; default: one that is free"),
    ] = None,
) -> int:
    """Draw the pictures and the HTML page of a run, or of several side by side."""
    if not runs:
        raise UserError("report: expected folders of finished runs")
    if live:
        return _live(runs, out, plugin, port or 0)
    if port:
        raise UserError("report: --port is for --live")
    if len(runs) > 1:
        from raffm_ray.reports.comparisons.report import write_comparison

        folders = [fetched(word, checkpoints=False)[0] for word in runs]
        print(write_comparison(folders, Path(out) if out else fresh_folder("report"), plugin))
        return 0
    if out:
        raise UserError("report: --out is for several runs; the report of one is written into its own folder")
    from raffm_ray.reports.run_report import write_report

    folder, mirror = fetched(runs[0], checkpoints=False)
    for path in write_report(folder, plugin):
        print(path)
    if mirror is not None:
        mirror.save(folder)
    return 0


def _live(runs: tuple[str, ...], out: str | None, plugins: tuple[str, ...], port: int) -> int:
    if len(runs) > 1 or out or is_url(runs[0]):
        raise UserError("report: --live is for the folder of one run on this machine, and writes nothing")
    if port > 65535:
        raise UserError(f"--port {port}: ports are numbered up to 65535")
    from raffm_ray.reports.live import serve

    serve(Path(runs[0]), plugins, port, lambda line: print(line, flush=True))
    return 0
