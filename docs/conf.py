"""The documentation's settings for Sphinx. `make docs` builds it; warnings are errors, and nothing is fetched from anywhere."""

import re
import sys
from inspect import isclass
from pathlib import Path
from shutil import rmtree
from typing import Any, get_type_hints

from pydantic import BaseModel
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
GENERATED = DOCS / "reference" / "generated"
sys.path[:0] = [str(DOCS.parent), str(DOCS / "tools")]

import api_pages  # noqa: E402  (docs/tools is on the path from here on)
import command_pages  # noqa: E402
import settings_pages  # noqa: E402
from docstring_markup import markup  # noqa: E402

from raffm_ray import Experiment, Study, __version__  # noqa: E402

project = "raffm_ray"
author = "the authors of raffm_ray"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "mathml"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "reference/generated/*.md", "reference/generated/commands/*.md"]
# No page leads out to another project's: what is not ours is not looked up.
nitpicky = True
# Type variables and private classes stand in signatures, and have no entry.
nitpick_ignore_regex = [(r"py:.*", r"(?!raffm_ray\.).*"), (r"py:class", r"raffm_ray\..*\.(?:[A-Z]|_\w+)")]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"no-value": True}
python_maximum_signature_line_length = 100
add_module_names = False
# Objects are found by the search and the index: as entries of the table of contents they would fill the side bar of every page.
toc_object_entries = False

html_theme = "furo"
html_title = f"raffm_ray {__version__}"
html_static_path = ["_static"]
html_css_files = ["reference.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def write_generated(app: Sphinx) -> None:
    """Writes the pages that are made from the code, and only those that changed, so that a second build is short."""
    pages = {
        GENERATED / "settings.md": settings_pages.page(Experiment, "setting", indexed=True),
        GENERATED / "study_settings.md": settings_pages.page(Study, "study-setting", indexed=False),
        **api_pages.write_pages(GENERATED),
        **command_pages.write_pages(GENERATED / "commands"),
    }
    for old in [path for path in GENERATED.rglob("*") if path.is_file() and path not in pages]:
        old.unlink()
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for folder in [path for path in GENERATED.rglob("*") if path.is_dir() and not any(path.iterdir())]:
        rmtree(folder)


def read_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with backticks."""
    lines[:] = markup(lines)


def shorten_signature(app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returned: str) -> Any:
    """Settings are described on a page of their own: their fields are no arguments that anybody writes in a row."""
    if what == "class" and isclass(value) and issubclass(value, BaseModel):
        return "", None
    return None


def leave_out_flags(app: Sphinx, value: Any, bound: bool) -> None:
    """What the command line adds to the types of arguments (`Annotated`) is in the reference of the commands."""
    if "Annotated" in repr(getattr(value, "__annotations__", "")):
        value.__annotations__ = get_type_hints(value)


def hand_out_other_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to Markdown files outside `docs/` become downloads: they are no pages of this site."""
    folder = (DOCS / name).parent

    def link(found: re.Match[str]) -> str:
        path = (folder / found[1]).resolve()
        return f"](path:{found[1]})" if path.is_file() and not path.is_relative_to(DOCS) else found[0]

    source[0] = re.sub(r"\]\(((?:\.\./)+[^)#:\s]+\.md)\)", link, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_generated)
    app.connect("source-read", hand_out_other_files)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-before-process-signature", leave_out_flags)
    app.connect("autodoc-process-signature", shorten_signature)
