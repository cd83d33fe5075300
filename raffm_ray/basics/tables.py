"""Tables on a terminal that never break inside of a word."""

from collections.abc import Sequence
from copy import copy

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text, TextType

WIDE = 100_000
"""Columns of a console on which nothing has to be broken."""


class WordTable(Table):
    """rich's table, whose columns are never narrower than their longest word, and those with `no_wrap` never narrower than their content.

    rich's own would cut words, or end them with an ellipsis. Where the columns do not fit side by side, those that are left over follow in
    tables below, each with the first column. A single word that is longer than the console is folded: it has no other place.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields one table or several, each at most as wide as the console."""
        needs = [self._measure_column(console, options.update(max_width=WIDE), column) for column in self.columns]
        parts = self._parts(needs, options.max_width)
        for number, chosen in enumerate(parts):
            part = self._part(chosen, needs, console, options.max_width)
            part.title = self.title if number == 0 else None
            part.caption = self.caption if number == len(parts) - 1 else None
            yield from Table.__rich_console__(part, console, options)
            if number < len(parts) - 1:
                yield Text()

    def _least(self, at: int, needs: Sequence[Measurement]) -> int:
        return needs[at].maximum if self.columns[at].no_wrap else needs[at].minimum

    def _parts(self, needs: Sequence[Measurement], width: int) -> list[list[int]]:
        """Which columns stand together: as many as fit, always with the first."""
        parts: list[list[int]] = []
        for at in range(1, len(self.columns)):
            together = [*(parts[-1] if parts else [0]), at]
            if not parts or sum(self._least(one, needs) for one in together) + self._borders(len(together)) > width:
                parts.append([0, at])
            else:
                parts[-1].append(at)
        return parts or [list(range(len(self.columns)))]

    def _borders(self, columns: int) -> int:
        if self.box is None:
            return 0
        return 2 * self.show_edge + columns - 1

    def _part(self, chosen: Sequence[int], needs: Sequence[Measurement], console: Console, width: int) -> Table:
        """These columns alone, with widths of their own: the widest that may be broken between words gives way first."""
        part = copy(self)
        widths = {at: needs[at].maximum for at in chosen}
        while sum(widths.values()) + self._borders(len(chosen)) > width:
            wide = [at for at in chosen if widths[at] > needs[at].minimum and not self.columns[at].no_wrap]
            wide = wide or [at for at in chosen if widths[at] > needs[at].minimum]
            if not wide:
                break
            widths[max(wide, key=lambda at: widths[at])] -= 1
        part.columns = []
        for position, at in enumerate(chosen):
            column = copy(self.columns[at])
            column._index = position
            column.width = widths[at] - self._get_padding_width(at)
            column.no_wrap = column.no_wrap and widths[at] == needs[at].maximum
            column.overflow = "fold"
            part.columns.append(column)
        part.min_width = min(width, max(_longest_word(self.title, console), _longest_word(self.caption, console)))
        return part


def _longest_word(told: TextType | None, console: Console) -> int:
    text = console.render_str(told) if isinstance(told, str) else told or Text()
    return Measurement.get(console, console.options.update(max_width=WIDE), text).minimum
