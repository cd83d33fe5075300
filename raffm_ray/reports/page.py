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

from raffm_ray.reports.page_style import SCRIPT, STYLE

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
    """`kind`: what the page is of; `lead`: the result in sentences, the most important one first; `footer`: small print."""

    kind: str
    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    footer: Sequence[str] = ()


PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{{ digest }}'">
<title>{{ page.title }} - raffm_ray</title>
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
