"""The folder in which pretrained models and tokenized data are cached."""

import os
from pathlib import Path
from tempfile import TemporaryFile

from raffm_ray.basics.errors import UserError


def cache_folder() -> Path:
    """`RAFFM_CACHE`, else `raffm_ray` in the user's cache folder."""
    chosen = os.environ.get("RAFFM_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raffm_ray"


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
