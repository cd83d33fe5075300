"""One action at a time on a thread, beside whoever started it."""

from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue


class _Work:
    """An action on a thread, and how it ended. No locks: Ctrl-C while one is waited for could leave it taken."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action, self._told = action, SimpleQueue[None]()
        self.ended = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._action()
        except BaseException as error:  # whatever it is, who waits must hear of it
            self.error = error
        self.ended = True
        self._told.put(None)

    def wait(self) -> None:
        if not self.ended:
            self._told.get()


class Background:
    """Runs an action beside who started it; the next one begins after it. What an action raises is raised by who waits for it next."""

    def __init__(self) -> None:
        self._work: _Work | None = None

    def start(self, action: Callable[[], object]) -> None:
        """Begins an action. Raises what the one before raised."""
        self.wait()
        work = _Work(action)
        start_new_thread(work.run, ())
        self._work = work

    def wait(self) -> None:
        """Returns when nothing runs. Raises what the action raised, once."""
        work = self._work
        if work is not None:
            work.wait()
            self._work = None
            if work.error is not None:
                raise work.error

    @contextmanager
    def settled(self) -> Iterator[None]:
        """However what is inside ends, nothing runs afterwards. Raises what an action raised, unless something else is raised already."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.wait()
            raise
        self.wait()
