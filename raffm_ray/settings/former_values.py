"""What values of settings were called in earlier versions, whose files are still read, and what these versions did where theirs say nothing."""

from collections.abc import Mapping
from typing import Any

Names = Mapping[tuple[str, str], Mapping[str, str]]

PRESENT_VALUES: Names = {("evaluation", "watch"): {"global": "full_model"}}
"""(section, setting) -> what a value was called -> what it is called now."""
UNSAID: Mapping[tuple[str, str], Any] = {
    ("task", "pack"): False,
    ("strategy", "vocabulary"): "whole",
    ("local", "label_skew"): "ignore",
}
"""(section, setting) -> what runs did that do not say it."""


def with_present_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, whatever is wrong with them, with the values of earlier versions as they are called now."""
    return _renamed(values, PRESENT_VALUES)


def with_former_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The other way round: nested settings as an earlier version wrote them."""
    return _renamed(values, {key: {now: before for before, now in called.items()} for key, called in PRESENT_VALUES.items()})


def _renamed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    result = dict(values)
    for (section, name), called in names.items():
        within = result.get(section)
        if isinstance(within, dict) and isinstance(given := within.get(name), str):
            result[section] = {**within, name: called.get(given, given)}
    return result
