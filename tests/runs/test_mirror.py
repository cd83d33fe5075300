"""Runs in object stores: copied after every round, so that what is there can always be gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import free_ports, wait_for
from outcomes import outcome
from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem, copy_files
from quick import RICH, quick

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main as cli
from raffm_ray.runs import mirror as mirror_module
from raffm_ray.runs.mirror import SETTLED_NS, Mirror
from raffm_ray.runs.simulation import resume, simulate
from raffm_ray.settings.loading import dump

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], str]]:
    """Gives URLs in a bucket of an S3 server on this machine."""
    pytest.importorskip("moto.server", reason="tests/s3_server.txt is not installed")
    (port,) = free_ports(1)
    endpoint = f"127.0.0.1:{port}"
    names = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1", allow_bucket_creation=True)

    def made() -> bool:
        try:
            store.create_dir("bucket")
        except OSError:
            return False
        return True

    wait_for(made, "an S3 server")
    yield lambda name: f"s3://bucket/{name}?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    server.kill()
    server.wait()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path) -> str:
    """Where a run may go."""
    if request.param == "file":
        return f"file:{tmp_path / 'store' / 'run'}"
    return request.getfixturevalue("bucket")(tmp_path.name)


def names(url: str) -> set[str]:
    return Mirror(url)._names()


class StopError(Exception):
    pass


def run(folder: Path, url: str | None, last: int = 99) -> None:
    """A run of clients that do hardly anything, which ends after a round of that number."""

    def stop(row) -> None:
        if row.round == last:
            raise StopError

    prepared, _, pool = quick(**RICH)
    simulate(prepared.setup.experiment, folder, pool=pool, on_round=stop, mirror=Mirror(url) if url else None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(folder, None)
    return outcome(folder)


def test_what_is_there_at_the_end_is_the_whole_run(url, tmp_path, undisturbed) -> None:
    run(tmp_path / "here", url)
    mirror = Mirror(url)
    mirror.fetch(tmp_path / "there")
    assert outcome(tmp_path / "there") == undisturbed
    here = {str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert names(url) == {name for name in here if not name.startswith(".")}
    with pytest.raises(UserError, match=r"holds checkpoints/final/config.json already; nothing is overwritten$"):
        mirror.begin()


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_run_goes_on_from_there(url, tmp_path, undisturbed, last) -> None:
    with pytest.raises(StopError):
        run(tmp_path / "here", url, last)
    with pytest.raises(UserError, match="raffm-ray resume .* goes on with the run that is not finished"):
        Mirror(url).begin()
    assert {name.split("/")[1] for name in names(url) if name.startswith("checkpoints")} == {
        f"round-{number:06d}" for number in range(max(0, last - 1), last + 1)
    }
    mirror = Mirror(url)
    mirror.fetch(tmp_path / "there")
    *_, pool = quick(**RICH)
    resume(tmp_path / "there", pool=pool, mirror=mirror)
    Mirror(url).fetch(tmp_path / "again")
    assert outcome(tmp_path / "again") == undisturbed


def test_baselines_are_copied_as_they_grow_and_gone_on_with(tmp_path, monkeypatch) -> None:
    url, settings, saves, real = f"file:{tmp_path / 'store'}", RICH | {"baselines": ("full",)}, list[int](), Mirror.try_to_save
    prepared, _, pool = quick(**settings)
    simulate(prepared.setup.experiment, tmp_path / "whole", pool=pool)

    def saved(mirror: Mirror, *words, **named) -> None:
        real(mirror, *words, **named)
        saves.append(0)
        if len(saves) == RICH["rounds"] + 3:
            raise StopError

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "try_to_save", saved)
        with pytest.raises(StopError):
            simulate(prepared.setup.experiment, tmp_path / "here", pool=pool, mirror=Mirror(url))
    assert "baselines/full/checkpoints/round-000001/SHA256SUMS" in names(url)
    mirror = Mirror(url)
    mirror.fetch(tmp_path / "there")
    resume(tmp_path / "there", pool=pool, mirror=mirror)
    Mirror(url).fetch(tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(tmp_path / "whole")


class Breaks:
    """A store that fails after so many writes."""

    def __init__(self, monkeypatch, writes: int) -> None:
        self.left, real = writes, Mirror._put

        def put(mirror: Mirror, source: Path, target: str) -> None:
            if self.left == 0:
                raise OSError("the network is gone")
            self.left -= 1
            real(mirror, source, target)

        monkeypatch.setattr(Mirror, "_put", put)


@pytest.mark.parametrize("writes", range(1, 17, 3))
def test_wherever_copying_ends_a_run_is_left_that_goes_on(tmp_path, undisturbed, writes, monkeypatch) -> None:
    url = f"file:{tmp_path / 'store'}"
    with monkeypatch.context() as patched:
        Breaks(patched, writes)
        with pytest.raises(StopError):
            run(tmp_path / "here", url, 2)
    mirror = Mirror(url)
    mirror.fetch(tmp_path / "there")
    *_, pool = quick(**RICH)
    resume(tmp_path / "there", pool=pool, mirror=mirror)
    Mirror(url).fetch(tmp_path / "again")
    assert outcome(tmp_path / "again") == undisturbed


def test_a_store_that_fails_is_told_once_and_tried_again(tmp_path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a: 1")
    mirror, told = Mirror(f"file:{tmp_path / 'store'}"), list[str]()
    with monkeypatch.context() as patched:
        Breaks(patched, 0)
        for _ in range(3):
            mirror.try_to_save(tmp_path / "run", told.append)
        with pytest.raises(UserError, match="cannot be copied there: the network is gone"):
            mirror.save(tmp_path / "run")
    assert len(told) == 1
    assert "the network is gone; it is tried again after the next round" in told[0]
    mirror.try_to_save(tmp_path / "run", told.append)
    assert len(told) == 1
    assert names(mirror.url) == {"config.yaml"}


def test_only_what_changed_is_copied_and_what_is_gone_is_removed(tmp_path, monkeypatch) -> None:
    folder, store = tmp_path / "run", tmp_path / "store"
    (folder / "rounds").mkdir(parents=True)
    for name in ("config.yaml", "rounds/one", "rounds/.half.tmp"):
        (folder / name).write_text(name)
    mirror, put, real = Mirror(f"file:{store}"), list[str](), Mirror._put
    monkeypatch.setattr(Mirror, "_put", lambda mirror, source, target: (put.append(target), real(mirror, source, target)))
    mirror.save(folder)
    (folder / "two").write_text("two")
    mirror.save(folder)
    (folder / "rounds" / "one").unlink()
    mirror.save(folder)
    assert [Path(target).name for target in put] == ["config.yaml", "one", "two"]
    assert {path.name for path in store.rglob("*")} == {"config.yaml", "two"}


@pytest.fixture
def written(tmp_path) -> Path:
    """A folder of a run, which nobody changed for a while, with one checkpoint."""
    folder = tmp_path / "run"
    for name in (
        "config.yaml",
        "rounds/one",
        "rounds/two",
        "checkpoints/round-000001/SHA256SUMS",
        "checkpoints/round-000001/state",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for path in (folder, *folder.rglob("*")):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 10 * SETTLED_NS))
    return folder


def listed(monkeypatch) -> list[str]:
    """The folders that are looked into from now on."""
    seen, real = list[str](), mirror_module._listing
    monkeypatch.setattr(mirror_module, "_listing", lambda folder, *words: (seen.append(folder.name), real(folder, *words))[1])
    return seen


def test_only_folders_that_changed_are_looked_into(written, tmp_path, monkeypatch) -> None:
    mirror, seen = Mirror(f"file:{tmp_path / 'store'}"), listed(monkeypatch)
    mirror.save(written, settled=False)
    assert sorted(seen) == ["checkpoints", "round-000001", "rounds", "run"]
    seen.clear()
    mirror.save(written, settled=False)
    assert seen == []
    (written / "rounds" / "three").write_text("three")
    mirror.save(written, settled=False)
    assert seen == ["rounds"]
    assert "rounds/three" in names(mirror.url)
    mirror.save(written, settled=False)
    assert seen == ["rounds", "rounds"]  # a moment later it may still change with the same time stamp
    mirror.save(written)
    assert seen[2:].count("run") == 1


def test_what_seems_to_be_gone_stays_until_it_is_gone_twice(written, tmp_path) -> None:
    """Who replaces one checkpoint by another while they are listed may hide both: the store keeps one that is whole."""
    mirror, sums = Mirror(f"file:{tmp_path / 'store'}"), "checkpoints/round-000001/SHA256SUMS"
    mirror.save(written, settled=False)
    shutil.rmtree(written / "checkpoints" / "round-000001")
    mirror.save(written, settled=False)
    assert sums in names(mirror.url)
    mirror.save(written, settled=False)
    assert sums not in names(mirror.url)


@pytest.mark.parametrize("settled", [False, True])
def test_what_is_removed_while_it_is_copied_vouches_for_nothing(written, tmp_path, settled, monkeypatch) -> None:
    """But where nobody is at work, a file that cannot be copied is an error."""
    mirror, real = Mirror(f"file:{tmp_path / 'store'}"), Mirror._put

    def put(mirror: Mirror, source: Path, target: str) -> None:
        if source.name == "state":
            shutil.rmtree(source.parent)
        real(mirror, source, target)

    monkeypatch.setattr(Mirror, "_put", put)
    if settled:
        with pytest.raises(UserError, match="cannot be copied there"):
            mirror.save(written)
    else:
        mirror.save(written, settled=False)
        assert names(mirror.url) == {"config.yaml", "rounds/one", "rounds/two"}


def test_a_name_that_leads_elsewhere_is_not_fetched(bucket, tmp_path) -> None:
    store, root = FileSystem.from_uri(bucket("bad"))
    for name in ("config.yaml", "a\\..\\b"):
        (tmp_path / "file").write_text("a: 1")
        copy_files(str(tmp_path / "file"), f"{root}/{name}", LocalFileSystem(), store)
    with pytest.raises(UserError, match="leads out of a run's folder"):
        Mirror(bucket("bad")).fetch(tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "tiny.yaml", "--out", "ftps://host/x"], "ftps://host/x: is not a place for runs: Unrecognized filesystem type"),
        (["run", "tiny.yaml", "--out", "s3://missing/x"], "s3://missing/x"),
        (["compare", "tiny.yaml", "--out", "s3://bucket/x"], "compare: --out s3://bucket/x: only run and submit write to a URL"),
        (["resume", "file:{}/nothing"], "nothing: no run here (config.yaml is missing)"),
        (["report", "file:{}/nothing"], "nothing: no run here (config.yaml is missing)"),
    ],
)
def test_a_place_that_cannot_be_is_one_line_before_any_work(words, told, tmp_path, monkeypatch, capsys, bucket) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(dump(quick(**RICH)[0].setup.experiment))
    monkeypatch.setattr("raffm_ray.runs.simulation.open_pool", lambda *_: pytest.fail("no work"))
    monkeypatch.setattr("raffm_ray.preparation.starting_parameters.pretrained", lambda *_: pytest.fail("no work"))
    words = [word.format(tmp_path) for word in words]
    assert cli([word if word != "s3://missing/x" else bucket("x").replace("/bucket/", "/missing/") for word in words]) == 2
    error = capsys.readouterr().err
    assert ("NO_SUCH_BUCKET" if told.startswith("s3://missing") else told) in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_killed_and_resumed_from_the_url_by_another_machine(bucket, tmp_path, capfd) -> None:
    """Another machine: another folder, in which nothing is."""
    prepared, *_ = quick(rounds=12, evaluation={"sizes": 0})
    config, url = tmp_path / "tiny.yaml", bucket("killed")
    config.write_text(dump(prepared.setup.experiment))
    simulate(prepared.setup.experiment, tmp_path / "whole")

    def command(folder: str, *words: str) -> subprocess.Popen:
        (tmp_path / folder).mkdir()
        return subprocess.Popen(
            [sys.executable, "-m", "raffm_ray.cli", *words],
            cwd=tmp_path / folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )

    driver = command("first", "run", str(config), "--out", url)
    wait_for(lambda: any(name.endswith("2/SHA256SUMS") for name in names(url)), "some rounds")
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert "summary.json" not in names(url)
    assert command("second", "resume", url).wait(120) == 0
    assert "goes on after round" in capfd.readouterr().err
    Mirror(url).fetch(tmp_path / "there")
    assert outcome(tmp_path / "there") == outcome(tmp_path / "whole")
    assert "report.html" in names(url)
    sha256 = [json.loads((tmp_path / one / "summary.json").read_text())["params_sha256"] for one in ("there", "whole")]
    assert sha256[0] == sha256[1]


def test_a_report_of_a_run_at_a_url_leaves_its_model_there(tmp_path, monkeypatch, capsys) -> None:
    url = f"file:{tmp_path / 'store'}"
    run(tmp_path / "here", url)
    before = names(url)
    monkeypatch.chdir(tmp_path)
    assert cli(["report", url]) == 0
    assert names(url) - before == {
        "report.html",
        "report.png",
        "shares.png",
        "profile.png",
        "units.png",
        "clients.png",
        "participation.png",
    }
    assert before <= names(url)
    (folder,) = (tmp_path / "runs").iterdir()
    assert not (folder / "checkpoints").exists()
