"""What the documentation shows runs as it is shown."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import TINY, TOKENS, tiny_experiment
from cut_models import cut, logits, masked
from documents import DOCS, ROOT, blocks_of, calls_in, check_call, check_command, run_page
from plans import legal_order, random_cut

import raffm_ray
from raffm_ray.basics.errors import UserError
from raffm_ray.basics.plugins import use
from raffm_ray.devices.profiles import PACKAGED, load_profiles
from raffm_ray.fleet.cluster_description import load_cluster
from raffm_ray.models.architecture import FAMILIES, architecture_of, new_model
from raffm_ray.models.families.encoder import NAMES
from raffm_ray.models.model_config import parse_config
from raffm_ray.studies.study_settings import load_study

PAGES = sorted(path for part in ("tutorials", "how_to", "explanation") for path in (DOCS / part).glob("*.md"))
ALL_PAGES = [
    *PAGES,
    *ROOT.glob("*.md"),
    *DOCS.glob("*.md"),
    *ROOT.glob("cluster/**/*.md"),
    *ROOT.glob("experiments/**/*.md"),
    *ROOT.glob("notebooks/*.md"),
]


@pytest.fixture
def electra() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "how_to" / "add_a_model_family.md").read_text(), re.DOTALL)
    assert len(block.splitlines()) <= 20
    exec(block, {})
    yield
    del NAMES["electra"], FAMILIES["electra"]


@pytest.mark.parametrize("seed", range(3))
def test_a_family_is_added_by_the_row_that_is_shown(electra, seed) -> None:
    settings = {**TINY["bert"], "model_type": "electra", "embedding_size": TINY["bert"]["hidden_size"]}
    architecture = architecture_of(parse_config(settings), "sequence_classification", TOKENS)
    model = new_model(architecture, 1).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    words = torch.randint(2, 50, (4, TOKENS), generator=generator)
    inputs = {"input_ids": words, "attention_mask": (torch.arange(TOKENS) < torch.tensor([[TOKENS], [5], [9], [2]])).long()}
    rng = np.random.default_rng(seed)
    moved = cut(architecture, model, legal_order(architecture.layout, rng))
    assert (logits(moved, inputs) - logits(model, inputs)).abs().max() < 1e-5
    plan = random_cut(architecture.layout, rng, ("heads", "qk", "vo", "ffn"), layers=True)
    assert (logits(cut(architecture, model, plan), inputs) - masked(architecture, model, plan, inputs)).abs().max() < 1e-5


def test_the_examples_of_all_tables_run_as_one_plug_in(tmp_path) -> None:
    code = _own_methods()
    assert set(re.findall(r"@raffm_ray\.(\w+)\(", code)) == set(raffm_ray._DECORATORS)
    (tmp_path / "my_method.py").write_text(code)
    values = tiny_experiment(rounds=1, evaluation={"sizes": 0}, local={"learning_rate": 0.01}).model_dump(mode="json")
    chosen = {
        "model.config.model_type": "own_vit",
        "strategy.name": "alternate",
        "strategy.aggregation": "shorter",
        "model.adapters.rank": "2",
        "extraction.steps": "{rank: 1, heads: 1, qk: 2, vo: 2, ffn: 4, residual: 4}",
        "strategy.adapters": "half",
        "plugin_settings.mine.step": "0.5",
        "salience.metric": "smallest_first",
        "server.optimizer": "signed",
        "local.optimizer": "rmsprop",
        "local.client_update": "signs",
        "task.name": "noise",
        "task.metric": "error",
        "task.objective": "smoothed",
        "task.public": "40",
        "clients.partition": "every_tenth",
        "clock.availability": "even_clients",
        "loggers": "[lines]",
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**values, "plugins": ["my_method.py"]}))
    flags = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    summary = raffm_ray.simulate(raffm_ray.load(tmp_path / "own.yaml", flags), tmp_path / "run")
    assert summary["metric"] == "error"
    assert [line.split()[0] for line in (tmp_path / "run" / "lines.txt").read_text().splitlines()] == ["0", "1"]
    assert all(client % 2 == 0 for client in pq.read_table(tmp_path / "run" / "clients")["client"].to_pylist())
    use([])


@pytest.mark.parametrize("path", ALL_PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_local_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("part", ["tutorials", "how_to", "explanation"])
def test_every_page_is_in_the_table_of_contents_and_begins_with_its_one_title(part: str) -> None:
    index = (DOCS / part / "index.md").read_text()
    pages = {path.stem: path.read_text() for path in (DOCS / part).glob("*.md") if path.stem != "index"}
    listed = re.search(r"```{toctree}\n:hidden:\n\n(.*?)```", index, re.DOTALL)
    assert listed
    assert sorted(listed[1].split()) == sorted(pages)
    for name, text in pages.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, name
        assert text.startswith("# "), name
        assert f"({name}.md)" in index, name


@pytest.mark.parametrize("path", [path for path in PAGES if path.parent.name != "tutorials"], ids=lambda path: path.stem)
def test_commands_that_are_shown_could_be_run(path: Path) -> None:
    for block in blocks_of(path.read_text()):
        assert block.language in ("bash", "python", "yaml", "text", ""), f"line {block.line}"
        for command in block.commands if block.language == "bash" else []:
            check_command(command)


def _check(text: str) -> int:
    """How many calls a text shows. Raises UserError for the first that is none."""
    found = calls_in(text)
    for words in found:
        check_call(words)
    return len(found)


def test_every_call_that_is_shown_anywhere_is_one() -> None:
    """In pages, comments of experiments, cluster files and notebooks; generated pages are made from the commands themselves."""
    others = [*ROOT.glob("experiments/**/*.yaml"), *ROOT.glob("notebooks/*.py"), ROOT / "Makefile", *DOCS.glob("reference/*.md")]
    cluster = [path for path in ROOT.glob("cluster/**/*") if path.is_file()]
    calls = 0
    for path in {*ALL_PAGES, *others, *cluster} - {ROOT / "CHANGELOG.md"}:
        try:
            calls += _check(path.read_text(encoding="utf-8"))
        except UserError as error:
            pytest.fail(f"{path.relative_to(ROOT)}: {error}")
    assert calls > 100


@pytest.mark.parametrize(
    "call",
    [
        "run experiments/digits.yaml --rouns 2",
        "run experiments/digits.yaml --rounds",
        "rnu experiments/digits.yaml",
        "submit experiments/digits.yaml --addres http://127.0.0.1:8265",
        "study experiments/study_digits.yaml --trails 3",
        "fleet shwo experiments/digits.yaml",
        "report --outt x runs/a",
        "bench digits --quik",
        "run mine.yaml --clients.cuont 3",
        "run mine.yaml --rounds",
    ],
)
def test_control_a_call_with_a_mistake_is_seen(call: str) -> None:
    with pytest.raises(UserError):
        _check(f"Then `raffm-ray {call}` does it.")
    assert calls_in("`raffm-ray run` and `raffm-ray fleet show` are no calls") == []
    assert calls_in("raffm-ray run a.yaml \\\n    --rounds 3   # again\n") == [["run", "a.yaml", "--rounds", "3"]]


def _own_methods() -> str:
    """What the page on own methods says is to be saved as `my_method.py`."""
    page = (DOCS / "how_to" / "add_your_own.md").read_text()
    return "\n".join(block.text for block in blocks_of(page) if block.language == "python")


def test_settings_that_guides_show_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in PAGES:
        for block in blocks_of(path.read_text()):
            if block.language == "python" and (named := re.match(r"# (\w+\.py)\n", block.text)):
                (tmp_path / named[1]).write_text(block.text)
    (tmp_path / "my_method.py").write_text(_own_methods())
    digits = yaml.safe_load((ROOT / "experiments" / "digits.yaml").read_text())
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(digits))
    shown = [block for path in PAGES for block in blocks_of(path.read_text()) if block.language == "yaml"]
    seen = []
    for number, block in enumerate(shown):
        path, content = tmp_path / f"{number}.yaml", yaml.safe_load(block.text)
        path.write_text(block.text)
        if "devices" in content:
            load_profiles(path, PACKAGED)
        elif "experiment" in content:
            load_study(path, [])
        elif "nodes" in content:
            load_cluster(path)
        else:
            own = {"plugins": ["my_method.py"]} if "plugin_settings" in content else {}
            raffm_ray.parse({**digits, **own, **content})
        seen.append(min(content.keys() & {"devices", "experiment", "nodes"}, default="settings"))
        use([])
    assert set(seen) == {"devices", "experiment", "nodes", "settings"}
    with pytest.raises(UserError):  # control
        raffm_ray.parse({**digits, "fleet": {"mixx": "small"}})


def test_the_drawn_example_of_axes_is_what_the_code_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "explanation" / "axes.md").read_text()
    monkeypatch.chdir(tmp_path)
    run_page(page)
    with pytest.raises(AssertionError):  # control: other rows than the picture's
        run_page(page.replace("query[[0, 3, 9, 10]]", "query[[0, 3, 8, 10]]"))


def test_the_picture_of_the_drawn_example_is_that_of_its_script() -> None:
    script = DOCS / "tools" / "attention_cut.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False, timeout=60).returncode == 0
    kept = re.findall(r"^KEPT_\w+ = (.*)$", script.read_text(), re.MULTILINE)
    assert len(kept) == 3
    page = (DOCS / "explanation" / "axes.md").read_text()
    assert all(rows in page for rows in kept), "picture and page keep other indices"


def test_what_is_said_of_running_is_there_and_adds_up() -> None:
    page = (DOCS / "how_to" / "predict_time_and_cost.md").read_text()
    running = [page, *((DOCS / where).read_text() for where in ("how_to/run_on_a_cluster.md", "tutorials/laptop_to_cluster.md"))]
    named = re.findall(
        r"(?<![./\w])(?:cluster|experiments)/[\w/]+\.\w+",
        "\n".join([*running, *(path.read_text() for path in ROOT.glob("cluster/**/*.md"))]),
    )
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []
    rounds, start, again, seconds, part, total = re.search(
        r"([\d,]+) rounds, .* (\d+) s of start and end are (\d+) \+ 1,000 x ([\d.]+) x ([\d.]+) = ([\d,]+) s", page
    ).groups()
    assert start == again
    assert float(start) + int(rounds.replace(",", "")) * float(seconds) * float(part) == pytest.approx(
        float(total.replace(",", "")), abs=0.6
    )
    dollars = [
        float(number) for number in re.findall(r"assumed (\d+)[^,]*,[^,]*?(\d+)(?= dollars|\.)", page.split("An example.")[1])[0]
    ]
    assert dollars[1] == round(float(total.replace(",", "")) / 3600 * dollars[0])
