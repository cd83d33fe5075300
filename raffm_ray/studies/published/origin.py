"""What the numbers of a comparison come from: versions, settings, hardware and hours, of the records of its runs."""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from raffm_ray.basics.version import version_text
from raffm_ray.reports.run_story import made_with_facts, setting_facts
from raffm_ray.runs.made_with import read_starts
from raffm_ray.runs.reader import SUMMARY, read_configuration, read_rounds, read_summary
from raffm_ray.settings.experiment import Experiment

CHANGES_NO_RESULT = {"pool", "checkpoint", "loggers"}
MODIFIED = ", modified)"
"""What a version says of code that is no commit's: two such versions may be unlike."""


class Origin(NamedTuple):
    """`version`: of the code, several with `; then` between them; `settings`: a digest of all runs' settings and seeds."""

    version: str
    settings: str

    @property
    def is_a_commit(self) -> bool:
        """Whether the code of the numbers can be had again."""
        return MODIFIED not in self.version


def digest_of_settings(experiments: Sequence[Experiment]) -> str:
    """Of everything that the results of these runs depend on; 12 hexadecimal digits."""
    own = [one.model_dump(mode="json", exclude=CHANGES_NO_RESULT) for one in experiments]
    return sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def starts_of(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """All starts of all runs, the earliest first."""
    return sorted((start for folder in folders for start in read_starts(folder)), key=lambda start: str(start["started"]))


def origin_of(experiments: Sequence[Experiment], folders: Sequence[Path]) -> Origin:
    """Of runs in these folders: as they are recorded, and for those not yet finished also of this process. `experiments`: the runs' own."""
    versions = [start["version"] for start in starts_of(folders)]
    if not all((folder / SUMMARY).is_file() for folder in folders):
        versions.append(version_text())
    return Origin("; then ".join(dict.fromkeys(versions)), digest_of_settings(experiments))


def facts_of(origin: Origin, folders: Sequence[Path]) -> dict[str, str]:
    """What a page says of the origin, by heading. `folders`: of finished runs."""
    starts = starts_of(folders)
    facts = dict(made_with_facts(starts)) | {"Version": origin.version, "Settings": origin.settings}
    facts.pop("Command", None)
    if starts:
        first, last = (str(start["started"]).replace("T", " ").replace("+00:00", " UTC") for start in (starts[0], starts[-1]))
        facts["Started"] = f"the first run {first}, the last {last}"
    return facts | {"Time": _hours(folders)} | dict(setting_facts(read_configuration(folders[0])[1], read_summary(folders[0])))


def read_origin(text: str) -> Origin | None:
    """The origin that a page tells; None of a text that is no such page."""
    found = [re.search(rf"^\| {heading} \| (.+) \|$", text, re.MULTILINE) for heading in ("Version", "Settings")]
    return Origin(*(one[1] for one in found if one)) if all(found) else None


def _hours(folders: Sequence[Path]) -> str:
    """Real hours of all rounds, and times the processes that trained in them; one thread each. The sizes that are measured after the last
    round are not in it."""
    hours = [sum(row["wall_seconds"] for row in read_rounds(folder)) / 3600 for folder in folders]
    used = [one * _workers(folder) for one, folder in zip(hours, folders, strict=True)]
    return f"{_shown(sum(hours))} hours of rounds, {_shown(sum(used))} CPU hours (hours of rounds times worker processes)"


def _shown(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _workers(folder: Path) -> int:
    """Worker processes of a run: as set, else one for each core of the machine that it was started on."""
    pool: Mapping[str, Any] = read_configuration(folder)[1].get("pool", {})
    if pool.get("backend") == "in_process":
        return 1
    return pool.get("workers") or max((int(start["cores"]) for start in read_starts(folder)), default=1)
