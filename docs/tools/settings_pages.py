"""The reference of all settings as Markdown, from the pydantic models: name, type, default and meaning of each."""

import re
from inspect import getdoc, isclass, isroutine
from typing import Any

from pydantic import BaseModel

from raffm_ray.settings.description import TABLE, Setting, groups, table_at


def _first_sentence(value: Any) -> str:
    if not (isroutine(value) or isclass(value)) or (isclass(value) and "__doc__" not in vars(value)):
        return ""
    text = " ".join((getdoc(value) or "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


def meaning_text(description: str) -> str:
    """A description as Markdown: patterns with `*` in them are code, and the names of a table that it refers to follow."""
    text = re.sub(r"(?<![`\w])(\*\w+\*|\$[A-Z]+\b)", r"`\1`", description.replace("<", r"\<"))
    text = re.sub(r"(?<![`\w])((?:raffm_ray/|raffm_ray\.|ray\.io/)[\w./-]*\w)", r"`\1`", text)
    text = text[:1].upper() + text[1:].rstrip(".") + "."
    for name in dict.fromkeys(TABLE.findall(description)):
        table = table_at(name)
        if table is None:
            continue
        told = {key: _first_sentence(value) for key, value in table.items()}
        if any(told.values()):
            text += "\n\n" + "\n".join(f"- `{key}`: {line}" if line else f"- `{key}`" for key, line in told.items())
        else:
            text += " Names: " + ", ".join(f"`{key}`" for key in table) + "."
    return text


def anchor(path: str, prefix: str) -> str:
    """What other pages link to: `setting-clients-alpha`."""
    return f"{prefix}-" + re.sub(r"[^\w]+", "-", path).strip("-").replace("_", "-")


def entry(setting: Setting, prefix: str, indexed: bool) -> str:
    """One setting: an anchor, and an entry of Sphinx's domain of configuration values."""
    options = [f":type: {setting.type}", f":default: {setting.default}", *([] if indexed else [":no-index:"])]
    return "\n".join(
        [
            f"({anchor(setting.path, prefix)})=",
            f"````{{confval}} {setting.path}",
            *options,
            "",
            meaning_text(setting.meaning),
            "````",
            "",
        ]
    )


def page(model: type[BaseModel], prefix: str, indexed: bool) -> str:
    """All settings of a model. `indexed`: whether `{confval}` finds them by name; of two models only one can be."""
    parts = []
    for path, group, own in groups(model):
        if path:
            parts.append(f"({anchor(path, prefix)}-group)=\n## `{path}`\n\n{' '.join((getdoc(group) or '').split())}\n")
        elif indexed:
            parts.append("## At the top\n")
        parts += [entry(setting, prefix, indexed) for setting in own]
    return "\n".join(parts)
