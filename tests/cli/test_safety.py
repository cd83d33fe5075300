"""Nothing read is run, nothing is written elsewhere, no secret is shown or stored; Ray on this machine is for who started it alone."""

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from conftest import tiny_experiment
from processes import marked, shared_memory, wait_for
from quick import quick
from rich.console import Console

from raffm_ray.basics.errors import UserError, in_short, shortened, without_secrets
from raffm_ray.basics.files import locked
from raffm_ray.basics.temporary_folders import process_folder
from raffm_ray.cli import commands
from raffm_ray.cli.main import main as cli
from raffm_ray.clients.local_training import one_thread
from raffm_ray.data.sources import open_splits
from raffm_ray.pool.ray_start import PREFIX, SOCKET_BYTES
from raffm_ray.pool.worker_pool import check_pool
from raffm_ray.runs.loop import Environment
from raffm_ray.runs.recorder import check_output
from raffm_ray.runs.resuming import experiment_in
from raffm_ray.runs.simulation import completed
from raffm_ray.settings.execution import PoolSettings
from raffm_ray.settings.loading import dump

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "raffm_ray"

MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "zipfile"}
"""What runs what it reads, or unpacks it to where it says."""
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.hub.load",
    "shutil.unpack_archive",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pd.read_pickle",
}
FORBIDDEN_WHEN_TRUE = {"allow_pickle", "trust_remote_code", "shell"}
LOADERS = {"_Loader", "yaml.SafeLoader", "SafeLoader"}


def dangers(text: str) -> list[str]:
    """What of a program runs or unpacks what it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name, named = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            found += [name] if name in CALLS else []
            found += [key for key in FORBIDDEN_WHEN_TRUE if named.get(key, "False") != "False"]
            found += ["np.load"] if name in ("np.load", "numpy.load") and named.get("allow_pickle") != "False" else []
            found += ["yaml.load"] if name == "yaml.load" and named.get("Loader") not in LOADERS else []
    return found


def test_nothing_that_is_read_is_run_or_unpacked() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): some for path in PACKAGE.rglob("*.py") if (some := dangers(path.read_text()))}
    assert found == {"basics/plugins.py": ["compile"]}  # the code that the user names, and none other


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(words, shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "import tarfile",
        "shutil.unpack_archive(path)",
    ],
)
def test_control_each_danger_is_seen(text) -> None:
    assert dangers(text)


@pytest.mark.parametrize("name", ["a/b", "../a", "a\0b", "a b", "a\n", "", "x" * 101])
def test_a_name_is_one_part_of_a_path(name) -> None:
    with pytest.raises(UserError, match="name: string should"):
        tiny_experiment(name=name)


@pytest.mark.parametrize("name", ["..", "-x"])
def test_a_name_never_is_a_path_alone(name) -> None:
    folder = commands.fresh_folder(tiny_experiment(name=name).name)
    assert folder.parent == Path("runs")
    assert folder.name.startswith(f"{name}-2")


@pytest.mark.parametrize("path", ["x" * 300, "y/" * 3000, "a\0b"])
def test_what_no_file_system_takes_is_one_line(path, capsys) -> None:
    for check in (check_output, experiment_in):
        with pytest.raises(UserError, match="File name too long|null byte"):
            check(Path(path))
    assert cli(["report", path]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "full/../../escaped"])
def test_baselines_are_strategies_not_folders(name, tmp_path, capsys) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump(tiny_experiment(baselines=(name,))))
    assert cli(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert "baselines: strategy " in capsys.readouterr().err
    config.write_text(dump(tiny_experiment(baselines=("full",))).replace("- full", f"- {{name: full, label: {name}}}"))
    assert cli(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    assert "baselines.0.label: string should match pattern" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with one_thread(), locked(folder):
        prepared, start, pool = quick(clients={"count": 12, "per_round": 2}, evaluation={"sizes": 0})
        completed(prepared, start, folder, Environment(pool, Console(quiet=True)))
    return folder


@pytest.mark.parametrize("part", ["rounds", "checkpoints", "tensorboard", "baselines", "config.yaml", "checkpoints/final"])
def test_a_run_does_not_go_on_through_a_link(finished, part, out, tmp_path) -> None:
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    experiment_in(out)  # control
    (out / part).rename(tmp_path / "elsewhere") if (out / part).exists() else (tmp_path / "elsewhere").mkdir()
    (out / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"run/{part}: a symbolic link: what is in a run's folder is written there"):
        experiment_in(out)


def test_a_run_folder_that_is_itself_a_link_is_the_users_own(finished, out) -> None:
    out.symlink_to(finished)
    assert experiment_in(out).name == "tiny"


HIDDEN = "hf_A1b2C3d4E5f6G7"


def test_secrets_are_not_shown(monkeypatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "DB_PASSWORD"):
        with monkeypatch.context() as patched:
            assert HIDDEN in str(UserError(f"cannot read {HIDDEN}"))  # control
            patched.setenv(name, HIDDEN)
            assert str(UserError(f"cannot read https://x/{HIDDEN}/y")) == f"cannot read https://x/${name}/y"
    assert without_secrets("s3://me:pass@word@host/x and https://me@host, a@b.c") == "s3://***@host/x and https://***@host, a@b.c"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    assert without_secrets("parallelism: false") == "parallelism: false"


def test_what_is_cut_short_shows_no_part_of_a_secret(monkeypatch) -> None:
    texts = (in_short, "x" * 240 + HIDDEN), (shortened, "x" * 48 + HIDDEN), (shortened, f"s3://me:{HIDDEN * 4}@host")
    assert all(HIDDEN[:4] in cut(text) for cut, text in texts[:2])  # control
    monkeypatch.setenv("HF_TOKEN", HIDDEN)
    assert not [text for cut, text in texts if HIDDEN[:4] in cut(text)]
    monkeypatch.delenv("HF_TOKEN")
    assert shortened(texts[2][1]) == "'s3://***@host'"


def test_a_secret_is_not_a_part_of_a_path(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", HIDDEN)
    with pytest.raises(UserError, match="the environment variable HF_TOKEN is a secret by its name") as caught:
        open_splits("$HF_TOKEN/sst2", None)
    assert HIDDEN not in str(caught.value)


def test_what_was_given_is_shown_and_stored_not_what_the_environment_has(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RAFFM_TEST_DATA", str(tmp_path))
    for given in ("$RAFFM_TEST_DATA/nothing", "${RAFFM_TEST_DATA}/broken.csv"):
        (tmp_path / "broken.csv").write_bytes(b'"\xff\xfe')
        with pytest.raises(UserError) as caught:
            open_splits(given, None)
        assert given in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert given in dump(tiny_experiment(task={"data": given}))


def test_a_password_in_a_url_is_not_shown(tmp_path, capsys) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        dump(tiny_experiment(task={"name": "image_classification", "data": "https://me:opensesame@example.org/a/b.parquet"}))
    )
    assert cli(["run", str(config), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "https://***@example.org/a/b.parquet" in error
    assert "opensesame" not in error
    assert not (tmp_path / "run").exists()


DRIVER = """
import os, sys
from raffm_ray.pool.ray_start import connect
from raffm_ray.settings.execution import PoolSettings
connect(PoolSettings(workers=1))
import ray
@ray.remote
def known(): return len(os.environ.get("RAY_AUTH_TOKEN", ""))
print(ray.get_runtime_context().gcs_address, ray.get(known.remote()), os.environ.get("RAY_AUTH_TOKEN"), flush=True)
sys.stdin.read()
"""
CLIENT = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))
"""


@pytest.fixture(scope="module")
def ours() -> Iterator[tuple[subprocess.Popen[str], str, str, Path]]:
    """A process that started Ray as a run does: itself, the GCS's address, what it says of tokens, the folder of temporary ones."""
    folder = Path(mkdtemp(prefix="r-", dir="/tmp"))  # short: sockets are in it
    settings = {"PYTHONPATH": str(ROOT), "RAFFM_TEST_MARK": "ours", "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name == "RAY_worker_niceness"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env=clean | settings,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address, told = process.stdout.readline().strip().split(" ", 1)
    yield process, address, told, folder
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def processes(mark: str) -> list[Path]:
    """Where /proc has those that were started with a mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAFFM_TEST_MARK={mark}".encode() in (place / "environ").read_bytes():
                found.append(place)
        except OSError:
            continue
    return found


def listening(places: list[Path]) -> list[str]:
    """The addresses, in hexadecimal, at which processes wait for others to connect."""
    sockets = set()
    for place in places:
        for one in (place / "fd").iterdir():
            try:
                sockets.add(os.readlink(one).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [words[1].split(":")[0] for words in lines if words[3] == "0A" and words[9] in sockets]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_ray_listens_on_this_machine_alone(ours) -> None:
    found = listening(processes("ours"))
    assert len(found) >= 4
    assert set(found) <= LOOPBACK
    assert ours[1].startswith("127.0.0.1:")
    with socket.create_server(("", 0)):  # control
        assert not set(listening([Path("/proc/self")])) <= LOOPBACK


def test_ray_answers_who_has_the_token_which_is_in_no_file_and_no_command(ours) -> None:
    _, address, told, folder = ours
    assert told == "64 None"  # workers have it; what the driver starts later does not inherit it
    found = processes("ours")
    environments = b"\0".join(
        (place / "environ").read_bytes() for place in found if b"raylet" in (place / "cmdline").read_bytes()
    )
    (token,) = {words.split(b"=")[1].decode() for words in environments.split(b"\0") if words.startswith(b"RAY_AUTH_TOKEN=")}
    assert not [place for place in found if token.encode() in (place / "cmdline").read_bytes()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if token.encode() in path.read_bytes()]
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, address],
            env=os.environ | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": given},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for mode, given in (("token", token), ("token", "0" * 64), ("disabled", ""))
    ]
    (allowed, _), *refused = [client.communicate(timeout=60) for client in clients]
    assert allowed == "1\n"  # control
    for said, error in refused:
        assert said == ""
        assert "nauthenticated" in error or "Authentication" in error or "authentication" in error


def test_after_a_kill_what_is_left_goes_when_the_next_one_starts(ours) -> None:
    process, _, _, folder = ours
    wait_for(lambda: not shared_memory())
    (place,) = folder.glob(f"{PREFIX}*")
    assert place.stat().st_mode & 0o777 == 0o700
    assert max(len(os.fsencode(path)) for path in place.rglob("sockets/*")) <= SOCKET_BYTES
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not [name for name in marked("ours") if "Agent" not in name])  # Ray's own agents take a minute
    assert place.is_dir()  # control
    process_folder(folder, PREFIX)
    assert not place.exists()


def test_a_folder_too_long_for_sockets_is_one_line(tmp_path, monkeypatch) -> None:
    from raffm_ray.pool.ray_start import _folder

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=r"too long a path for Ray's sockets, by \d+ bytes; RAY_TMPDIR names another folder"):
        _folder()


@pytest.mark.parametrize("name", ["münchen", "资料"])
def test_a_folder_that_ray_cannot_have_is_known_before_any_work(name, tmp_path, monkeypatch) -> None:
    from raffm_ray.pool import ray_start

    monkeypatch.setattr(ray_start.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{name}")
    with pytest.raises(
        UserError, match=f"/tmp/{name}: Ray's folder must have a name in ASCII letters; RAY_TMPDIR names another folder"
    ):
        check_pool(PoolSettings(backend="ray"))
    check_pool(PoolSettings(backend="in_process"))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/munich")
    check_pool(PoolSettings(backend="ray"))


def test_a_cluster_that_is_gone_is_known_within_seconds(monkeypatch) -> None:
    """`auto` means the cluster that a file of Ray's names, whether it is still there or not."""
    from raffm_ray.pool import ray_start

    monkeypatch.setattr(ray_start.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray_start.services, "get_ray_address_from_environment", lambda *_: "127.0.0.1:1")
    with pytest.raises(
        UserError,
        match=r"RAY_ADDRESS: auto: the last cluster that was started on this machine, 127.0.0.1:1: no cluster answers there",
    ):
        check_pool(PoolSettings(backend="ray"))

    def none(*_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray_start.services, "get_ray_address_from_environment", none)
    with pytest.raises(UserError, match=r"RAY_ADDRESS: auto: no cluster was started on this machine: .*Could not find"):
        check_pool(PoolSettings(backend="ray"))
