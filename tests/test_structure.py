"""The project's own rules: imports only downwards, files of one idea, nothing of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raffm_ray"
FLOORS = [
    "errors standalone_config flags files temporary ending axes layout strict running settings config seeding cache examples metrics correlation tally plain phases drawing",
    "dims nesting architectures.attention architectures.saved architectures.modules architectures.vit architectures.decoder architectures.encoder architectures.gpt2 "
    "architectures.rope architectures.t5 architectures freezing gradients devices partition objectives sources availability",
    "stacked encoding units observing calibration salience rotation norms costs device_costs",
    "extraction messages own kinds foundation stock standalone registration",
    "data strategies training stacking workshop client aggregate clock server_optimizers",
    "state",
    "ranking server work schedule stopping gpu worker",
    "checkpoint",
    "dispatch pool pace teams flights ray_start ray_pool pretrain fitting prepare reading mirror record display shares",
    "ledger evaluation curve start public resuming loop telemetry simulation",
    "share_picture profile_picture unit_picture pictures standings report comparison_picture page several comparison study_settings search space trial trial_tasks study_picture study_report study benchmarks benchmarks.extraction benchmarks.crew benchmarks.bare_ray benchmarks.memory benchmarks.synthetic "
    "benchmarks.measure benchmarks.plain_loop benchmarks.rounds benchmarks.nothing benchmarks.training benchmarks.subnetworks "
    "benchmarks.scale benchmarks.gpu benchmarks.starting benchmarks.suite described prediction references measuring fleet_plans fleet_cluster fleet places submit trained first_bytes elastic inference exports model_card deployment latency deploy_picture deploying deploy_command commands cli",
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


def imported(path: Path) -> set[str]:
    """The project's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        for name in names:
            if name.startswith("raffm_ray."):
                inner = name.removeprefix("raffm_ray.")
                parts = [one for one in FLOOR_OF if inner == one or inner.startswith(f"{one}.")]
                found |= {max(parts, key=len)} if parts else set()  # a file of a package, not the package
    return found - {module_name(path)}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_only_point_down(path: Path) -> None:
    name = module_name(path)
    if name == "__init__":
        return
    assert name in FLOOR_OF, f"{name} has no floor: add it to FLOORS"
    for other in imported(path):
        beside = FLOOR_OF[other] == FLOOR_OF[name]
        assert FLOOR_OF[other] < FLOOR_OF[name] or (beside and not imports_back(other, name)), f"{name} imports {other}"


def imports_back(module: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a module of the same floor leads back to `name`."""
    if module in seen:
        return False
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    path = path if path.exists() else PACKAGE / module.replace(".", "/") / "__init__.py"
    return any(
        other == name or (FLOOR_OF[other] == FLOOR_OF[name] and imports_back(other, name, seen | {module}))
        for other in imported(path)
    )


def test_floors_control_an_upward_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "axes.py"
    file.write_text("def f():\n    from raffm_ray.server import Setup\n")
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
    assert FLOOR_OF[found.pop().removeprefix("raffm_ray.")] > FLOOR_OF["axes"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_a_file_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_only_the_pool_knows_ray_and_the_benchmark_without_it() -> None:
    users = {module_name(path) for path in PACKAGE.rglob("*.py") if re.search(r"(import|from) ray\b", path.read_text())}
    assert users == {"flights", "ray_pool", "ray_start", "submit", "telemetry", "trial_tasks", "benchmarks.bare_ray"}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_nothing_is_of_one_machine() -> None:
    for path in tracked():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8")
            for place in ("/ro" + "ot/", "/ho" + "me/", "file" + "://"):
                assert place not in text, f"{path.name} names {place}"


def test_nothing_reads_pickles_or_remote_code() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "torch.load" not in text
        assert "pickle.load" not in text
        assert "trust_remote_code" not in text
