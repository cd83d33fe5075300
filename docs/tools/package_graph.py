"""Draws `docs/images/packages.svg`: the packages of `raffm_ray` and which of them use which.

    python docs/tools/package_graph.py           # writes the picture
    python docs/tools/package_graph.py --check   # exit code 1 where the stored picture is not what would be written

The imports are read from the source text, so nothing of the project has to be installed. The same sources always give the same bytes.
"""

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "raffm_ray"
PICTURE = ROOT / "docs" / "images" / "packages.svg"

Graph = Mapping[str, set[str]]
"""Package -> the packages that it uses."""

BOX_WIDTH, COLUMN_GAP, ROW_GAP, MARGIN = 300, 28, 34, 26
NAME_HEIGHT, LINE_HEIGHT, PADDING, CHARACTERS_PER_LINE = 19, 16, 11, 43
PASSAGE_WIDTH = 24
"""Of an edge that passes a row without ending there."""
STYLE = """
    .ground { fill: #ffffff; stroke: #d5dae1; }
    .box { fill: #f3f6fb; stroke: #8fa6c4; }
    .name { font: 600 15px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #17365d; }
    .purpose { font: 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #3d4754; }
    .note { font: italic 12.5px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #5b6673; }
    .edge { fill: none; stroke: #7288a6; stroke-width: 1.5; }
    .head { fill: #7288a6; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #161a20; stroke: #39424e; }
      .box { fill: #222b37; stroke: #5f7796; }
      .name { fill: #b9d3f5; }
      .purpose { fill: #c6cdd6; }
      .note { fill: #97a2af; }
      .edge { stroke: #7d93b2; }
      .head { fill: #7d93b2; }
    }
"""


def imported_names(tree: ast.AST) -> set[str]:
    """The full names that a module's import statements name, also those inside functions."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def package_graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Which package uses which, from the import statements of all modules."""
    names = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for path in sorted((package / name).rglob("*.py")):
            for full in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
                top, *rest = full.split(".")
                if top == package.name and rest and rest[0] in graph and rest[0] != name:
                    graph[name].add(rest[0])
    return graph


def purposes(package: Path = PACKAGE) -> dict[str, str]:
    """Package -> the first sentence of its docstring."""
    found = {}
    for path in sorted(package.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.split("\n\n")[0].split())
        found[path.parent.name] = first.partition(". ")[0].rstrip(".") + "."
    return found


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The graph without the edges that follow from others: its transitive reduction. Raises graphlib.CycleError where it has a cycle."""
    reached: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        reached[name] = set(graph[name]).union(*(reached[other] for other in graph[name]))
    return {name: {one for one in used if not any(one in reached[other] for other in used)} for name, used in graph.items()}


def heights(graph: Graph) -> dict[str, int]:
    """Package -> its row, 0 lowest: above all that it uses, and otherwise as close as possible to those that use it."""
    order = list(TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).static_order())
    lowest: dict[str, int] = {}
    for name in order:
        lowest[name] = max((lowest[other] + 1 for other in graph[name]), default=0)
    found: dict[str, int] = {}
    for name in reversed(order):
        users = [found[other] for other in graph if name in graph[other]]
        found[name] = min(users) - 1 if users else lowest[name]
    return found


@dataclass(frozen=True)
class Node:
    """A place in a row: of a package, or of an edge (`name` has an arrow) that passes it. Coordinates are of its middle and its upper side."""

    name: str
    x: float
    y: float
    width: float
    height: float
    lines: Sequence[str] = ()


def _passages(edges: Graph, row: Mapping[str, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Rows of all places, and the pieces of all edges from a row to the one below it."""
    places, pieces = dict(row), list[tuple[str, str]]()
    for name in sorted(edges):
        for other in sorted(edges[name]):
            before = name
            for level in range(row[name] - 1, row[other], -1):
                passage = f"{name}->{other}@{level}"
                places[passage] = level
                pieces.append((before, passage))
                before = passage
            pieces.append((before, other))
    return places, pieces


def _ordered(places: Mapping[str, int], pieces: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Rows from the lowest, each ordered so that edges cross little: by the mean position of what is below, then above, in turns."""
    rows = [sorted(name for name, level in places.items() if level == row) for row in range(max(places.values()) + 1)]
    beside: dict[str, set[str]] = {name: set() for name in places}
    for upper, lower in pieces:
        beside[upper].add(lower)
        beside[lower].add(upper)
    for sweep in range(8):
        levels = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for level in levels:
            fixed = rows[level - 1 if sweep % 2 == 0 else level + 1]
            position = {name: (number + 0.5) / len(fixed) for number, name in enumerate(fixed)}

            def mean(name: str, position: Mapping[str, float] = position) -> tuple[float, str]:
                near = [position[other] for other in beside[name] if other in position]
                return (sum(near) / len(near) if near else 0.5, name)

            rows[level].sort(key=mean)
    return rows


def placed(graph: Graph, told: Mapping[str, str]) -> tuple[list[Node], list[tuple[str, str]], float, float]:
    """All places, the pieces of edges between them, and the picture's width and height in pixels."""
    edges = reduced(graph)
    places, pieces = _passages(edges, heights(edges))
    rows = _ordered(places, pieces)
    lines = {name: wrap(told.get(name, ""), CHARACTERS_PER_LINE) for name in graph}
    row_widths = [
        sum(BOX_WIDTH if name in graph else PASSAGE_WIDTH for name in row) + COLUMN_GAP * (len(row) - 1) for row in rows
    ]
    width, y, nodes = max(row_widths) + 2 * MARGIN, float(MARGIN), list[Node]()
    for row, row_width in reversed(list(zip(rows, row_widths, strict=True))):
        most = max(len(lines.get(name, ())) for name in row)
        height = 2 * PADDING + NAME_HEIGHT + LINE_HEIGHT * most
        x = (width - row_width) / 2
        for name in row:
            own = BOX_WIDTH if name in graph else PASSAGE_WIDTH
            nodes.append(Node(name=name, x=x + own / 2, y=y, width=own, height=height, lines=lines.get(name, ())))
            x += own + COLUMN_GAP
        y += height + ROW_GAP
    return nodes, pieces, width, y - ROW_GAP + MARGIN


def _edge(upper: Node, lower: Node, start: float, end: float) -> str:
    """A curve from the lower side of a place to the upper side of the one below it."""
    top, bottom = upper.y + upper.height, lower.y - (7 if lower.lines else 0)
    bend = (bottom - top) * 0.55
    curve = f'<path class="edge" d="M{start:.1f} {top:.1f} C{start:.1f} {top + bend:.1f} {end:.1f} {bottom - bend:.1f} {end:.1f} {bottom:.1f}"/>'
    if not lower.lines:
        return curve
    return curve + f'<path class="head" d="M{end - 4.5:.1f} {bottom - 1:.1f} h9 l-4.5 8 z"/>'


def _ports(ends: Sequence[tuple[str, str]], nodes: Mapping[str, Node], upper: bool) -> dict[tuple[str, str], float]:
    """Where along a box's side each piece of an edge is attached: spread out, in the order of the other ends."""
    found = {}
    for name, node in nodes.items():
        own = [piece for piece in ends if piece[0 if upper else 1] == name]
        own.sort(key=lambda piece: nodes[piece[1 if upper else 0]].x)
        for number, piece in enumerate(own):
            found[piece] = node.x + (number - (len(own) - 1) / 2) * min(70, node.width / (len(own) + 1))
    return found


def drawn(package: Path = PACKAGE) -> str:
    """The picture as SVG."""
    nodes, pieces, width, height = placed(package_graph(package), purposes(package))
    note = "An arrow points to a package that is used. Arrows that follow from others are left out."
    height += LINE_HEIGHT + 6
    by_name = {node.name: node for node in nodes}
    starts, ends = _ports(pieces, by_name, True), _ports(pieces, by_name, False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">',
        f"  <title>The packages of {escape(package.name)} and which of them use which</title>",
        f"  <style>{STYLE}  </style>",
        f'  <rect class="ground" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="10"/>',
    ]
    for piece in pieces:
        parts.append("  " + _edge(by_name[piece[0]], by_name[piece[1]], starts[piece], ends[piece]))
    for node in nodes:
        if "->" in node.name:  # an edge that passes: a straight line through the row
            parts.append(f'  <path class="edge" d="M{node.x:.1f} {node.y:.1f} v{node.height:.1f}"/>')
            continue
        left = node.x - node.width / 2
        parts.append(
            f'  <rect class="box" x="{left:.1f}" y="{node.y:.1f}" width="{node.width:.0f}" height="{node.height:.0f}" rx="7"/>'
        )
        baseline = node.y + PADDING + 14
        parts.append(f'  <text class="name" x="{node.x:.1f}" y="{baseline:.1f}" text-anchor="middle">{escape(node.name)}</text>')
        for number, line in enumerate(node.lines):
            at = baseline + NAME_HEIGHT + LINE_HEIGHT * number
            parts.append(f'  <text class="purpose" x="{node.x:.1f}" y="{at:.1f}" text-anchor="middle">{escape(line)}</text>')
    parts.append(f'  <text class="note" x="{width / 2:.1f}" y="{height - 16:.1f}" text-anchor="middle">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(words: Sequence[str]) -> int:
    """Writes the picture, or with `--check` compares it; returns the exit code."""
    text = drawn()
    if "--check" in words:
        same = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == text
        print(f"{PICTURE.name}: {'up to date' if same else 'out of date: run python docs/tools/package_graph.py'}")
        return 0 if same else 1
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
