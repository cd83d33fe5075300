"""Pages of one run and of several: what is compared, by what name, with what error; and that a browser shows them without a network."""

import csv
import json
import os
import re
import shutil
import subprocess
import warnings
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment
from html_pages import data_of, lacks, of, rows_of

from raffm_ray.basics.errors import UserError
from raffm_ray.cli import commands
from raffm_ray.cli.main import main as cli
from raffm_ray.reports import live
from raffm_ray.reports.comparisons import picture
from raffm_ray.reports.comparisons.report import labels, write_comparison
from raffm_ray.reports.run_report import write_report
from raffm_ray.reports.run_story import made_with_facts
from raffm_ray.reports.seed_statistics import progress
from raffm_ray.runs.made_with import read_starts
from raffm_ray.runs.reader import read_so_far
from raffm_ray.runs.simulation import simulate

SMALL = {"rounds": 2, "local": {"steps": 1}, "evaluation": {"every": 1, "sizes": 1}, "model": {"pretrain": {"epochs": 1}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    asked = {"a0": {"seed": 0}, "a1": {"seed": 1}, "b0": {"seed": 0, "strategy": {"name": "heterofl"}}}
    for name, changes in asked.items():
        simulate(tiny_experiment(**SMALL, **changes), folder / name)
    return {name: folder / name for name in asked}


@pytest.fixture(scope="module")
def page(runs: dict[str, Path]) -> str:
    """Of one run."""
    return write_report(runs["a0"])[1].read_text()


def test_several_runs_are_grouped_by_what_differs(runs, tmp_path, capsys) -> None:
    page = write_comparison(list(runs.values()), tmp_path / "page")
    content = json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert list(content["strategies"]) == ["raffm", "heterofl"]
    ends = [json.loads((runs[name] / "summary.json").read_text())["full_model"] for name in ("a0", "a1")]
    full = content["strategies"]["raffm"]["full_model"]
    assert full["mean"] == pytest.approx(np.mean(ends))
    assert full["standard_error"] == pytest.approx(np.std(ends, ddof=1) / np.sqrt(2))
    assert content["strategies"]["raffm"]["progress"]["mean"][-1] == pytest.approx(np.mean(ends))
    assert content["strategies"]["heterofl"]["full_model"]["standard_error"] is None
    text = page.read_text()
    assert all(str(folder) in text for folder in runs.values())
    assert cli(["report", str(runs["a0"]), str(runs["b0"]), "--out", str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "other" / "comparison.html")


def test_the_page_of_a_run_of_an_earlier_version_tells_what_it_lacks(runs, tmp_path) -> None:
    """Before clients were charged for prefixes: neither in the records nor in the summary."""
    old = Path(shutil.copytree(runs["a0"], tmp_path / "old"))
    lacked = ("flops", "peak_memory_bytes"), ("flops_per_example", "over_budget")
    for part, names in zip(("rounds", "clients"), lacked, strict=True):
        for path in (old / part).iterdir():
            pq.write_table(pq.read_table(path).drop_columns(list(names)), path)
    summary = json.loads((old / "summary.json").read_text())
    for one in (summary, *summary["device_types"].values()):
        for name in ("flops", "flops_per_example", "over_budget", "extensions"):
            one.pop(name, None)
    (old / "summary.json").write_text(json.dumps(summary))
    told = "are not in the records of tiny: an earlier version made them"
    assert cli(["report", str(old)]) == 0
    page = (old / "report.html").read_text()
    assert f"flops, peak_memory_bytes, flops_per_example, over_budget {told}." in page
    assert page.count(told) == 1
    _, whole = write_report(runs["a0"])
    assert told not in whole.read_text()  # control


def test_names_come_from_settings_in_which_runs_differ() -> None:
    base = {"seed": 0, "strategy": {"name": "raffm", "prefix": "none"}, "local": {"steps": 5}}
    other = {"seed": 1, "strategy": {"name": "raffm", "prefix": "one"}, "local": {"steps": 5}}
    assert labels([base, {**base, "seed": 7}]) == ["raffm", "raffm"]
    assert labels([base, other]) == ["raffm, prefix none", "raffm, prefix one"]
    left = {**base, "strategy": {"name": "raffm", "prefix": "default"}}
    assert labels([base, left]) == ["raffm, prefix none", "raffm"]
    nested = {**base, "salience": {"every": 1}, "evaluation": {"every": 2}}
    assert labels([base, nested]) == [
        "raffm, salience.every None, evaluation.every None",
        "raffm, salience.every 1, evaluation.every 2",
    ]
    assert labels([base, {**base, "strategy": {"name": "full", "prefix": "none"}}]) == ["raffm", "full"]
    budgets = [{**base, "fleet": {"budgets": {name: {"params": share} for name in ("pi", "laptop")}}} for share in (1 / 3, 0.5)]
    assert labels(budgets) == ["raffm, pi.params 0.3333, laptop.params 0.3333", "raffm, pi.params 0.5, laptop.params 0.5"]
    limits = [{**base, "fleet": {"budgets": {"pi": {"memory_bytes": limit}}}} for limit in (5e8, 2_000_000_000, 0.5)]
    assert labels(limits) == ["raffm, memory_bytes 500.0 MB", "raffm, memory_bytes 2.0 GB", "raffm, memory_bytes 0.5"]
    rates = [{**base, "local": {"learning_rate": rate}} for rate in (0.00123451, 0.00123452)]
    assert labels(rates) == ["raffm, learning_rate 0.00123451", "raffm, learning_rate 0.00123452"]


def test_progress_is_of_rounds_that_all_seeds_evaluated() -> None:
    costs = {"bytes_down": 2, "bytes_up": 1, "energy_joules": 2.0, "round_seconds": 0.5}
    first, second = (
        [{"round": number, "metric": metric, **costs} for number, metric in enumerate(metrics)]
        for metrics in ((0.5, None, 0.7), (0.7, 0.9, None))
    )
    spent = {"bytes": [3.0], "energy_joules": [2.0], "simulated_seconds": [0.5]}
    both = {"round": [0], "mean": [pytest.approx(0.6)], "standard_error": [pytest.approx(0.1)]}
    assert progress([first, second]) == both | spent
    alone = {"round": [0, 2], "mean": [0.5, 0.7], "standard_error": [None, None]}
    until = {name: [values[0], 3 * values[0]] for name, values in spent.items()}  # what the round between took is counted
    assert progress([first]) == alone | until


def test_what_cannot_be_shown_together_is_told(runs, tmp_path) -> None:
    with pytest.raises(UserError, match="another of these runs has the same settings and seed 0"):
        write_comparison([runs["a0"], runs["a0"]], tmp_path / "page")
    other = tmp_path / "other"
    shutil.copytree(runs["a0"], other)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps(summary | {"metric": "f1"}))
    with pytest.raises(UserError, match="cannot be shown together: their metric are accuracy and f1"):
        write_comparison([runs["a0"], other], tmp_path / "page")
    assert not (tmp_path / "page").exists()
    assert cli(["report", str(runs["a0"]), "--out", str(other)]) == 2
    assert cli(["report", str(runs["a0"]), str(tmp_path)]) == 2


@pytest.mark.parametrize("settings", [1, 8])
def test_names_of_many_settings_leave_the_panels_room(runs, tmp_path, settings, monkeypatch) -> None:
    write_comparison(list(runs.values()), tmp_path / "page")
    content = json.loads((tmp_path / "page" / "comparison.json").read_text())
    many = ", ".join(f"raspberry_pi_{number}.params 0.1234" for number in range(settings))
    strategies = {f"{name}, {many}": one for name, one in content["strategies"].items()}
    drawn = []
    monkeypatch.setattr(picture.plt, "close", drawn.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw_comparison({**content, "strategies": strategies}, tmp_path / "long.png")
    (figure,) = drawn
    wide = [axes.get_position().width * figure.get_figwidth() for axes in figure.axes]
    assert min(wide) > 2.5, "inches"


def test_the_page_of_a_run_tells_what_was_found_on_what(runs, page) -> None:
    folder = runs["a0"]
    summary = json.loads((folder / "summary.json").read_text())
    assert lacks(page) == []
    lead = of(page, "div")[0]
    facts = dict(zip(*([one.words for one in of(page, name)] for name in ("dt", "dd")), strict=True))
    error = 100 * (summary["full_model"] * (1 - summary["full_model"]) / summary["held_out_examples"]) ** 0.5
    assert f"{100 * summary['full_model']:.1f}% accuracy on {summary['held_out_examples']:,} held-out examples" in lead.words
    assert f"standard error of {error:.1f} points" in lead.words
    (start,) = read_starts(folder)
    assert facts["Processor"] == f"{start['processor']}, {start['cores']} cores"
    assert facts["Command"] == "started from Python"
    assert start["libraries"]["torch"] in facts["Python and libraries"]
    assert facts["Clients"].startswith(f"{summary['clients']}, ")
    assert of(page, "pre")[0].words == " ".join((folder / "config.yaml").read_text().split())
    assert made_with_facts([]) == [("Command, versions and hardware", "not recorded: an earlier version made this")]
    twice = dict(made_with_facts([start, {**start, "done": 7, "processor": "Other"}]))
    assert twice["Processor"] == f"{facts['Processor']}; then Other, {start['cores']} cores"
    assert twice["Version"] == facts["Version"]
    assert twice["Started"].endswith(", after 7 rounds")


def test_every_picture_of_a_run_has_its_data(runs, page) -> None:
    summary = json.loads((runs["a0"] / "summary.json").read_text())
    found = {name: list(csv.DictReader(lines)) for name, lines in data_of(page).items()}
    over = [f"accuracy_over_{what}.csv" for what in ("rounds", "bytes", "simulated_seconds", "energy_joules")]
    beside = ["accuracy_over_sizes.csv", "bytes_of_a_round.csv", "units.csv"]
    part = ["participation_by_device_type.csv", "clients_by_rounds.csv"]
    assert list(found) == [*over, *beside, *part, "shares.csv", "profile.csv"]
    last = found["accuracy_over_rounds.csv"][-1]
    assert float(last["accuracy_full_model"]) == summary["full_model"]
    assert float(last["accuracy_worst_device_type"]) == summary["worst_device_type"]["metric"]
    assert int(last["bytes_moved"]) == summary["bytes_down"] + summary["bytes_up"]
    assert float(last["simulated_seconds"]) == summary["simulated_seconds"]
    assert float(last["energy_joules"]) == pytest.approx(summary["energy_joules"])
    trained = [float(row["accuracy"]) for row in found["accuracy_over_sizes.csv"] if row["trained"] == "True"]
    assert trained == [point["metric"] for point in summary["curve"] if point["trained"]]
    assert {row["device_type"] for row in found["bytes_of_a_round.csv"]} == set(summary["device_types"])
    assert len(found["profile.csv"]) == 1 + summary["rounds"]
    assert len(found["shares.csv"]) > summary["clients"] / 2
    assert sum(row["kept_v100"] == "1" for row in found["units.csv"]) == len(found["units.csv"])
    assert all(
        figure.words.endswith(f"of {name.removesuffix('.csv')}")
        for figure, name in zip(of(page, "figcaption"), found, strict=True)
    )


def test_the_page_of_several_runs_tells_what_can_be_told(runs, tmp_path) -> None:
    page = write_comparison(list(runs.values()), tmp_path / "page").read_text()
    content = json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert lacks(page) == []
    said = [one.words for one in of(page, "p")]
    assert "mean ± standard error over 2 seeds" in said[1]
    assert "no difference can be told from 1 seed" in said[2]
    full = content["strategies"]["raffm"]["full_model"]
    assert rows_of(page)[1][:2] == ["raffm", f"{100 * full['mean']:.1f} ± {100 * full['standard_error']:.1f}"]
    assert rows_of(page, 1)[1][2] == "no"
    assert [row[:2] for row in rows_of(page, 2)[1:]] == [["raffm", "0"], ["raffm", "1"], ["heterofl", "0"]]
    data = data_of(page)
    over = [f"accuracy_over_{what}.csv" for what in ("rounds", "bytes", "energy", "sizes")]
    assert list(data) == [*over, "runs.csv"]
    assert "\n".join(data["runs.csv"]) == (tmp_path / "page" / "comparison.csv").read_text().strip()
    assert [one.words for one in of(page, "summary")] == [
        f"All settings of {name} (config.yaml)" for name in ("raffm", "heterofl")
    ]


BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
PROBE = """<script>addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth - innerWidth, images = [...document.images].map(one => one.naturalWidth);
  const column = () => [...document.querySelectorAll("tbody")[0].rows].map(row => row.cells[1].dataset.order);
  const button = document.querySelectorAll("th button")[1], before = column(), sorted = [];
  for (const _ of [1, 2]) { button?.click(); sorted.push(column()); }
  document.documentElement.style.width = "400px";
  const inside = one => one.closest(".scroll, .pan, pre, .skip, .unseen") === null;
  const outside = [...document.body.querySelectorAll("*")].filter(one => inside(one) && one.getBoundingClientRect().right > 401).length;
  const told = button?.closest("th").getAttribute("aria-sort"), color = getComputedStyle(document.body).backgroundColor;
  document.body.dataset.probe = JSON.stringify({images, wide, color, before, sorted, told, outside});
})</script>"""
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"


def probed(page: Path, profile: Path, *flags: str, width: int = 1280) -> dict[str, Any]:
    """What a browser says of a page: its pictures' widths, by how much it is too wide, its background, what of it is outside of 400 pixels, and its first table's second
    column before and after two clicks on its heading. The page's policy, which refuses foreign scripts, is left out."""
    copy = page.with_name(f"probed-{page.name}")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"))
    assert BROWSER is not None
    given = [*QUIET.split(), f"--user-data-dir={profile}", f"--window-size={width},900", *flags]
    done = subprocess.run([BROWSER, *given, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    copy.unlink()
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-500:]
    told: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
    return told


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.usefixtures("page")
def test_a_browser_shows_every_picture_light_dark_and_narrow_and_sorts_tables(runs, tmp_path) -> None:
    pages = {runs["a0"] / "report.html": 9, write_comparison(list(runs.values()), tmp_path / "page"): 3}
    for page, pictures in pages.items():
        light = probed(page, tmp_path / "profile")
        narrow = probed(
            page, tmp_path / "profile", "--blink-settings=preferredColorScheme=0", width=500
        )  # a window is no narrower
        for told in (light, narrow):
            assert len(told["images"]) == pictures
            assert min(told["images"]) > 400
            assert told["wide"] <= 0
            up, down = ([float(value) for value in values] for values in told["sorted"])
            assert up == sorted(map(float, told["before"]))
            assert down == up[::-1]
            assert told["told"] == "descending"
        assert narrow["outside"] == 0
        assert light["color"] == "rgb(255, 255, 255)"
        assert narrow["color"] == "rgb(24, 24, 24)"
    text = (runs["a0"] / "report.html").read_text()
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace("base64,iVBOR", "base64,AAAAA").replace("max-width: 100%", "").replace("button.addEventListener", "void ")
    )
    told = probed(broken, tmp_path / "profile", width=500)
    assert min(told["images"]) == 0
    assert told["outside"] > 0
    assert told["sorted"][0] == told["sorted"][1] == told["before"]


def so_far(run: Path, folder: Path, rounds: int) -> Path:
    """A copy of a finished run as it was after so many rounds."""
    shutil.copytree(run, folder)
    for path in (folder / "summary.json", folder / "report.html", *folder.glob("*.png")):
        path.unlink(missing_ok=True)
    for number in range(rounds + 1, 3):
        for part in ("rounds", "clients"):
            next((folder / part).glob(f"*{number}.parquet")).unlink()
    return folder


def test_what_is_said_of_an_unfinished_run_is_what_its_summary_will_say(runs, tmp_path) -> None:
    """Key by key, where all rounds are recorded; control: a round earlier it says something else."""
    summary = json.loads((runs["a0"] / "summary.json").read_text())
    almost, earlier = (read_so_far(so_far(runs["a0"], tmp_path / str(rounds), rounds)) for rounds in (2, 1))
    assert almost.pop("unfinished") == 2
    for name, device_type in almost.pop("device_types").items():
        assert device_type == pytest.approx({key: summary["device_types"][name][key] for key in device_type}), name
    assert almost.pop("worst_device_type") == summary["worst_device_type"]
    assert almost == pytest.approx({key: summary[key] for key in almost})
    assert (earlier["rounds"], earlier["bytes_down"] < summary["bytes_down"]) == (1, True)


def test_the_page_of_an_unfinished_run_says_so(runs, tmp_path, capsys) -> None:
    folder = so_far(runs["a0"], tmp_path / "run", 1)
    assert cli(["report", str(folder)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "report.png"), str(folder / "report.html")]
    page = (folder / "report.html").read_text()
    assert "This run is not finished: what follows is how it was after round 1 of 2." in page
    assert "Report of a run that is not finished: raffm" in page
    assert lacks(page) == []
    assert data_of(page)["accuracy_over_rounds.csv"][-1].split(",")[1] == "1"
    assert 'http-equiv="refresh"' not in page


def test_a_live_report_renews_itself_on_this_machine_alone(runs, tmp_path, monkeypatch) -> None:
    made = []

    def write(folder, plugins, into, renewed_seconds):
        made.append(renewed_seconds)
        (into / "report.html").write_text(f"page {len(made)}")
        return into, into / "report.html"

    monkeypatch.setattr(live, "write_report", write)
    folder = so_far(runs["a0"], tmp_path / "run", 1)
    before = sorted(path.name for path in folder.rglob("*"))
    report = live.LiveReport(folder)
    with live.server_of(report) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"

        def asked(path: str = "/", host: str = address) -> tuple[int, str]:
            connection = HTTPConnection(address)
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert asked() == asked() == (200, "page 1"), "nothing was recorded meanwhile"
        assert asked(host="example.org")[0] == 403
        assert asked("/config.yaml")[0] == 404
        assert server.server_address[0] == "127.0.0.1"
        assert sorted(path.name for path in folder.rglob("*")) == before
        record = next((runs["a0"] / "rounds").glob("*2.parquet"))
        shutil.copy(record, folder / "rounds")
        report._rests_until = float("inf")
        assert asked() == (200, "page 1"), "the run needs the cores"
        report._rests_until = 0.0
        assert asked() == (200, "page 2")
        shutil.copy(runs["a0"] / "summary.json", folder)
        assert asked() == (200, "page 3")
        with pytest.raises(UserError, match=f"--port {server.server_port}: cannot be listened on"):
            live.server_of(live.LiveReport(folder), server.server_port)
        server.shutdown()
    assert set(made) == {live.RENEWED_SECONDS}


def test_a_live_report_of_a_run_that_measured_nothing_waits(runs, tmp_path, capsys) -> None:
    folder = so_far(runs["a0"], tmp_path / "run", -1)
    for path in (folder / "rounds").iterdir():
        path.unlink()
    page = live.LiveReport(folder).page().decode()
    assert "nothing was measured yet" in page
    assert f'<meta http-equiv="refresh" content="{live.RENEWED_SECONDS}">' in page
    for words, told in (
        (["--live", str(runs["a0"]), str(runs["a1"])], "--live is for the folder of one run"),
        (["--live", str(tmp_path)], "no run here (config.yaml is missing)"),
        (["--port", "1", str(folder)], "--port is for --live"),
        (["--live", "--port", "65536", str(folder)], "ports are numbered up to 65535"),
    ):
        assert cli(["report", *words]) == 2
        assert told in capsys.readouterr().err


def test_the_report_of_an_unfinished_run_is_written_again_at_its_end(runs, tmp_path, monkeypatch) -> None:
    """Control: one that was written after the end is not."""
    shutil.copytree(runs["a0"], folder := tmp_path / "run")
    made: list[Path] = []
    page, summary = folder / "report.html", folder / "summary.json"
    monkeypatch.setattr("raffm_ray.reports.run_report.write_report", lambda one: made.append(one) or (page, page))
    page.write_text("so far")
    for written, again in ((1, [folder]), (3, [])):
        made.clear()
        os.utime(page, (written, written))
        os.utime(summary, (2, 2))
        commands._show(json.loads(summary.read_text()), folder)
        assert made == again
