"""Matplotlib, drawing into files unless a notebook or `MPLBACKEND` chose another backend."""

import os
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import matplotlib

if not os.environ.get("MPLBACKEND"):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

__all__ = ["plt", "save"]

DOTS_PER_INCH = 110
MISSING_GLYPH = re.compile(r"Glyph (\d+) .* missing from")


def _make_literal(figure: Figure) -> None:
    """Shows all texts as they are: names of people's classes and files may hold dollar signs. What matplotlib itself writes as a formula,
    powers of ten, stays one."""
    powers = {
        id(text)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for tick in axis.get_major_ticks() + axis.get_minor_ticks()
        for text in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_parse_math(False)


def save(figure: Figure, path: Path | str) -> None:
    """Writes a picture and closes it. Characters that no font has are said in one note on standard error, and are boxes in the picture."""
    _make_literal(figure)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=DOTS_PER_INCH)
    plt.close(figure)
    missing = {chr(int(found[1])) for one in told if (found := MISSING_GLYPH.search(str(one.message)))}
    if missing:
        named = ", ".join(sorted(unicodedata.name(one, f"U+{ord(one):04X}") for one in missing)[:3])
        print(
            f"note: {Path(path).name}: the font lacks {len(missing)} characters ({named}): they are drawn as boxes",
            file=sys.stderr,
        )
    for one in told:
        if not MISSING_GLYPH.search(str(one.message)):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
