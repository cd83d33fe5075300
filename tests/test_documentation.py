"""What the documentation shows runs as it is shown."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TOKENS
from plans import legal_order, random_cut
from test_families import cut, logits, masked

from raffm_ray.models.architecture import FAMILIES, architecture_of, new_model, parse_config
from raffm_ray.models.families.encoder import NAMES

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def electra() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "families.md").read_text(), re.DOTALL)
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


def test_every_local_link_leads_somewhere() -> None:
    root = DOCS.parent
    for page in [*DOCS.glob("*.md"), root / "README.md", root / "experiments" / "README.md", *root.glob("cluster/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_what_is_said_of_running_is_there_and_adds_up() -> None:
    page, root = (DOCS / "running.md").read_text(), DOCS.parent
    named = re.findall(
        r"(?:cluster|experiments)/[\w/]+\.\w+",
        "\n".join(path.read_text() for path in [DOCS / "running.md", *root.glob("cluster/**/*.md")]),
    )
    assert len(named) > 10
    assert [path for path in named if not (root / path).exists()] == []
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
