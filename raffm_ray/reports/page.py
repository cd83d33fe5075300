"""One HTML page that is all in one file: sections, tables that sort, pictures with captions and their data, and folded settings.

It needs no network and no script to be read. All texts are shown as texts; in sentences, what stands between backticks is code.
"""

import csv
import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import unpack
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

MOST_EMBEDDED = 200_000
"""Characters of a picture's data that a page holds; more are in a file beside it."""


class Cell(NamedTuple):
    """A cell of a table: what is shown, and the number that it is sorted by, None for its text or where there is no value."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its heading. `text`: columns of words; `footer`: rows that stay below when others are sorted;
    `chosen`: numbers of rows that stand out."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    footer: Sequence[Sequence[Cell]] = ()
    text: frozenset[int] = frozenset()
    chosen: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A picture as PNG. `name`: of its data's file; `alt`: for who does not see it; `data`: as CSV, None where there is none; `source`: the
    file beside the page that has the data where they are too many; `wide`: as wide as the page."""

    name: str
    image: bytes
    alt: str
    caption: str
    data: str | None = None
    source: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    folded: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """`kind`: what the page is of; `lead`: the result in sentences, the most important one first; `footer`: small print; `renewed_seconds`: how
    often a browser asks for it again, None for never."""

    kind: str
    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    footer: Sequence[str] = ()
    renewed_seconds: int | None = None


LIGHT = {"ink": "#222222", "paper": "#ffffff", "faint": "#595959", "line": "#d0d0d0", "link": "#1f4e9e", "panel": "#f4f6f9"}
DARK = {"ink": "#dddddd", "paper": "#181818", "faint": "#a8a8a8", "line": "#4a4a4a", "link": "#8ab4f8", "panel": "#242424"}
"""Colours by their use. Text is at least 4.5 times as light or dark as what it stands on (WCAG 2.2, 1.4.3)."""


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; color: var(--ink); background: var(--paper);
  overflow-wrap: break-word; }}
.skip {{ position: absolute; left: -99rem; }} .skip:focus {{ left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }}
a {{ color: var(--link); }} :focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
h1 {{ font-size: 1.75rem; line-height: 1.25; margin: .2rem 0 .6rem; }} h2 {{ font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }}
.kind {{ margin: 0; color: var(--faint); font-size: .95rem; }}
.lead p {{ max-width: 46rem; margin: .5rem 0; }} .lead p:first-child {{ font-size: 1.15rem; }}
section > p {{ max-width: 46rem; }} .note + .note {{ margin-top: -.6rem; }} .note, figcaption, caption {{ color: var(--faint); font-size: .9rem; }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 0; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .7rem 1.5rem; margin: 1rem 0; background: var(--panel); padding: 1rem; border-radius: 6px; }}
.facts div {{ min-width: 0; }} .facts .wide {{ grid-column: 1 / -1; }} dt {{ color: var(--faint); font-size: .85rem; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
code, pre {{ font: .88em/1.5 ui-monospace, monospace; }} p code {{ overflow-wrap: anywhere; }}
.unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }} figcaption {{ position: relative; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.4rem; align-items: start; }}
figure {{ margin: 0; min-width: 0; }} figure.wide {{ grid-column: 1 / -1; }}
img {{ display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin: 0 auto .4rem; }}
figcaption {{ max-width: 46rem; }}
@media screen and (max-width: 44rem) {{ .pan {{ overflow-x: auto; }} .pan img {{ max-width: none; width: 46rem; }} }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }} caption {{ text-align: left; padding: 0 0 .4rem; max-width: min(46rem, calc(100vw - 2rem)); }}
th, td {{ padding: .3rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }} thead th {{ vertical-align: bottom; }}
tbody th, tfoot th {{ font-weight: normal; }} th:first-child {{ text-align: left; padding-left: 0; }} td, tbody th, tfoot th {{ white-space: nowrap; }} td.text, th.text {{ text-align: left; min-width: 12rem; white-space: normal; overflow-wrap: anywhere; }}
.chosen > * {{ background: var(--panel); font-weight: 600; }}
th button {{ font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; text-align: inherit; cursor: pointer; }}
th button::after {{ content: "\\2195"; color: var(--faint); padding-left: .3em; font-weight: normal; }}
th[aria-sort=ascending] button::after {{ content: "\\2191"; }} th[aria-sort=descending] button::after {{ content: "\\2193"; }}
details {{ margin: .8rem 0; }} summary {{ cursor: pointer; }} pre {{ overflow-x: auto; background: var(--panel); padding: .8rem; border-radius: 6px; }}
footer {{ margin-top: 3rem; color: var(--faint); font-size: .9rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }}
@media print {{
  :root {{ {_variables(LIGHT)} }}
  @page {{ margin: 15mm; }}
  body {{ font-size: 10pt; max-width: none; padding: 0; }} nav, .skip, .data, th button::after {{ display: none; }}
  figure, tr, .facts {{ break-inside: avoid; }} h2, caption {{ break-after: avoid; }}
  .figures {{ grid-template-columns: 1fr 1fr; }} figure.tall img {{ max-height: 200mm; width: auto; }}
  .scroll {{ overflow: visible; }} table {{ font-size: 8pt; }} th, td, td:not(.text) {{ padding: .15rem .3rem; white-space: normal; }} a {{ color: inherit; text-decoration: none; }}
}}
""".strip()

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => row.cells[column].dataset.order ?? row.cells[column].textContent.trim();
    button.addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const rows = [...body.rows].sort((first, second) => {
        const [a, b] = [key(first), key(second)];
        if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
        return turn * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b);
      });
      body.append(...rows);
    });
  });
}
""".strip()
"""Makes headings of tables into buttons; without it, and in print, they are plain headings. Rows without a value stay last."""

PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{{ digest }}'">
{% if page.renewed_seconds %}<meta http-equiv="refresh" content="{{ page.renewed_seconds }}">{% endif %}<title>{{ page.title }} - raffm_ray</title>
<style>
{{ style|safe }}
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<p class="kind">{{ page.kind }}</p>
<h1>{{ page.title }}</h1>
<div class="lead">
{%- for line in page.lead %}
<p>{{ coded(line) }}</p>
{%- endfor %}
</div>
<nav aria-label="Sections"><ul>
{%- for section in page.sections %}
<li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{%- endfor %}
</ul></nav>
</header>
<main id="content">
{%- for section in page.sections %}
<section aria-labelledby="s{{ loop.index }}">
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
{%- for line in section.paragraphs %}
<p>{{ coded(line) }}</p>
{%- endfor %}
{%- if section.facts %}
<dl class="facts">
{%- for name, value in section.facts %}
<div{% if value|length > 60 %} class="wide"{% endif %}><dt>{{ name }}</dt><dd>{{ coded(value) }}</dd></div>
{%- endfor %}
</dl>
{%- endif %}
{%- for table in section.tables %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ table.caption }}">
<table class="sortable">
<caption>{{ table.caption }}</caption>
<thead><tr>{% for heading in table.headings %}<th scope="col"{% if loop.index0 in table.text %} class="text"{% endif %}>{{ heading }}</th>{% endfor %}</tr></thead>
{%- for part, rows in (("tbody", table.rows), ("tfoot", table.footer)) if rows %}
<{{ part }}>
{%- for row in rows %}
<tr{% if part == "tbody" and loop.index0 in table.chosen %} class="chosen"{% endif %}>
{%- for cell in row %}
{%- set tag = "th" if loop.first else "td" -%}
<{{ tag }}{% if loop.first %} scope="row"{% endif %}{% if loop.index0 in table.text %} class="text"{% endif %}{% if cell.order is not none %} data-order="{{ cell.order }}"{% endif %}>{{ cell.text }}</{{ tag }}>
{%- endfor %}</tr>
{%- endfor %}
</{{ part }}>
{%- endfor %}
</table>
</div>
{%- endfor %}
{%- if section.pictures %}
<div class="figures">
{%- for one in section.pictures %}
{%- set width, height = size(one.image) %}
<figure{% if one.wide %} class="wide"{% endif %}>
{%- if one.wide %}
<div class="pan" role="region" tabindex="0" aria-label="Picture of {{ one.name }}">
{%- endif %}
<img src="data:image/png;base64,{{ encoded(one.image) }}" alt="{{ one.alt }}" width="{{ width }}" height="{{ height }}">
{%- if one.wide %}
</div>
{%- endif %}
<figcaption>{{ coded(one.caption) }}
{%- if embedded(one) %} <a class="data" download="{{ one.name }}.csv" href="data:text/csv;charset=utf-8;base64,{{ encoded(one.data.encode()) }}">Data as CSV<span class="unseen"> of {{ one.name }}</span></a>
{%- elif one.source %} <span class="data">Data: {{ one.source }} in the folder of this page.</span>
{%- endif %}</figcaption>
</figure>
{%- endfor %}
</div>
{%- endif %}
{%- for line in section.notes %}
<p class="note">{{ coded(line) }}</p>
{%- endfor %}
{%- for name, content in section.folded %}
<details>
<summary>{{ coded(name) }}</summary>
<pre tabindex="0">{{ content }}</pre>
</details>
{%- endfor %}
</section>
{%- endfor %}
</main>
<footer>
{%- for line in page.footer %}
<p>{{ coded(line) }}</p>
{%- endfor %}
</footer>
<script>{{ script|safe }}</script>
</body>
</html>
""",
    autoescape=True,
)


def _size(image: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    width, height = unpack(">II", image[16:24])
    return width, height


def _encoded(content: bytes) -> str:
    return b64encode(content).decode()


def _coded(text: str) -> Markup:
    """A text with what stands between backticks as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(one) if at % 2 else one for at, one in enumerate(parts))


def _embedded(picture: Picture) -> bool:
    return picture.data is not None and (not picture.source or len(picture.data) <= MOST_EMBEDDED)


def render(page: Page) -> str:
    """The page as HTML."""
    helpers: dict[str, Any] = {"size": _size, "encoded": _encoded, "embedded": _embedded, "coded": _coded}
    digest = f"sha256-{_encoded(sha256(SCRIPT.encode()).digest())}"
    text: str = PAGE.render(page=page, style=STYLE, script=SCRIPT, digest=digest, **helpers)
    return text


def csv_text(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV; what there is no value of is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()
