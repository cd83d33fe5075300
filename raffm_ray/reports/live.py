"""The report of a run while it works, as a page on this machine alone that renews itself."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import monotonic

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.files import check_path
from raffm_ray.reports.page import Page, render
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.reader import SUMMARY
from raffm_ray.runs.records.record_files import record_files

HERE = "127.0.0.1"
RENEWED_SECONDS = 5
"""How often a browser asks for the page; it is made anew only where something was recorded."""
MOST_OF_THE_TIME = 0.1
"""What part of the time pages of an unfinished run are drawn at most: the run has the same cores."""


class LiveReport:
    """The page of a run as it is now. `folder`: the run's, in which nothing is written; `plugins`: where those of the run are."""

    def __init__(self, folder: Path, plugins: Sequence[str] = ()) -> None:
        self._folder, self._plugins = folder, plugins
        self._lock, self._state, self._page, self._rests_until = Lock(), (-1, False), b"", 0.0

    def page(self) -> bytes:
        """The page as HTML. A run of which nothing was measured yet has one that says so."""
        with self._lock:  # a browser may ask twice at once, and pictures are drawn one after the other
            state, begun = self._recorded(), monotonic()
            if state != self._state and (state[1] or begun >= self._rests_until):
                self._page, self._state = self._rendered(), state
                self._rests_until = monotonic() + (monotonic() - begun) * (1 / MOST_OF_THE_TIME - 1)
            return self._page

    def _recorded(self) -> tuple[int, bool]:
        """How many rounds are recorded, and whether the run is finished."""
        files = record_files(self._folder, "rounds")
        return files[-1].last + 1 if files else 0, (self._folder / SUMMARY).is_file()

    def _rendered(self) -> bytes:
        with TemporaryDirectory() as into:
            try:
                _, page = write_report(self._folder, self._plugins, Path(into), RENEWED_SECONDS)
                return page.read_bytes()
            except UserError as error:
                told = Page("Report of a run", self._folder.name, [f"{error}."], [], renewed_seconds=RENEWED_SECONDS)
                return render(told).encode()


def server_of(report: LiveReport, port: int = 0) -> ThreadingHTTPServer:
    """A server of this one page on the loopback interface, not yet at work; port 0: any that is free. Raises UserError where it is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (
                HERE,
                "localhost",
            ):  # a page of another site could reach this one by a name of its own for this address
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                content = report.page()
                self.send_response(HTTPStatus.OK)
                for name, value in {
                    "Content-Type": "text/html; charset=utf-8",
                    "Content-Length": str(len(content)),
                    "Cache-Control": "no-store",
                    "X-Content-Type-Options": "nosniff",
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Requests are nobody's news."""

    try:
        return ThreadingHTTPServer((HERE, port), Handler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be listened on: {error.strerror}") from None


def serve(folder: Path, plugins: Sequence[str], port: int, tell: Callable[[str], None]) -> None:
    """Serves a run's report until Ctrl-C. Raises UserError where there is no run, or the port is taken."""
    check_path(folder)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run here (config.yaml is missing)")
    with server_of(LiveReport(folder, plugins), port) as server:
        tell(f"http://{HERE}:{server.server_port}/ shows {folder} and renews itself; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tell("ended")
