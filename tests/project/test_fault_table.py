"""The table of deliberate faults quotes the code as it is: a fault that cannot be planted tests nothing."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_can_be_planted_at_one_place() -> None:
    faults = tomllib.loads((ROOT / "tests" / "faults.toml").read_text(encoding="utf-8"))["fault"]
    found = {one["name"]: (ROOT / one["file"]).read_text(encoding="utf-8").count(one["old"]) for one in faults}
    assert {name: count for name, count in found.items() if count != 1} == {}
    assert len(found) == len(faults)
