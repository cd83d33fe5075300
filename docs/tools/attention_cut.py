"""Draws `docs/images/attention_cut.svg`: the four matrices of one attention layer, and what a plan keeps of them.

    python docs/tools/attention_cut.py           # writes the picture
    python docs/tools/attention_cut.py --check   # exit code 1 where the stored picture is not what would be written

The example is that of `docs/explanation/axes.md`. Nothing has to be installed. The same script always gives the same bytes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "images" / "attention_cut.svg"

HEADS, HEAD_SIZE, RESIDUAL = 3, 4, 8
KEPT_HEADS = [0, 2]
KEPT_QK = [[0, 3], [0, 1], [1, 2]]
KEPT_VO = [[0, 1, 3], [0, 1, 2], [0, 2, 3]]
"""Kept dimensions, one row for every head. The row of a dropped head is not used."""

CELL, WIDTH, HEIGHT = 14, 900, 606
FULL_TOP, CUT_TOP = 150, 446
STYLE = """
    .ground { fill: #ffffff; stroke: #d5dae1; }
    .panel { fill: #f3f6fb; stroke: #c3cedd; }
    .dropped { fill: #e9ecf0; stroke: #ffffff; }
    .head0 { fill: #2f6fb0; stroke: #ffffff; }
    .head2 { fill: #c8641b; stroke: #ffffff; }
    .text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #3d4754; }
    .title { font: 600 15px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #17365d; }
    .code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #3d4754; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #161a20; stroke: #39424e; }
      .panel { fill: #222b37; stroke: #47566a; }
      .dropped { fill: #2b323c; stroke: #161a20; }
      .head0 { fill: #6aa7e8; stroke: #161a20; }
      .head2 { fill: #ee9a56; stroke: #161a20; }
      .text { fill: #c6cdd6; }
      .title { fill: #b9d3f5; }
      .code { fill: #c6cdd6; }
    }
"""


@dataclass(frozen=True)
class Matrix:
    """One weight. `kept`: of every head, the dimensions that stay; `transposed`: whether heads are its columns."""

    name: str
    left: int
    kept: list[list[int]]
    transposed: bool = False


MATRICES = [
    Matrix("query", 110, KEPT_QK),
    Matrix("key", 305, KEPT_QK),
    Matrix("value", 500, KEPT_VO),
    Matrix("output", 695, KEPT_VO, transposed=True),
]


def _text(words: str, x: float, y: float, kind: str = "text", anchor: str = "middle") -> str:
    return f'  <text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{words}</text>'


def _cells(classes: Sequence[str], left: int, top: int, transposed: bool) -> list[str]:
    """One line of cells for every class, each as long as the residual stream is wide."""
    drawn = []
    for line, name in enumerate(classes):
        for along in range(RESIDUAL):
            column, row = (line, along) if transposed else (along, line)
            drawn.append(
                f'  <rect class="{name}" x="{left + CELL * column}" y="{top + CELL * row}" width="{CELL}" height="{CELL}"/>'
            )
    return drawn


def _matrix(matrix: Matrix) -> list[str]:
    full = [
        f"head{head}" if head in KEPT_HEADS and dimension in matrix.kept[head] else "dropped"
        for head in range(HEADS)
        for dimension in range(HEAD_SIZE)
    ]
    cut = [name for name in full if name != "dropped"]
    axis = "vo" if matrix.kept is KEPT_VO else "qk"
    middle = matrix.left + CELL * (len(full) if matrix.transposed else RESIDUAL) / 2
    drawn = [
        _text(matrix.name, middle, FULL_TOP - 46, "title"),
        *_cells(full, matrix.left, FULL_TOP, matrix.transposed),
        *_cells(cut, matrix.left, CUT_TOP, matrix.transposed),
    ]
    for lines, top in ((full, FULL_TOP), (cut, CUT_TOP)):
        shape = (RESIDUAL, len(lines)) if matrix.transposed else (len(lines), RESIDUAL)
        drawn.append(_text(f"{shape[0]} x {shape[1]}", matrix.left + CELL * shape[1] / 2, top + CELL * shape[0] + 20))
    if matrix.transposed:
        for head in range(HEADS):
            drawn.append(_text(f"head {head}", matrix.left + CELL * HEAD_SIZE * (head + 0.5), FULL_TOP - 8))
        drawn.append(_text(f"columns: heads x {axis}", middle, FULL_TOP - 26, "code"))
        drawn.append(_text("rows: residual", middle, FULL_TOP + CELL * RESIDUAL + 40, "code"))
    else:
        for head in range(HEADS):
            drawn.append(_text(f"head {head}", matrix.left - 8, FULL_TOP + CELL * HEAD_SIZE * (head + 0.5) + 4, anchor="end"))
        drawn.append(_text("columns: residual", middle, FULL_TOP - 8, "code"))
        drawn.append(_text(f"rows: heads x {axis}", middle, FULL_TOP - 26, "code"))
    return drawn


def _rows(name: str, kept: list[list[int]]) -> str:
    return f"{name}: [{', '.join(str(row) for row in kept)}]"


def picture() -> str:
    """The picture as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        "  <title>Cutting one attention layer: query, key, value and output weights before and after</title>",
        f"  <style>{STYLE}  </style>",
        f'  <rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        _text("The full layer: three heads of size 4, a residual stream of 8", 24, 40, "title", "start"),
        _text("Coloured cells are kept. Grey cells are dropped.", 24, 62, "text", "start"),
        f'  <rect class="panel" x="24" y="358" width="{WIDTH - 48}" height="34" rx="6"/>',
        _text(f"plan = {{0/heads: {KEPT_HEADS}, {_rows('0/qk', KEPT_QK)}, {_rows('0/vo', KEPT_VO)}}}", 40, 380, "code", "start"),
        _text("The subnetwork: smaller matrices with the kept numbers, for two heads", 24, 426, "title", "start"),
    ]
    for matrix in MATRICES:
        lines += _matrix(matrix)
    return "\n".join([*lines, "</svg>", ""])


def main(arguments: Sequence[str]) -> int:
    """Writes the picture, or says whether it is out of date."""
    if "--check" in arguments:
        return int(not PICTURE.is_file() or PICTURE.read_text() != picture())
    PICTURE.write_text(picture())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
