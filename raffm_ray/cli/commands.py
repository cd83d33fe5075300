"""What each command does with its words. What is heavy is imported where it is needed: `raffm-ray --help` takes a tenth of a second."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from raffm_ray.basics.errors import UserError, without_secrets
from raffm_ray.basics.flags import take_flag
from raffm_ray.cli.signals import telling_how_to_resume
from raffm_ray.runs.locations import fetched, fresh_folder, mirror_at

if TYPE_CHECKING:
    from raffm_ray.runs.mirror import Mirror
    from raffm_ray.settings.experiment import Experiment


def _config_path(command: str, rest: list[str]) -> Path:
    """Removes the YAML file's path from a command's words; shows every setting there where help is asked for."""
    if not rest or rest[0].startswith("-"):
        raise UserError(f"{command}: expected the path of a YAML file, for example: raffm-ray {command} experiments/digits.yaml")
    path = Path(rest.pop(0))
    if {"-h", "--help"} & set(rest):
        import tyro

        from raffm_ray.settings.experiment import Experiment
        from raffm_ray.settings.loading import load

        tyro.cli(Experiment, default=load(path), args=["--help"], prog=f"raffm-ray {command} {path}")
    return path


def _start_ahead(experiment: "Experiment") -> None:
    """Lets Ray start while everything heavy is imported."""
    if experiment.pool.backend == "ray":
        from raffm_ray.pool.ray_start import start_ahead

        start_ahead(experiment.pool)


def _show(summary: dict[str, Any], folder: Path, mirror: "Mirror | None" = None) -> int:
    """A finished run's table, and where its picture, report and records are."""

    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.reports.run_report import write_report
    from raffm_ray.reports.summary_table import summary_table
    from raffm_ray.runs.reader import of_a_run

    image, page = folder / "report.png", folder / "report.html"
    if not page.is_file():  # written last
        write_report(folder)
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


def run(words: Sequence[str]) -> int:
    """`raffm-ray run CONFIG.yaml [--key.path value ...] [--out DIR|URL]`."""
    rest = list(words)
    path = _config_path("run", rest)
    from raffm_ray.settings.loading import load

    chosen, handed = take_flag(rest, "--out"), take_flag(rest, "--hand-over")
    experiment = load(path, rest)
    mirror = mirror_at(chosen)
    folder = Path(chosen) if chosen and mirror is None else fresh_folder(experiment.name)
    _start_ahead(experiment)

    from rich.console import Console

    from raffm_ray.runs.simulation import simulate

    with telling_how_to_resume(folder, mirror.url if mirror else ""):
        code = _show(simulate(experiment, folder, Console(stderr=True), mirror=mirror), folder, mirror)
    if handed:
        from raffm_ray.cli.submit import hand_over

        hand_over(folder, handed, experiment)
    return code


def submit(words: Sequence[str]) -> int:
    """`raffm-ray submit CONFIG.yaml [--address URL] [--key.path value ...] [--out DIR|URL] [--pip PACKAGE,...]`."""
    rest = list(words)
    path = _config_path("submit", rest)
    from raffm_ray.cli.submit import command

    return command(rest, path)


def resume(words: Sequence[str]) -> int:
    """`raffm-ray resume DIR|URL [--key.path value ...]`."""
    if not words or words[0].startswith("-"):
        raise UserError("resume: expected the folder of a run, for example: raffm-ray resume runs/digits-20250101-120000")
    folder, mirror = fetched(words[0])

    from rich.console import Console

    from raffm_ray.runs.simulation import resume as go_on

    with telling_how_to_resume(folder, mirror.url if mirror else ""):
        return _show(go_on(folder, words[1:], Console(stderr=True), mirror=mirror), folder, mirror)


def _seeds(text: str) -> list[int]:
    """`0,1,2` -> [0, 1, 2]."""
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() for word in words):
        raise UserError(f"--seeds: expected whole numbers with commas between them, such as 0,1,2, got {text!r}")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: every seed once, got {text!r}")
    return seeds


def compare(words: Sequence[str]) -> int:
    """`raffm-ray compare CONFIG.yaml [--seeds 0,1,2] [--equal compute|bytes|memory|time] [--tune TRIALS] [--key.path value ...] [--out DIR]`."""
    rest = list(words)
    path = _config_path("compare", rest)
    from raffm_ray.settings.loading import load

    chosen, asked, equal, trials = (take_flag(rest, flag) for flag in ("--out", "--seeds", "--equal", "--tune"))
    if trials is not None and not (trials.isascii() and trials.isdigit() and int(trials) > 0):
        raise UserError(f"--tune: expected a number of trials, at least 1, got {trials!r}")
    experiment = load(path, rest)
    seeds = _seeds(asked) if asked else [experiment.seed]
    folder = Path(chosen) if chosen else fresh_folder(f"compare-{experiment.name}")
    _start_ahead(experiment)

    from rich.console import Console

    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.reports.comparison_table import notes, tables
    from raffm_ray.studies.comparison import compare as compare_strategies

    try:
        content = compare_strategies(experiment, seeds, folder, Console(stderr=True), equal, int(trials) if trials else None)
    except KeyboardInterrupt:
        told = f"; the same command with --out {quote(str(folder))} goes on where it stopped" if folder.exists() else ""
        raise KeyboardInterrupt(told) from None
    out = standard_output()
    for table in tables(content):
        out.print(table, "")
    for note in notes(content):
        out.print(note, style="dim", highlight=False)
    out.print(f"picture: {folder / 'comparison.png'}\ntable:   {folder / 'comparison.md'}", highlight=False, soft_wrap=True)
    out.print(f"runs:    {folder}", highlight=False, soft_wrap=True)
    return 0


def report(words: Sequence[str]) -> int:
    """`raffm-ray report DIR|URL [DIR|URL ...] [--out DIR]`."""
    rest = list(words)
    chosen = take_flag(rest, "--out")
    if not rest or any(word.startswith("-") for word in rest):
        raise UserError("report: expected folders of finished runs")
    if len(rest) > 1:
        from raffm_ray.reports.multi_run_report import write_comparison

        folders = [fetched(word, checkpoints=False)[0] for word in rest]
        print(write_comparison(folders, Path(chosen) if chosen else fresh_folder("report")))
        return 0
    if chosen:
        raise UserError("report: --out is for several runs; the report of one is written into its own folder")
    from raffm_ray.reports.run_report import write_report

    folder, mirror = fetched(rest[0], checkpoints=False)
    for path in write_report(folder):
        print(path)
    if mirror is not None:
        mirror.save(folder)
    return 0


def shares(words: Sequence[str]) -> int:
    """`raffm-ray shares CONFIG.yaml [--key.path value ...] [--out FILE.png]`."""
    rest = list(words)
    path = _config_path("shares", rest)
    from raffm_ray.settings.loading import load

    chosen = take_flag(rest, "--out")
    experiment = load(path, rest)
    image = Path(chosen) if chosen else Path(f"{fresh_folder(f'{experiment.name}-shares')}.png")
    if image.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out {image}: expected a name that ends in .png, .svg or .pdf")
    if image.exists():
        raise UserError(f"--out {image}: exists; nothing is overwritten")

    from raffm_ray.basics.formatting import standard_output
    from raffm_ray.data.shares import by_device, share_table
    from raffm_ray.preparation.prepare import prepare
    from raffm_ray.reports.drawing import save
    from raffm_ray.reports.share_picture import picture_of_shares

    prepared = prepare(experiment)
    label_distribution, devices = prepared.label_distribution, by_device(prepared.setup.classes, prepared.setup.budgets)
    title = f"{experiment.name}: {experiment.clients.partition}, {experiment.clients.count:,} clients, seed {experiment.seed}"
    figure = picture_of_shares(label_distribution, devices, title)
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        save(figure, image)
    except OSError as error:
        raise UserError(f"--out {image}: cannot be written: {error.strerror}") from None
    out = standard_output()
    out.print(share_table(label_distribution, devices, title))
    if left := len(prepared.task.clients) - int(label_distribution.sizes.sum()):
        out.print(f"{left:,} of {len(prepared.task.clients):,} examples are nobody's", highlight=False)
    out.print(f"picture: {image}", highlight=False, soft_wrap=True)
    return 0


def bench(words: Sequence[str]) -> int:
    """`raffm-ray bench [NAME ...] [flags]`: the speed suite, or `raffm-ray bench attention|extraction [flags]`."""
    rest = list(words)
    if rest[:1] == ["attention"]:
        from raffm_ray.benchmarks import attention

        return attention.command(rest[1:])
    if rest[:1] != ["extraction"]:
        from raffm_ray.benchmarks.suite import command

        return command(rest, fresh_folder, ["attention", "extraction"])
    name = rest.pop(0)
    from raffm_ray.benchmarks.extraction import extraction

    if {"-h", "--help"} & set(rest):
        import tyro

        from raffm_ray.benchmarks.extraction import DEFAULTS
        from raffm_ray.settings.experiment import Experiment
        from raffm_ray.settings.loading import parse

        tyro.cli(Experiment, default=parse(DEFAULTS), args=["--help"], prog=f"raffm-ray bench {name}")
    chosen = take_flag(rest, "--out")
    folder = Path(chosen) if chosen else fresh_folder(f"bench-{name}")

    from rich.console import Console

    from raffm_ray.basics.formatting import standard_output

    table = extraction(rest, folder, Console(stderr=True))
    out = standard_output()
    out.print(table)
    out.print(f"written to {folder}", highlight=False, soft_wrap=True)
    return 0


def fleet(words: Sequence[str]) -> int:
    """`raffm-ray fleet show CONFIG.yaml [...]`, `raffm-ray fleet calibrate [...]`."""
    from raffm_ray.fleet.command import fleet as command

    return command(words)


def study(words: Sequence[str]) -> int:
    """`raffm-ray study STUDY.yaml|DIR [--key.path value ...] [--out DIR]`."""
    from raffm_ray.studies.study import command

    return command(words, fresh_folder)


def deploy(words: Sequence[str]) -> int:
    """`raffm-ray deploy RUN|CHECKPOINT --budget KIND=VALUE|--device NAME|--sizes LIST [--out DIR]`, `raffm-ray deploy compare ...`."""
    from raffm_ray.deployment.command import command

    return command(words, fresh_folder)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "submit": submit,
    "resume": resume,
    "compare": compare,
    "study": study,
    "shares": shares,
    "report": report,
    "bench": bench,
    "fleet": fleet,
    "deploy": deploy,
}
