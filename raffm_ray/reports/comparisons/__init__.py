"""A comparison of several runs over seeds: its numbers, what is said of them, its table, picture and page.

Open to other packages:

- `content`: from summaries to `comparison.json`
- `report`: all files of a comparison
- `sentences`: what is said of several runs in words
- `table`: the tables, on a terminal and in Markdown

Used inside only:

- `page`: the page
- `picture`: the picture

Start reading at `report`.
"""

__all__ = ["content", "report", "sentences", "table"]
