"""Hostile configurations and files, and what each must end in: a result, or one clear line. `make fuzz` tries many, `make test` some."""

import os
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import psutil
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from raffm_ray.basics.errors import UserError
from raffm_ray.settings.experiment import Experiment

T = TypeVar("T")
FULL = os.environ.get("RAFFM_FUZZ") == "full"
TRIED: Counter[str] = Counter()
"""How many of each kind were tried; printed at the end of the tests where `FULL`."""
CHECKPOINTS = "damaged checkpoints, alone or with their records"
MOST_SECONDS, MOST_BYTES, LONGEST = 20, 3 * 2**30, 2000
"""What one attempt may take before it counts as hanging, and may ask for beyond what the process holds; letters of an error."""


def amount(full: int, short: int) -> int:
    """How many are tried."""
    return full if FULL else short


def many(full: int, short: int) -> settings:
    """Of hypothesis: so many examples, the same ones every time."""
    return settings(
        max_examples=amount(full, short),
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class HangingError(BaseException):
    """An attempt that did not end; not an `Exception`, so that nobody takes it for a mistake of the user."""


@contextmanager
def bounded() -> Iterator[None]:
    """Ends an attempt that takes too long, and refuses it memory beyond a bound."""

    def late(_: int, frame: Any) -> None:
        raise HangingError("".join(traceback.format_list(traceback.extract_stack(frame)[-8:])))

    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MOST_BYTES, limits[1]))
    try:
        yield
    except HangingError as error:
        raise HangingError(str(error)) from None  # what is raised between any two steps may have a traceback that cannot be shown
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_clear_line(text: str) -> None:
    """Fails unless a text is one printable line that says something, and not too much."""
    assert 10 < len(text) <= LONGEST, f"{len(text)} letters: {text[:300]}"
    assert text.isprintable(), ascii(text[:300])


def settled(kind: str, call: Callable[[], T]) -> T | UserError:
    """What a call returns, or the UserError that it raises, which is checked; everything else that it raises is a fault."""
    TRIED[kind] += 1
    try:
        with bounded():
            return call()
    except UserError as error:
        one_clear_line(str(error))
        TRIED[f"{kind}: refused"] += 1
        return error


def content(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, by its path, and of folders that there are."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def damaged(original: bytes, rng: np.random.Generator) -> bytes:
    """Another content than the original: cut short, with bits flipped, zeroed in part, of random bytes in part, or longer."""
    way, length = int(rng.integers(6)), len(original)
    at, result = int(rng.integers(length)), bytearray(original)
    if way == 0:
        del result[at:]
    elif way < 3:
        for _ in range(way):
            result[int(rng.integers(length))] ^= 1 << int(rng.integers(8))
    elif way == 3:
        result[at : at + 8] = bytes(len(result[at : at + 8]))
    elif way == 4:
        result[at : at + 8] = rng.bytes(len(result[at : at + 8]))
    else:
        result += rng.bytes(5)
    return bytes(result) if bytes(result) != original else original[:-1]


NUMBERS = st.one_of(
    st.sampled_from(
        [0, -1, 1, 2, 3, 0.5, -0.5, 1e-300, 1e300, -1e300, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**400)]
    ),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 1 << 14000]),
    st.integers(),
    st.floats(),
    st.integers(1, 64),
    st.floats(0, 1),
)
TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "x" * 100_000,
            "\0",
            "\x1b[2J",
            "a\nb",
            "\u202eabc",
            "\ud800",
            "../x",
            "/",
            "$HOME",
            "${X",
            "~",
            "null",
            "*",
            "[",
        ]
    ),
    st.text(max_size=8),
)


def _deep(levels: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


DEEP = st.builds(_deep, st.sampled_from([3, 60, 150, 400, 2000]), st.sampled_from(["list", "dict"]))
VALUES: st.SearchStrategy[Any] = st.one_of(
    NUMBERS,
    TEXTS,
    st.none(),
    st.booleans(),
    DEEP,
    st.binary(max_size=4),
    st.dates(),
    st.just({}),
    st.just([]),
    st.lists(NUMBERS | TEXTS, max_size=3),
    st.dictionaries(TEXTS | NUMBERS | st.none(), NUMBERS | TEXTS, max_size=3),
)


def places(model: type[BaseModel], values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every place of nested settings, as the model declares them and the values go on below: the path of its keys."""
    found: list[tuple[str, ...]] = []
    for name, about in model.model_fields.items():
        inner, kind = values.get(name), about.annotation
        found.append((name,))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below = places(kind, inner if isinstance(inner, dict) else {})
        else:
            below = [(str(key),) for key in inner] if isinstance(inner, dict) else []
        found += [(name, *path) for path in below]
    return found


def _known(model: type[BaseModel], path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values that the annotation at a place lists, where it does, so that some mutations get far."""
    kind: Any = model
    for part in path:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)) or part not in kind.model_fields:
            return VALUES
        kind = kind.model_fields[part].annotation
    listed = [value for value in get_args(kind) if isinstance(value, str)]
    return st.sampled_from(listed) if listed else VALUES


@st.composite
def mutated(draw: st.DrawFn, values: dict[str, Any], model: type[BaseModel] = Experiment, most: int = 3) -> dict[str, Any]:
    """Nested settings with one to some things changed, anywhere: a value, a key's spelling, what is missing, what is nested."""
    result = _copied(values)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(places(model, result)))
        target = result
        for part in path[:-1]:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        last, way = path[-1], draw(st.integers(0, 9))
        if way < 5:
            target[last] = draw(VALUES)
        elif way == 5:
            target[last] = draw(_known(model, path))
        elif way == 6:
            target.pop(last, None)
        elif way == 7:
            target[draw(TEXTS)] = target.pop(last, 1)
        elif way == 8:
            target[f"{last[:2]}{last[3:]}x"] = target.pop(last, 1)
        else:
            target[last] = draw(st.sampled_from([[target.get(last)], {last: target.get(last)}, as_word(target.get(last))]))
    return result


class _Dumper(yaml.Dumper):
    """Writes whatever there is, with tags that a safe loader refuses; whole numbers in base 16, which has no limit."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(int, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:int", hex(value)))


def as_yaml(values: Any) -> bytes:
    """Values as YAML, a made-up text for those that are too deep for it."""
    try:
        return yaml.dump(values, Dumper=_Dumper).encode(errors="surrogatepass")
    except RecursionError:
        return b"a: " + b"{a: " * 5000


def as_word(value: Any) -> str:
    """A value as one writes it behind a flag."""
    try:
        return value if isinstance(value, str) else hex(value) if isinstance(value, int) else repr(value)
    except RecursionError:
        return "{a: " * 2000


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
