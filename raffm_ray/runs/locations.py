"""Where a command's runs are: new folders, given folders, and URLs."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from raffm_ray.basics.flags import is_url

if TYPE_CHECKING:
    from raffm_ray.runs.mirror import Mirror


def fresh_folder(name: str) -> Path:
    """runs/<name>-<time>, with a number behind it when another run took that in the same second."""
    first = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    return next(path for path in (first, *(Path(f"{first}-{number}") for number in range(2, 1000))) if not path.exists())


def mirror_at(place: str | None) -> "Mirror | None":
    """What a run's folder is copied to, where that is a URL. Raises UserError where it cannot be opened."""
    if not is_url(place or ""):
        return None
    from raffm_ray.runs.mirror import Mirror

    return Mirror(place or "")


def fetched(place: str, checkpoints: bool = True) -> "tuple[Path, Mirror | None]":
    """A run's folder: as it is named, or a new one with what is at a URL."""
    mirror = mirror_at(place)
    if mirror is None:
        return Path(place), None
    folder = fresh_folder(re.sub(r"[^\w.-]", "-", mirror.url.split("?")[0].rsplit("/", 1)[-1])[:100])
    mirror.fetch(folder, checkpoints)
    return folder, mirror
