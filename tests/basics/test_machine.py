"""How many cores a process may use: affinity, and quotas of control groups as containers and schedulers set them."""

import os
from pathlib import Path

import pytest
import ray

from raffm_ray.basics import machine
from raffm_ray.basics.machine import usable_cores
from raffm_ray.pool import ray_start
from raffm_ray.settings.execution import PoolSettings

SECOND, FIRST = "0::/a.slice/b.scope\n", "5:devices:/\n3:cpu,cpuacct:/docker/c\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("", {}, 8),
        (SECOND, {}, 8),
        (SECOND, {"a.slice/b.scope/cpu.max": "max 100000"}, 8),
        (SECOND, {"a.slice/b.scope/cpu.max": "200000 100000"}, 2),
        (SECOND, {"a.slice/b.scope/cpu.max": "150000 100000"}, 2),  # a part of a core is one
        (SECOND, {"a.slice/b.scope/cpu.max": "20000 100000"}, 1),
        (SECOND, {"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "300000 100000"}, 3),
        (SECOND, {"cpu.max": "400000 100000"}, 4),  # a container whose own group is the root
        (SECOND, {"a.slice/b.scope/cpu.max": "9900000 100000"}, 8),
        (SECOND, {"other/cpu.max": "100000 100000"}, 8),
        (FIRST, {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        (FIRST, {"cpu,cpuacct/docker/c/cpu.cfs_quota_us": "50000", "cpu,cpuacct/docker/c/cpu.cfs_period_us": "50000"}, 1),
        (FIRST, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 8),  # ray-project/ray 10809
        (FIRST, {"devices/cpu.cfs_quota_us": "100000", "devices/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_those_that_quotas_leave(own, files, cores, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert usable_cores(tmp_path / "own", tmp_path / "groups") == cores


def test_ray_gets_the_cores_that_this_process_may_use(tmp_path, monkeypatch) -> None:
    """As under `taskset`; control: more workers that are asked for."""
    asked = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_preload_python_modules", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(ray_start, "_folder", lambda: tmp_path)
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["num_cpus"]))
    for settings in (PoolSettings(), PoolSettings(workers=3)):
        ray_start._start(settings)
    assert asked == [1, 3]


@pytest.mark.skipif(not machine.OWN_GROUPS.is_file() or not hasattr(os, "sched_setaffinity"), reason="only Linux has these")
def test_cores_of_this_machine_are_those_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert usable_cores(Path("/nowhere"), Path("/nowhere")) == len(before)
