"""What this machine is: its processor, its memory, and what this process takes of it."""

import os
import platform
import resource
import sys

CPUINFO = "/proc/cpuinfo"


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


BFLOAT16_FEATURES = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Names, in Linux' /proc/cpuinfo, of instructions that multiply bfloat16: of Intel and AMD, and of ARM."""


def fast_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, as Linux says; elsewhere it is taken to have none.

    torch says it in functions that are its own and differ by version.
    """
    if not os.path.exists(CPUINFO):
        return False
    with open(CPUINFO, encoding="utf-8") as file:
        lines = [line.split(":", 1)[1].split() for line in file if line.startswith(("flags", "Features"))]
    return any(BFLOAT16_FEATURES.intersection(line) for line in lines[:1])


def peak_rss_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
