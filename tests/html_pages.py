"""Reads a page as a browser without a script, or a screen reader, does: its structure, and what it lacks."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from typing import NamedTuple

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Element(NamedTuple):
    """`path`: the names of what it is in, outermost first; `text`: all in it."""

    name: str
    attributes: dict[str, str]
    path: tuple[str, ...]
    text: list[str]
    number: int

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Element] = []
        self.elements: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        path = tuple(one.name for one in self.open)
        one = Element(tag, {name: value or "" for name, value in attrs}, path, [], len(self.elements))
        self.elements.append(one)
        if tag not in VOID:
            self.open.append(one)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for one in self.open:
            one.text.append(data)


def elements(page: str) -> list[Element]:
    """All elements, in order. AssertionError where one is not closed, or another is closed in its place."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open, f"<{reader.open[-1].name}> is not closed"
    return reader.elements


def of(page: str, name: str) -> list[Element]:
    return [one for one in elements(page) if one.name == name]


def data_of(page: str) -> dict[str, list[str]]:
    """What a page's links hold: file -> lines."""
    links = [one for one in of(page, "a") if one.attributes.get("href", "").startswith("data:text/csv")]
    return {one.attributes["download"]: b64decode(one.attributes["href"].split(",", 1)[1]).decode().splitlines() for one in links}


def rows_of(page: str, table: int = 0) -> list[list[str]]:
    """The cells of a table of the page, headings first."""
    rows: list[list[str]] = []
    count = -1
    for one in elements(page):
        count += one.name == "table"
        if count == table and one.name == "tr":
            rows.append([])
        if count == table and one.name in ("th", "td"):
            rows[-1].append(one.words)
    return rows


def lacks(page: str) -> list[str]:
    """What keeps a page from being read offline, by a screen reader, on paper or on a narrow screen; nothing for a good one."""
    found, every = [], elements(page)
    names = [one.name for one in every]
    for name in ("header", "nav", "main", "footer", "h1", "title"):
        if names.count(name) != 1:
            found.append(f"{names.count(name)} times <{name}>")
    if not any(one.name == "html" and one.attributes.get("lang") for one in every):
        found.append("no language")
    if not any(one.attributes.get("name") == "viewport" for one in every):
        found.append("no viewport")
    identifiers = {one.attributes["id"] for one in every if "id" in one.attributes}
    for one in every:
        place = f"<{one.name}> {one.words[:30]}".strip()
        for key in ("src", "href"):
            target = one.attributes.get(key, "")
            if target and not target.startswith(("data:", "#")):
                found.append(f"{place}: loads {target[:40]}")
            if target.startswith("#") and target[1:] not in identifiers:
                found.append(f"{place}: leads nowhere")
        if one.name == "img" and len(one.attributes.get("alt", "")) < 30:
            found.append("a picture without a description")
        if one.name == "img" and not {"width", "height"} <= set(one.attributes):
            found.append("a picture without a size")
        if one.name == "img" and "figure" not in one.path:
            found.append("a picture without a caption")
        if one.name == "th" and one.attributes.get("scope") not in ("row", "col"):
            found.append(f"{place}: heading of what?")
        if one.name == "section" and one.attributes.get("aria-labelledby") not in identifiers:
            found.append("a section without a name")
    for outer, inner in (("table", "caption"), ("figure", "figcaption"), ("details", "summary")):
        if names.count(outer) != names.count(inner):
            found.append(f"{names.count(outer)} <{outer}>, {names.count(inner)} <{inner}>")
    wide = [one for one in every if one.attributes.get("class") == "scroll" and one.attributes.get("role") == "region"]
    if len(wide) != names.count("table") or not all(one.attributes.get("tabindex") == "0" for one in wide):
        found.append("a table that does not scroll")
    if "@media print" not in page or "prefers-color-scheme: dark" not in page:
        found.append("no style for paper or the dark")
    return found


def contrast(first: str, second: str) -> float:
    """Of two colours, 1 to 21 (WCAG 2.2, contrast ratio)."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert all(re.fullmatch(r"#[0-9a-f]{6}", color) for color in (first, second))
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)
