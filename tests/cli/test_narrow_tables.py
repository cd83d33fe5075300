"""Every kind of table that a command prints, on a terminal of 80 columns: no word is cut, and none is left out."""

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_experiment
from rich.console import Console, Group, RenderableType
from rich.table import Table

from raffm_ray.benchmarks import attention, extraction, suite
from raffm_ray.benchmarks.measurement import Row
from raffm_ray.cli import starter
from raffm_ray.data.inspection import Column
from raffm_ray.data.shares import by_device, share_table
from raffm_ray.deployment import command as deployment
from raffm_ray.fleet import command as fleet
from raffm_ray.fleet.cluster_description import load_cluster
from raffm_ray.fleet.cluster_placement import placed, placement_table, predicted
from raffm_ray.fleet.device_plans import device_type_rows, provisional_ranking
from raffm_ray.preparation.prepare import Prepared, prepare
from raffm_ray.reports.comparisons.table import tables
from raffm_ray.reports.run_story import summary_table
from raffm_ray.studies import study_text

ROOT = Path(__file__).parents[2]
DEVICES = ("raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100")
LONG = ("federated_dropout", "raffm_reference", "heterofl with another label")


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(tiny_experiment())


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "standard_error": 0.0123}


def told_budgets(prepared: Prepared) -> RenderableType:
    state = provisional_ranking(prepared)
    rows = device_type_rows(prepared.setup, state, 10)
    return Group(fleet.cost_table(prepared.setup, rows, 10), fleet.width_table(prepared.setup, rows))


def told_cluster(prepared: Prepared) -> RenderableType:
    placement = placed(prepared, load_cluster(ROOT / "cluster" / "described" / "eight_gpus.yaml"))
    rounds = predicted(prepared, provisional_ranking(prepared), placement, 1)
    return placement_table(placement, rounds, fleet._table("a cluster"))


def told_shares(prepared: Prepared) -> RenderableType:
    setup = prepared.setup
    return share_table(prepared.label_distribution, by_device(setup.device_types, setup.budgets), "who has what")


def told_summary(_: Prepared) -> RenderableType:
    tier = {"params_fraction": 0.5, "start": 0.5, "metric": 0.75, "bytes_down": 1e8, "bytes_up": 1e8, "round_seconds": 12.3}
    tier |= {"energy_joules": 123.0, "peak_memory_bytes": 485_100_000}
    one = {"full_model": 0.75, "device_types": dict.fromkeys(DEVICES, tier), "bytes_down": 1e9, "bytes_up": 1e9, "curve": []}
    one |= {"worst_device_type": {"metric": 0.5}}
    whole = {**one, "name": "tiny", "metric": "accuracy", "rounds": 2, "clients": 12, "params": 22_713_986, "start": 0.5}
    return summary_table({**whole, "strategy": "raffm", "baselines": dict.fromkeys(LONG, one)})


def told_comparison(_: Prepared) -> RenderableType:
    one = {
        "device_types": dict.fromkeys(DEVICES, value(0.5)),
        "full_model": value(0.9),
        "worst_device_type": value(0.5),
        "curve_area": value(0.7),
    }
    one |= {"bytes": value(5e9), "simulated_seconds": value(123.0), "energy_joules": value(456.0)}
    one |= {"flops_a_client": value(5e9), "over_budget": value(0.25)}
    content = {"name": "tiny", "metric": "accuracy", "rounds": 2, "seeds": [0, 1, 2], "strategies": dict.fromkeys(LONG, one)}
    return Group(*tables({**content, "clients": 12, "params": 1000}))


def told_study(_: Prepared) -> RenderableType:
    measures = {name: value(0.5) for name in ("full_model", "worst_device_type", "mean_over_sizes", "bytes")}
    row: dict[str, Any] = {"number": 12, "values": dict.fromkeys(measures, 0.5), "enqueued": False, "measures": measures}
    row |= {"held_out": measures, "file": "front/trial-12.yaml"}
    row["settings"] = {"local.learning_rate": 1e-3, "extraction.steps.residual": 4, "salience.metric": "outputs"}
    objectives = dict.fromkeys(("full_model", "worst_device_type", "bytes"), "maximize")
    content = {"name": "tiny", "metric": "accuracy", "objectives": objectives, "trials": [row], "front": [12], "best": 12}
    return study_text.table(content)


def told_deployment(_: Prepared) -> RenderableType:
    form = {"metric": 0.5, "bytes": 45_500_000, "median_ms": 12.3, "p95_ms": 15.6}
    one = {"metric_name": "accuracy", "forms": dict.fromkeys(("torch", "onnx", "int8"), form), "params": 22_713_986}
    one |= {
        "params_fraction": 0.5,
        "layer_fraction": 0.25,
        "macs": 388_000_000,
        "inference_bytes": 91_400_000,
        "timed_examples": 1,
    }
    return deployment.table_of({"size-layer_params-0.35": one, "size-layer_params-0.5": one})


def told_suite(_: Prepared) -> RenderableType:
    row = Row("a client of a large model, all parameters", "clients/s", (1234.5,), (2345.6,), target=1.05)
    return suite.table_of({name: [row] for name in suite.CASES}, "the speed suite on a processor with a long name, two workers")


def told_extraction(_: Prepared) -> RenderableType:
    count = len(extraction.FRACTIONS)
    rows = [extraction.Row("ranked list of all widths", "activation", "as trained", (0.5,) * count)]
    return extraction._table(0.9, rows, "accuracy")


def told_attention(_: Prepared) -> RenderableType:
    times = dict.fromkeys(attention.IMPLEMENTATIONS, 12.345)
    rows = [
        attention.AttentionRow("a training step of a model of 12 layers, 64 positions, batches of 16", "bfloat16", times, "sdpa")
    ]
    return attention.table_of(rows, "cpu, one thread, torch 2.13, a processor with a long name, which has no AMX")


def told_start(_: Prepared) -> RenderableType:
    """What `init` prints goes to a console of its own: its tables are caught on the way."""
    caught: list[Table] = []
    asked = pytest.MonkeyPatch()
    asked.setattr(starter, "standard_output", lambda: Caught(caught))
    columns = [Column("a_column_with_a_long_name", "category", 5, 3, {"a long value of a category": 1000, "another": 20})]
    choices = [starter.Choice("model", "all-MiniLM-L6-v2", "a small sentence encoder that is installed, and texts are short")]
    try:
        starter._show("folder/of/reviews_with_a_long_name.csv", 1000, columns, choices, Path("reviews.yaml"))
    finally:
        asked.undo()
    return Group(*caught)


class Caught:
    """A console that keeps tables."""

    def __init__(self, kept: list[Table]) -> None:
        self.kept = kept

    def print(self, *told: Any, **_: Any) -> None:
        """Keeps the tables among what is printed."""
        self.kept += [one for one in told if isinstance(one, Table)]


KINDS = {name.removeprefix("told_"): made for name, made in list(globals().items()) if name.startswith("told_")}


def tables_in(told: RenderableType) -> list[Table]:
    if isinstance(told, Group):
        return [table for part in told.renderables for table in tables_in(part)]
    return [told] if isinstance(told, Table) else []


def words_of(table: Table) -> set[str]:
    text = Console()
    cells = [cell for column in table.columns for cell in (column.header, *column._cells)]
    return {
        word for told in (*cells, table.title or "", table.caption or "") for word in text.render_str(str(told)).plain.split()
    }


def printed(told: RenderableType) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as shown:
        console.print(told)
    return shown.get()


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_is_cut(prepared: Prepared, kind: str) -> None:
    told = KINDS[kind](prepared)
    shown, tables = printed(told), tables_in(told)
    assert tables
    for table in tables:
        assert words_of(table) <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_control_a_plain_table_of_the_same_cuts_words(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raffm_ray.reports.comparisons.table.WordTable", Table)
    told = told_comparison(prepared)
    assert not all(words_of(table) <= set(printed(told).split()) for table in tables_in(told))
