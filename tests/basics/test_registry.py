"""Tables and their decorators: what is added is checked, is known by its name, and goes with the code that added it."""

import sys

import pytest
from pydantic import BaseModel

from raffm_ray.basics.errors import UserError
from raffm_ray.basics.plugins import check_rows_reach_workers, installed, read_plugin, use
from raffm_ray.basics.registry import PLUGIN_SETTINGS, TABLES, Table
from raffm_ray.data.metrics import METRICS
from raffm_ray.server.aggregation import AGGREGATION_RULES
from raffm_ray.server.strategies import STRATEGIES
from raffm_ray.subnetworks.client_optimizers import OPTIMIZERS


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    yield
    use([])
    for table in TABLES.values():
        table.forget({__name__})


def rule(old, summed, covered, total):
    return old


def test_a_row_is_added_and_found_and_a_name_is_taken_once() -> None:
    assert AGGREGATION_RULES.add("nothing")(rule) is rule
    assert AGGREGATION_RULES["nothing"] is AGGREGATION_RULES.chosen("nothing", {}) is rule
    with pytest.raises(UserError, match=r"raffm_ray.aggregation: 'nothing' is there already, added by .*test_registry"):
        AGGREGATION_RULES.add("nothing")(rule)
    before = AGGREGATION_RULES["coverage"]
    with pytest.raises(UserError, match="'coverage' is there already, built in: another name, or replace=True"):
        AGGREGATION_RULES.add("coverage")(rule)
    AGGREGATION_RULES.add("coverage", replace=True)(rule)
    assert AGGREGATION_RULES["coverage"] is rule
    AGGREGATION_RULES.withdraw({__name__})
    assert AGGREGATION_RULES["coverage"] is before
    assert "nothing" not in AGGREGATION_RULES
    AGGREGATION_RULES.put_back({__name__})
    assert AGGREGATION_RULES["coverage"] is AGGREGATION_RULES["nothing"] is rule


def test_fields_come_from_the_decorator_and_the_rest_from_a_row_like_it() -> None:
    STRATEGIES.add("mine", like="raffm", nested=False, prefix="none")(lambda view, budget, client: None)
    mine, like = STRATEGIES["mine"], STRATEGIES["raffm"]
    assert (mine.nested, mine.prefix, mine.deploy, mine.aggregation) == (False, "none", like.deploy, "damped")
    STRATEGIES.add("alone")(lambda view, budget, client: None)
    assert STRATEGIES["alone"].deploy is STRATEGIES["alone"].train


class Power(BaseModel):
    power: float = 0.5


def test_a_row_is_made_of_its_own_settings() -> None:
    with pytest.raises(UserError, match="Power is declared first, by @raffm_ray.plugin_settings"):
        AGGREGATION_RULES.add("powered", settings=Power)(lambda settings: rule)
    PLUGIN_SETTINGS.add("mine")(Power)
    AGGREGATION_RULES.add("powered", settings=Power)(lambda settings: lambda old, s, c, t: old + settings.power)
    assert AGGREGATION_RULES["powered"](1, 0, 0, 0) == 1.5
    assert AGGREGATION_RULES.chosen("powered", {"mine": {"power": 2.0}})(1, 0, 0, 0) == 3.0
    assert AGGREGATION_RULES.chosen("coverage", {"mine": {"power": 2.0}}) is AGGREGATION_RULES["coverage"]  # control


CASES = {
    "strategy('a')(lambda view: 1)": r"train: expected a function \(view: StrategyView, budget: Budget, client: int\) -> .*got \(view\)",
    "strategy('a', nestd=True)(lambda view, budget, client: 1)": r"'nestd' is not one of its fields \(did you mean 'nested'\?\)",
    "aggregation('a')(lambda old, summed: 1)": r"expected a function \(old: Tensor, summed: Tensor, covered: Tensor, total: float\) -> Tensor, got",
    "aggregation('a', like='coverage')(lambda old, summed, covered, total: 1)": "'like' is not one of its fields: it has none",
    "salience('a')(3)": r"score: expected a function \(layout: Layout, .* rng: Generator\) -> .*, got int",
    "client_optimizer('a')(lambda groups: 1)": r"make: expected a function \(groups: list\[dict\[str, Any\]\], rate: float\)",
    "server_optimizer('a')(lambda old: 1)": r"expected a function \(old: Tensor, averaged: Tensor, covered: Tensor, moments: .*ServerSettings",
    "client_update('a')(lambda module: 1)": r"train: expected a function \(module: Module, batches: Batches, given: .*memory: ",
    "objective('a')(lambda output, labels: 1)": "missing 4 required positional arguments: 'answers'",
    "objective('a', like='sequence_clasification')(lambda output, labels: 1)": "did you mean 'sequence_classification'",
    "partition('a', by='classes')(lambda labels: 1)": r"deal: expected a function \(labels: NDArray\[int64\], settings: ClientSettings",
    "task('a', kind='image')(lambda settings, rng: 1)": "kind of task 'image' is not known",
    "task('a', kind='text_classification')(lambda: 1)": r"rows: expected a function \(settings: TaskSettings, rng: Generator\)",
    "metric('a')(lambda answers: 1)": r"score: expected a function \(answers: NDArray\[float64\], truth: ",
    "metric('a', settings=object)(lambda answers, truth: 1)": "a metric has no settings",
    "family('a', like='bert')(lambda config: 1)": r"layout: expected a function \(config: PreTrainedConfig, head: str\) -> Layout",
    "availability('a')(lambda settings: 1)": r"expected a function \(settings: ClockSettings, seed: int, clients: int\)",
    "plugin_settings('a')(3)": "expected a class of pydantic's BaseModel, got 3",
    "1 / 0": "line 2: ZeroDivisionError: division by zero",
    "import nothing_of_that_name": "line 2: ModuleNotFoundError",
    "def f(:": "line 2: SyntaxError",
}


@pytest.mark.parametrize("code", CASES)
def test_what_cannot_be_added_is_one_line_with_the_right_form(code, tmp_path) -> None:
    call = code if code.startswith(("1 ", "import", "def")) else f"raffm_ray.{code}"
    (tmp_path / "bad.py").write_text(f"import raffm_ray\n{call}\n")
    before = {name: dict(table) for name, table in TABLES.items()}
    with pytest.raises(UserError, match=CASES[code]) as told:
        use([read_plugin(str(tmp_path / "bad.py"))])
    assert str(told.value).startswith("plugins: bad.py line 2: ")
    assert "\n" not in str(told.value)
    assert before == {name: dict(table) for name, table in TABLES.items() if name in before}


def test_a_right_one_is_taken(tmp_path) -> None:
    """The control of the wrong ones."""
    (tmp_path / "good.py").write_text(
        "import raffm_ray\n@raffm_ray.metric('mine', percent=False)\ndef mine(answers, truth):\n    return 1.0\n"
    )
    use([read_plugin(str(tmp_path / "good.py"))])
    assert not METRICS["mine"].percent
    assert METRICS["mine"].score(None, None) == 1.0


def test_the_tables_have_the_rows_of_the_plug_ins_that_are_used_and_of_no_others(tmp_path) -> None:
    for name, value in {"one": 1, "two": 2}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            f"import raffm_ray\n@raffm_ray.aggregation('mine')\ndef mine(old, summed, covered, total):\n    return {value}\n"
        )
    one, two = (read_plugin(str(tmp_path / name / "mine.py")) for name in ("one", "two"))
    for plugin, value in ((one, 1), (two, 2), (one, 1)):
        use([plugin])
        assert AGGREGATION_RULES["mine"](0, 0, 0, 0) == value
    use([])
    assert "mine" not in AGGREGATION_RULES
    with pytest.raises(UserError, match="'mine' is there already"):
        use([one, two])


def test_a_module_of_a_package_is_a_plug_in_with_all_of_the_package(tmp_path, monkeypatch) -> None:
    package = tmp_path / "own_package_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "numbers.py").write_text("VALUE = 7\n")
    (package / "rules.py").write_text(
        "import raffm_ray\nfrom own_package_of_a_test.numbers import VALUE\n"
        "@raffm_ray.aggregation('packaged')\ndef packaged(old, summed, covered, total):\n    return VALUE\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = read_plugin("own_package_of_a_test.rules")
    assert plugin.modules == {"own_package_of_a_test", "own_package_of_a_test.numbers", "own_package_of_a_test.rules"}
    # As in a worker on another machine: neither the folder nor the package is there.
    monkeypatch.undo()
    with pytest.raises(UserError, match="no module of that name is installed here"):
        read_plugin("own_package_of_a_test.rules")
    use([plugin])
    assert AGGREGATION_RULES["packaged"](0, 0, 0, 0) == 7
    (package / "numbers.py").write_text("VALUE = 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in plugin.modules:
        sys.modules.pop(name)
    assert installed() == ()


def test_a_row_that_workers_would_not_have_is_refused(monkeypatch) -> None:
    check_rows_reach_workers([])  # control
    monkeypatch.setitem(OPTIMIZERS, "mine", OPTIMIZERS["sgd"])
    with pytest.raises(
        UserError, match=r"raffm_ray.client_optimizer: 'mine' was added by no plug-in, so workers on Ray would not"
    ):
        check_rows_reach_workers([])
    monkeypatch.undo()
    monkeypatch.setitem(OPTIMIZERS, "sgd", OPTIMIZERS["momentum"])
    with pytest.raises(UserError, match="'sgd' was added by no plug-in"):
        check_rows_reach_workers([])
    monkeypatch.undo()
    monkeypatch.setitem(AGGREGATION_RULES, "mine", rule)  # the driver alone looks it up
    check_rows_reach_workers([])


def test_a_table_of_functions_is_open_to_rows_by_hand() -> None:
    table = Table("of_a_test", {"first": rule})
    table["second"] = rule
    assert table.beside(set()) == ["second"]
    del table["second"], TABLES["of_a_test"]
