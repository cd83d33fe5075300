"""Errors that end a command with one line. `UserError`: the user can fix it, and the message says how."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
SECRET = re.compile(r"TOKEN(?!I)|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
"""What names of the environment's secrets are like."""
SHORTEST_SECRET = 8
"""Characters: shorter values are words like `true` that any text may hold."""
MOST = 40
"""Known words that an error lists."""
LONGEST = 2000
"""Letters of an error."""


def without_secrets(text: str) -> str:
    """A text for screens and logs: without the passwords of URLs, and with `$NAME` for the values of the environment's secrets."""
    text = re.sub(r"(\w://)[^/\s]+@", r"\1***@", text)
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, f"${name}")
    return text


class UserError(ValueError):
    """A mistake in what the user gave: shown as one line, exit code 2, no traceback."""

    def __init__(self, message: str) -> None:
        # The message quotes what the user gave, which may hold anything; it stays one printable line, of a length that can be read.
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in without_secrets(message))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-290:]}")


class TooSmallError(UserError):
    """A budget below the smallest plan, which the message calls `smallest`. `exceeded`: what that needs and the budget allows, in words."""

    def __init__(self, exceeded: list[str], smallest: str = "the smallest subnetwork") -> None:
        super().__init__(f"the budget is below {smallest}: {'; '.join(exceeded)}")
        self.exceeded, self.smallest = exceeded, smallest


class WorkerLostError(RuntimeError):
    """A block could not be finished because its worker died too often; nothing is wrong with the experiment as such."""


class ClientError(RuntimeError):
    """The code that a client runs raised an exception: a mistake in it, which no retry would mend."""


class BadUpdateError(RuntimeError):
    """A client's update was not finite or beyond a bound, and the experiment asks to stop then."""


def near_miss(word: str, known: Iterable[str], listed: bool = False) -> str:
    """`" (did you mean 'x'?)"` for the closest known word, or the list of all when none is close; with `listed`, both."""
    options = list(known)
    close = difflib.get_close_matches(str(word), options, n=1, cutoff=0.5)
    if close and listed:
        return f" (did you mean {close[0]!r}? known: {', '.join(sorted(options))})"
    return (
        f" (did you mean {close[0]!r}?)"
        if close
        else f" (known: {', '.join(sorted(options)[:MOST])}{', ...' if len(options) > MOST else ''})"
    )


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or a UserError that names `what` was asked for and the nearest entry."""
    if name not in table:
        raise UserError(f"{what} {name!r} is not known{near_miss(name, table)}")
    return table[name]


def in_short(error: object) -> str:
    """The message of a library's error as one line of at most 250 characters."""
    return " ".join(without_secrets(str(error)).split())[:250] or type(error).__name__


def shortened(value: object) -> str:
    """A value as an error shows it: at most 60 characters."""
    text = without_secrets(repr(value))  # before it is cut: a part of a secret is not known again
    return text if len(text) <= 60 else f"{text[:57]}..."
