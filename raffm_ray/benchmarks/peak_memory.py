"""How much memory an action takes at its peak, on the CPU, where torch does not count: by what the process holds."""

import ctypes
import gc
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path

from raffm_ray.basics.machine import peak_rss_bytes

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _MMAP_MAX = -3, -1, -4
"""mallopt(3)'s names for its parameters."""
_SMALL_BYTES = 65536


def _field(name: str) -> int | None:
    """A size in bytes of what Linux says of this process; None elsewhere."""
    if not STATUS.exists():
        return None
    line = next((line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")), None)
    return None if line is None else 1024 * int(line.split()[1])


def resident_bytes() -> int:
    """What this process holds now; where that is not told, the most that it held."""
    return _field("VmRSS") or peak_rss_bytes()


def return_memory_at_once() -> None:
    """Has glibc give freed memory back, so that what is held is what is used. Elsewhere nothing changes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_MMAP_MAX, 65536)  # glibc's own value
        library.mallopt(_MMAP_THRESHOLD, _SMALL_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _SMALL_BYTES)
        library.malloc_trim(0)


def peak_growth(action: Callable[[], object]) -> tuple[int, str]:
    """By how many bytes, at least a page, the process grew while the action ran, and how that is known.

    Linux: the peak (VmHWM), reset before, over what was held before (VmRSS). Where it cannot be reset: over the peak before, which is
    right only for an action that takes more than everything before it.
    """
    gc.collect()
    return_memory_at_once()
    try:
        CLEAR.write_text("5", encoding="ascii")
    except OSError:
        before = peak_rss_bytes()
        action()
        return max(PAGESIZE, peak_rss_bytes() - before), "growth of the peak resident set since the process began"
    before = resident_bytes()
    action()
    return max(
        PAGESIZE, (_field("VmHWM") or peak_rss_bytes()) - before
    ), "growth of the resident set to its peak (VmHWM, reset before)"
