"""The folders in which pretrained models, tokenized data and what libraries download are cached."""

import os
from pathlib import Path
from tempfile import TemporaryFile

from raffm_ray.basics.errors import UserError

LIBRARIES = {"HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib"}
"""A variable that names a library's own folder -> that folder within `cache_folder()`."""


def cache_folder() -> Path:
    """`RAFFM_CACHE`, else `raffm_ray` in the user's cache folder. Raises UserError for a user without a home."""
    chosen = os.environ.get("RAFFM_CACHE")
    folder = Path(chosen) if chosen else users_cache() / "raffm_ray"
    if not chosen and not folder.is_absolute():
        raise UserError("HOME: this user has no home folder: RAFFM_CACHE names a folder for all caches")
    return folder


def users_cache() -> Path:
    """What the user's caches are in; it begins with `~` where nothing says where the user's home is."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def writable_cache() -> Path:
    """`cache_folder()`, made. Raises UserError when it cannot be written to."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # under a name of its own: threads, and machines that share the folder, try it at once
            pass
    except OSError as error:
        raise UserError(f"the cache folder {folder} cannot be written to ({error.strerror}); RAFFM_CACHE names another") from None
    return folder


def can_be_made(folder: Path) -> bool:
    """Whether a folder is there and can be written to, or could be made; it is tried, in the nearest one that is there. One that is not
    absolute would be a new one named `~`."""
    nearest = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    try:
        with TemporaryFile(dir=nearest):
            return folder.is_absolute()
    except OSError:
        return False


def lend_cache() -> None:
    """Has libraries keep what they keep under `RAFFM_CACHE`, where the user's own cache folder cannot be written to and nothing else says where;
    before they are imported, when they look."""
    if os.environ.get("RAFFM_CACHE") and not can_be_made(users_cache()):
        for name, part in LIBRARIES.items():
            os.environ.setdefault(name, str(cache_folder().absolute() / part))


def check_libraries_cache(folder: str | Path) -> None:
    """Raises UserError where a folder in which a library of Hugging Face is about to write cannot be made or written to."""
    if not can_be_made(Path(folder)):
        raise UserError(
            f"HF_HOME: the cache folder {folder} of the Hugging Face libraries cannot be written to: HF_HOME names another, or RAFFM_CACHE one for "
            "all caches"
        )
