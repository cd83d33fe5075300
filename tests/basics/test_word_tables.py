"""Tables on a terminal break between words: every word of a table is found whole in what is printed."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raffm_ray.basics.tables import WordTable

ROOT = Path(__file__).parents[2] / "raffm_ray"
WORDS = st.text("abcdefgh_0123456789", min_size=1, max_size=24)
CELLS = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)


def printed(table: Table, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as shown:
        console.print(table)
    return shown.get()


def words_of(table: Table) -> set[str]:
    cells = [str(cell) for column in table.columns for cell in (column.header, *column._cells)]
    return {word for told in (*cells, str(table.title or ""), str(table.caption or "")) for word in told.split()}


def filled(kind: type[Table], rows: list[list[str]], kept: list[bool], **style: bool) -> Table:
    """A table with a column a kept flag, whether it is never broken; the first row is its headings."""
    table = kind(title="a table", caption="and what\nit is", box=SIMPLE_HEAD, **style)
    for heading, whole in zip(rows[0], kept, strict=True):
        table.add_column(heading, no_wrap=whole, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    return table


@st.composite
def content(draw: st.DrawFn) -> tuple[list[list[str]], list[bool]]:
    columns = draw(st.integers(1, 9))
    kept = draw(st.lists(st.booleans(), min_size=columns, max_size=columns))
    cells = [st.one_of(WORDS) if whole else CELLS for whole in kept]
    return [[draw(one) for one in cells] for _ in range(draw(st.integers(1, 4)))], kept


WIDE = [["a" * 20 + str(column) for column in range(9)]] * 3, [True] * 9


@pytest.mark.parametrize("style", [{}, {"pad_edge": False, "collapse_padding": True, "show_edge": False}], ids=["usual", "tight"])
@given(asked=content())
@example(asked=WIDE)
def test_no_word_is_cut_and_no_line_is_too_long(style: dict[str, bool], asked: tuple[list[list[str]], list[bool]]) -> None:
    rows, kept = asked
    table = filled(WordTable, rows, kept, **style)
    told = printed(table)
    assert words_of(table) <= set(told.split())
    assert max(map(len, told.splitlines())) <= 80


def test_control_richs_own_table_cuts_words() -> None:
    table = filled(Table, *WIDE)
    assert not words_of(table) <= set(printed(table).split())


def test_what_fits_is_printed_as_rich_prints_it() -> None:
    rows = [["model", "accuracy"], ["full model", "93.1"], ["laptop", "92.0"]]
    assert printed(filled(WordTable, rows, [True, False])) == printed(filled(Table, rows, [True, False]))


def test_a_word_longer_than_the_console_is_folded() -> None:
    told = printed(filled(WordTable, [["setting"], ["x" * 100]], [False]))
    assert "".join(re.findall("x+", told)) == "x" * 100
    assert max(map(len, told.splitlines())) <= 80


def test_nothing_else_makes_tables() -> None:
    made = {path.name for path in ROOT.rglob("*.py") if re.search(r"rich.table import (.*, )?Table\b", path.read_text())}
    own = {
        path.name
        for path in ROOT.rglob("*.py")
        if re.search(r"(?<![\w.])Table\((title|box)=", path.read_text()) and path.name in made
    }
    assert not own, "rich's own table cuts words: basics.tables.WordTable does not"
