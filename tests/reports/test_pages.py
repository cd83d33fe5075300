"""Pages of one run and of several: what is compared, by what name, with what error; and that a browser shows them without a network."""

import json
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.reports import comparison_picture
from raffm_ray.reports.comparison_table import progress
from raffm_ray.reports.multi_run_report import labels, write_comparison
from raffm_ray.reports.run_report import write_report
from raffm_ray.runs.simulation import simulate

SMALL = {"rounds": 2, "local": {"steps": 1}, "evaluation": {"every": 1, "sizes": 1}, "model": {"pretrain": {"epochs": 1}}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    asked = {"a0": {"seed": 0}, "a1": {"seed": 1}, "b0": {"seed": 0, "strategy": {"name": "heterofl"}}}
    for name, changes in asked.items():
        simulate(tiny_experiment(**SMALL, **changes), folder / name)
    return {name: folder / name for name in asked}


def test_several_runs_are_grouped_by_what_differs(runs, tmp_path, capsys) -> None:
    page = write_comparison(list(runs.values()), tmp_path / "page")
    content = json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert list(content["strategies"]) == ["raffm", "heterofl"]
    ends = [json.loads((runs[name] / "summary.json").read_text())["global"] for name in ("a0", "a1")]
    full = content["strategies"]["raffm"]["full"]
    assert full["mean"] == pytest.approx(np.mean(ends))
    assert full["standard_error"] == pytest.approx(np.std(ends, ddof=1) / np.sqrt(2))
    assert content["strategies"]["raffm"]["progress"]["mean"][-1] == pytest.approx(np.mean(ends))
    assert content["strategies"]["heterofl"]["full"]["standard_error"] is None
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
    for one in (summary, *summary["tiers"].values()):
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
    rates = [{**base, "local": {"learning_rate": rate}} for rate in (0.00123451, 0.00123452)]
    assert labels(rates) == ["raffm, learning_rate 0.00123451", "raffm, learning_rate 0.00123452"]


def test_progress_is_of_rounds_that_all_seeds_evaluated() -> None:
    first = [{"round": 0, "metric": 0.5}, {"round": 1, "metric": None}, {"round": 2, "metric": 0.7}]
    second = [{"round": 0, "metric": 0.7}, {"round": 1, "metric": 0.9}, {"round": 2, "metric": None}]
    assert progress([first, second]) == {"round": [0], "mean": [pytest.approx(0.6)], "standard_error": [pytest.approx(0.1)]}
    assert progress([first]) == {"round": [0, 2], "mean": [0.5, 0.7], "standard_error": [None, None]}


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
    monkeypatch.setattr(comparison_picture.plt, "close", drawn.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison_picture.draw_comparison({**content, "strategies": strategies}, tmp_path / "long.png")
    (figure,) = drawn
    wide = [axes.get_position().width * figure.get_figwidth() for axes in figure.axes]
    assert min(wide) > 2.5, "inches"


BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
PROBE = """<script>addEventListener("load", () => { document.body.dataset.probe = JSON.stringify({
images: [...document.images].map(one => one.naturalWidth), wide: document.documentElement.scrollWidth - innerWidth,
color: getComputedStyle(document.body).backgroundColor}) })</script>"""


def probed(page: Path, *flags: str) -> dict[str, object]:
    """What a browser says of a page: its pictures' widths, by how much it is too wide, its background."""
    copy = page.with_name(f"probed-{page.name}")
    copy.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,900",
        *flags,
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    copy.unlink()
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-500:]
    told: dict[str, object] = json.loads(found[1].replace("&quot;", '"'))
    return told


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_every_picture_light_and_dark(runs, tmp_path) -> None:
    cli(["report", str(runs["a0"])])
    pages = {runs["a0"] / "report.html": 4, write_comparison(list(runs.values()), tmp_path / "page"): 1}
    for page, pictures in pages.items():
        assert "http" not in page.read_text().replace("http-equiv", "")
        light, dark = probed(page), probed(page, "--blink-settings=preferredColorScheme=0")
        for told in (light, dark):
            assert len(told["images"]) == pictures  # type: ignore[arg-type]
            assert min(told["images"]) > 500  # type: ignore[call-overload]
            assert told["wide"] <= 0  # type: ignore[operator]
        assert light["color"] == "rgb(255, 255, 255)"
        assert dark["color"] == "rgb(24, 24, 24)"
    broken = tmp_path / "broken.html"
    broken.write_text((runs["a0"] / "report.html").read_text().replace("base64,iVBOR", "base64,AAAAA"))
    assert min(probed(broken)["images"]) == 0  # type: ignore[call-overload]
