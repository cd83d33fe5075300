"""What this machine is: its processor, its memory, and what this process takes of it."""

import ctypes
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path

CPUINFO = "/proc/cpuinfo"
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says in which control groups this process is, and what they allow."""


def usable_cores(own: Path = OWN_GROUPS, groups: Path = GROUPS) -> int:
    """How many cores this process may use, at least 1: those of its affinity (`taskset`, a scheduler's cpuset), and no more than the quotas of
    its control groups come to (a container's `--cpus`, a unit's CPUQuota), a part of a core counted as one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(ceil(quota) for quota in _quotas(own, groups))]))


def _quotas(own: Path, groups: Path) -> Iterator[float]:
    """In cores, of the control groups of both versions that this process is in, up to the root; a container may see its own group as the root."""
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers
        if not controllers:
            root = groups / "unified" if (groups / "unified").is_dir() else groups
        inside = Path(path.lstrip("/"))
        for folder in (root / inside, *(root / parent for parent in inside.parents)):
            words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
            if len(words) == 2 and all(word.isdigit() and int(word) for word in words):  # "max" and -1 are no quota
                yield int(words[0]) / int(words[1])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def memory_bytes() -> tuple[int, int]:
    """All of the machine's memory, and what of it is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


def processor() -> str:
    """What the machine calls its processor."""
    if os.path.exists(CPUINFO):
        with open(CPUINFO, encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


MATRIX_UNITS, PAIRED_PRODUCTS, AMD = "amx_bf16", "avx512_bf16", "AuthenticAMD"
"""Names, in Linux' /proc/cpuinfo, of instructions that multiply matrices of bfloat16 (Intel AMX), of those that multiply pairs of them, and of a vendor."""


def fast_bfloat16() -> bool:
    """Whether training in bfloat16 was measured to be faster than in float32 on processors of this kind: those with AMX, and those of AMD with
    AVX512-BF16.

    With AVX512-BF16 a step took 0.55 of float32's on an AMD EPYC of Zen 4, whose float32 units are half as wide, but 1.3 times as long on an
    Intel Xeon without its AMX; with AVX512 alone 3 times (docs/explanation/speed.md). Linux is asked, since torch's functions for it are its own
    and differ by version; elsewhere a processor is taken to have none.
    """
    if not os.path.exists(CPUINFO):
        return False
    with open(CPUINFO, encoding="utf-8") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    known = {key.strip(): value.split() for key, value in reversed(lines)}
    features, vendor = known.get("flags", known.get("Features", [])), known.get("vendor_id", [])
    return MATRIX_UNITS in features or (PAIRED_PRODUCTS in features and AMD in vendor)


STATUS = Path("/proc/self/status")


def status_bytes(name: str) -> int | None:
    """A size in bytes of what Linux says of this process, such as VmRSS or VmHWM; None elsewhere."""
    if not STATUS.exists():
        return None
    line = next((line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")), None)
    return None if line is None else 1024 * int(line.split()[1])


def resident_bytes() -> int:
    """What this process holds now; where that is not told, the most that it held."""
    return status_bytes("VmRSS") or peak_rss_bytes()


def return_freed_memory() -> None:
    """Has glibc give freed memory back to the system, where there is a glibc: it keeps what is freed in small pieces, gigabytes after
    a model was trained."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Has glibc give back what is freed already."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
