"""The base class of all settings, types that they have, and what marks those that name a place."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Settings(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def changed_values(settings: Settings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that were given, nested, with changes; a mapping changes a group of settings, and replaces all else."""
    values = settings.model_dump(exclude_unset=True)
    for key, change in changes.items():
        now = getattr(settings, key, None)
        values[key] = changed_values(now, change) if isinstance(now, Settings) and isinstance(change, Mapping) else change
    return values


def _weights_by_name(value: Any) -> Any:
    """Names as texts, also of classes that are numbers. Raises ValueError for what is no weight."""
    weights = value if isinstance(value, dict) else {}
    wrong = [f"{name}: {one}" for name, one in weights.items() if type(one) not in (int, float) or not one > 0]
    if wrong or (not isinstance(value, dict) and value not in ("none", "balanced")):
        told = f", got {wrong[0][:60]}" if wrong else ""
        raise ValueError(f"must be none, balanced, or a mapping from classes to weights above 0{told}")
    return {str(name): weight for name, weight in weights.items()} if isinstance(value, dict) else value


ClassWeights = Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_weights_by_name)]
"""What examples of a class count."""
FILE: Final[dict[str, Any]] = {"place": "file", "names": []}
"""Marks a setting that names a file."""
DATA: Final[dict[str, Any]] = {"place": "data", "names": []}
"""Marks a setting that names a file or folder of data, or a data set `owner/name` on the hub."""
MODEL: Final[dict[str, Any]] = {"place": "model", "names": ["all-MiniLM-L6-v2"]}
"""Marks a setting that names the folder of a model, a model on the hub, or one of `names`, which a Python package carries."""
