"""The page of a comparison in Markdown, its picture beside it. Numbers of other code or settings are only replaced where that is asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import write_atomically
from raffm_ray.data.metrics import shown
from raffm_ray.reports.comparisons.table import markdown
from raffm_ray.runs.reader import read_summary
from raffm_ray.studies.published.origin import Origin, facts_of, read_origin, starts_of

ENDING = ".md"
SHOWN_DIGITS = 16
"""Of the digest of a run's parameters."""


class PageRequest(NamedTuple):
    """`path`: of the page, which ends in `.md`; `renew`: whether it may replace numbers of another commit or of other settings."""

    path: Path
    renew: bool = False

    @property
    def picture(self) -> Path:
        """Beside the page, with its name."""
        return self.path.with_suffix(".png")


def check_place(request: PageRequest) -> None:
    """Raises UserError where the page cannot be written, or something else would be overwritten."""
    path = request.path
    if path.suffix != ENDING:
        raise UserError(f"--page {path}: expected a name that ends in {ENDING}")
    picture = request.picture
    if path.is_dir() or picture.is_dir():
        raise UserError(f"--page {path}: is a folder, or {picture.name} beside it is")
    if path.exists() and _read(path) is None:
        raise UserError(f"--page {path}: exists, and no comparison wrote it; nothing is overwritten: name another file")
    if picture.exists() and not path.exists():
        raise UserError(f"--page {path}: {picture.name} beside it exists already; nothing is overwritten: name another file")


def check_origin(request: PageRequest, origin: Origin) -> None:
    """Raises UserError where the page there holds numbers of other code or settings than `origin`, and may not be renewed."""
    there = _read(request.path) if request.path.exists() else None
    if there is None or request.renew or (there == origin and origin.is_a_commit):
        return
    lead = f"--page {request.path}: holds numbers"
    if there.version != origin.version:
        told = f"{lead} of {there.version}, and these are of {origin.version}"
    elif there.settings != origin.settings:
        told = f"{lead} of other settings or seeds"
    else:
        told = f"{lead} of modified code, which may have been other code"
    raise UserError(f"{told}: --renew replaces them")


def _read(path: Path) -> Origin | None:
    try:
        return read_origin(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--page {path}: cannot be read: {error}") from None


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *cells]]


def page_text(content: Mapping[str, Any], origin: Origin, runs: Sequence[tuple[str, int, Path]], picture: str) -> str:
    """The page. `content`: of `comparison.json`; `runs`: (strategy, seed, folder); `picture`: name of its file."""
    folders = [folder for *_, folder in runs]
    heading, numbers = markdown(content).strip().split("\n\n", 1)
    commands = dict.fromkeys(start["command"] for start in starts_of(folders) if start["command"])
    block = ["```bash", *commands, "```", ""] if commands else []
    rows = []
    for strategy, seed, folder in runs:
        summary, metric = read_summary(folder), content["metric"]
        metrics = (summary["full_model"], summary["worst_device_type"]["metric"])
        digest = summary["params_sha256"][:SHOWN_DIGITS]
        rows.append([strategy, str(seed), *(shown(metric, value) for value in metrics), f"`{digest}`"])
    lines = [
        *(heading, "", *block, f"![Every strategy over rounds and over sizes, and how they stand]({picture})", "", numbers, ""),
        *("## What the numbers come from", "", *_table(["what", "which"], list(facts_of(origin, folders).items())), ""),
        *(
            "## Every run",
            "",
            *_table(["strategy", "seed", "full model", "worst device type", "SHA-256 of the parameters"], rows),
        ),
    ]
    return "\n".join(lines) + "\n"


def write_published(request: PageRequest, text: str, drawn: Path) -> None:
    """Writes the page, and a copy of its picture. `drawn`: the picture of the comparison."""
    try:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(request.picture, drawn.read_bytes())
        write_atomically(request.path, text.encode())
    except OSError as error:
        raise UserError(f"--page {request.path}: cannot be written: {error.strerror}") from None
