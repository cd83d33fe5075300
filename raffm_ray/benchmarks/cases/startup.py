"""From the command to the end of the first round, in fresh processes."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time

import yaml

from raffm_ray.benchmarks.measurement import Bench, Row, interleaved
from raffm_ray.benchmarks.synthetic_data import vit

SECONDS = 10.0
"""The most that a run may take to the end of its first round, on 2 cores."""


def _configuration(workers: int, in_process: bool) -> dict[str, object]:
    """The embedded digits, a tiny ViT that nobody pretrained; round 1 is not evaluated."""
    return {
        "name": "start",
        "rounds": 2,
        "model": {"config": vit(32, 3, 4), "pretrain": {"epochs": 0}},
        "strategy": {"name": "full"},
        "evaluation": {"every": 2, "sizes": 0},
        "pool": {"backend": "in_process"} if in_process else {"workers": workers},
    }


def first_round_seconds(folder: Path, workers: int, in_process: bool) -> float:
    """From `raffm-ray run` to its first round's record, by the time at which that was written."""
    config, out = folder / "start.yaml", folder / "run"
    config.write_text(yaml.safe_dump(_configuration(workers, in_process)), encoding="utf-8")
    start = time()
    command = [sys.executable, "-m", "raffm_ray.cli", "run", str(config), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"raffm-ray run failed: {done.stderr.strip()[-500:]}")
    return (out / "rounds" / "round-000001.parquet").stat().st_mtime - start


def start(bench: Bench) -> list[Row]:
    """Seconds from `raffm-ray run` to the end of round 1; the limit imports the libraries, starts Ray and its workers, and nothing else."""
    workers = 0 if bench.quick else bench.workers

    def ours() -> float:
        with TemporaryDirectory() as folder:
            return first_round_seconds(Path(folder), bench.workers, bench.quick)

    def bare() -> float:
        began = perf_counter()
        code = f"from raffm_ray.benchmarks.bare_ray import bare_start; bare_start({workers})"
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return perf_counter() - began

    measured, limit = interleaved(bench, bench.few, (ours, bare))
    return [Row("to the end of round 1", "s", measured, limit, SECONDS, "ours")]
