"""What is read back of a run's folder."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow.parquet as pq

from raffm_ray.errors import UserError
from raffm_ray.files import check_path

SUMMARY = "summary.json"
"""Written last: whoever has it is finished."""


def how_to_resume(folder: Path) -> str:
    """How to go on with the run in a folder that is not finished, as the end of an error; nothing where there is none."""
    there = (folder / "config.yaml").is_file() and not (folder / SUMMARY).is_file()
    return f"; raffm-ray resume {quote(str(folder))} goes on with the run that is not finished" if there else ""


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """A run's round records, in order. Raises UserError when there are none or one is damaged."""
    files = sorted((folder / "rounds").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder}: no finished run here (rounds/ holds no records){how_to_resume(folder)}")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            rows += pq.ParquetFile(file).read().to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: damaged or not a record of a round: {str(error).splitlines()[0]}") from None
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary. Raises UserError when it is missing or unreadable."""
    check_path(folder)
    path = folder / SUMMARY
    if not path.is_file():
        raise UserError(f"{folder}: no finished run here (summary.json is missing){how_to_resume(folder)}")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(summary, dict) or not {"name", "strategy", "tiers", "global", "bytes_full_size"} <= set(summary):
        raise UserError(f"{path}: not the summary of a run")
    return summary
