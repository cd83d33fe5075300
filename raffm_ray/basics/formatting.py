"""Numbers as people read them, and the console that they are printed on."""

import re

from rich.console import Console


def magnitude(largest: float, symbol: str) -> tuple[float, str]:
    """The unit that suits a scale up to `largest`, and how much it is: (1e6, "MB") for 5e6 and "B"."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if largest >= scale:
            return scale, f"{prefix}{symbol}"
    return (1e-3, f"m{symbol}") if largest > 0 else (1.0, symbol)


def standard_output() -> Console:
    """Standard output, 100 columns wide where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=100)


def counted(count: int, noun: str) -> str:
    """(1, "round") -> `1 round`; (2000, "round") -> `2,000 rounds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def without_numbers(text: str) -> str:
    """A sentence with its numbers left out: equal for sentences that say the same of other numbers."""
    return re.sub(r"\d[\d.,]*(?:e[+-]?\d+)?", "#", text)


def rounded(value: float) -> str:
    """Three digits, and those before the point in any case: 0.01234 -> `0.0123`; 1420.4 -> `1,420`."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def human_bytes(count: float) -> str:
    """1536 -> `1.5 kB` (powers of 1000)."""
    for name in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or name == "TB":
            return f"{count:.0f} {name}" if name == "B" else f"{count:.1f} {name}"
        count /= 1000
    raise AssertionError


def setting_text(key: str, value: object) -> str:
    """A setting's value, numbers with four digits, and bytes with their unit: ("memory_bytes", 5e8) -> `500.0 MB`. A limit of at most 1 is a fraction."""
    if key.endswith("bytes") and isinstance(value, int | float) and value > 1:  # True is not
        return human_bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def human_flops(flops: float | None) -> str:
    """2.5e9 -> `2.5 G`; None, where it is not known, -> `-`."""
    if flops is None:
        return "-"
    scale, symbol = magnitude(flops, "")
    return f"{rounded(flops / scale)} {symbol}".strip()


def human_joules(joules: float | None) -> str:
    """0.0123 -> `12.3 mJ`, 1420 -> `1.42 kJ`; None, of a device type that never trained, -> `-`."""
    if joules is None:
        return "-"
    scale, symbol = magnitude(joules, "J")
    return f"{rounded(joules / scale)} {symbol}"


def human_seconds(seconds: float | None) -> str:
    """0.01234 -> `12.3 ms`, 1420.4 -> `1,420 s`; None -> `-`."""
    if seconds is None:
        return "-"
    return f"{rounded(1000 * seconds)} ms" if seconds < 1 else f"{rounded(seconds)} s"


def time_unit(seconds: float) -> tuple[float, str]:
    """(how many seconds it has, its name) of the unit in which a time is read best: 7200 -> (3600, `hours`)."""
    units = ((172800.0, 86400.0, "days"), (7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (1.0, 1.0, "seconds"))
    return next(((size, name) for least, size, name in units if seconds >= least), (1e-3, "milliseconds"))
