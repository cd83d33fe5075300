"""A comparison as a page to publish: Markdown and a picture beside it, with what its numbers come from.

Used inside `studies` only:

- `markdown_page`: the page: when it may be written, and what is on it
- `origin`: what the numbers come from: versions, settings, hardware, hours

Start reading at `markdown_page`.
"""

__all__ = ["markdown_page"]
