"""The base class of all settings, and what marks those that name a place."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FILE: Final[dict[str, Any]] = {"place": "file", "names": []}
"""Marks a setting that names a file."""
DATA: Final[dict[str, Any]] = {"place": "data", "names": []}
"""Marks a setting that names a file or folder of data, or a data set `owner/name` on the hub."""
MODEL: Final[dict[str, Any]] = {"place": "model", "names": ["all-MiniLM-L6-v2"]}
"""Marks a setting that names the folder of a model, a model on the hub, or one of `names`, which a Python package carries."""
