"""Matplotlib, drawing into files unless a notebook or `MPLBACKEND` chose another backend."""

import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from PIL import Image

if not os.environ.get("MPLBACKEND"):
    matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import BboxBase

__all__ = ["begins_at", "panels_of", "plt", "save", "share_heights"]

DOTS_PER_INCH = 110
MARGIN = 4
"""Pixels of the figure around a panel that is cut out."""
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


def paint(figure: Figure, path: Path | str) -> None:
    """Lays a figure out and writes it."""
    if engine := figure.get_layout_engine():  # matplotlib would draw everything once more only to have it done
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(path, dpi=DOTS_PER_INCH)


def save(figure: Figure, path: Path | str) -> None:
    """Writes a picture and closes it. Characters that no font has are said in one note on standard error, and are boxes in the picture."""
    _make_literal(figure)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        paint(figure, path)
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


def begins_at(axes: Axes, directions: str = "y") -> None:
    """Says in the labels of axes that they do not hold zero: differences look larger there than they are."""
    for axis in (axes.xaxis if one == "x" else axes.yaxis for one in directions):
        low, high = sorted(axis.get_view_interval())
        if low > 0 or high < 0:
            told = f"(axis does not {'begin' if low > 0 else 'end'} at 0)"
            axis.set_label_text(" ".join(filter(None, [axis.get_label_text(), told])))


def share_heights(panels: Sequence[Axes]) -> None:
    """Gives axes of the same quantity the same range."""
    lows, highs = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(lows), max(highs))


def panels_of(figure: Figure, path: Path | str, groups: Iterable[Iterable[str]]) -> dict[str, bytes]:
    """Panels of a figure that was saved as PNG, each as a PNG of its own, by its label; labels of no panel are left out. Panels of a group,
    whose axes have to be equally large, come out equally large, with their axes at the same place."""
    named = {str(axes.get_label()): axes for axes in figure.axes}
    scale, found = DOTS_PER_INCH / figure.dpi, dict[str, bytes]()
    whole = Image.open(path).convert("RGB")
    for group in groups:
        inner, outer = {}, {}
        for name in group:
            box = named[name].get_tightbbox() if name in named else None
            if box is not None:
                inner[name], outer[name] = (_pixels(one, scale, whole.height) for one in (named[name].get_window_extent(), box))
        around = [
            pick(outer[name][at] - inner[name][at] for name in inner) for at, pick in enumerate((min, min, max, max)) if inner
        ]
        for name in inner:
            left, top, right, bottom = (edge + more for edge, more in zip(inner[name], around, strict=True))
            panel = Image.new("RGB", (right - left, bottom - top), "white")
            start = max(0, outer[name][0]), max(0, outer[name][1])
            end = min(whole.width, outer[name][2]), min(whole.height, outer[name][3])
            panel.paste(whole.crop((*start, *end)), (start[0] - left, start[1] - top))
            sink = io.BytesIO()
            panel.save(sink, "PNG")
            found[name] = sink.getvalue()
    return found


def _pixels(box: BboxBase, scale: float, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box in the pixels of a picture whose rows begin at the top, with a margin."""
    left, bottom, right, top = (scale * value for value in box.extents)
    found = (left - MARGIN, height - top - MARGIN, right + MARGIN, height - bottom + MARGIN)
    return round(found[0]), round(found[1]), round(found[2]), round(found[3])
