"""What a job takes along, and what is refused before anything is sent; jobs themselves are in test_nodes.py."""

from pathlib import Path

import pytest
import yaml
from conftest import tiny_experiment

from raffm_ray.basics.errors import UserError
from raffm_ray.cli import submit
from raffm_ray.cli.main import main as cli
from raffm_ray.settings.loading import dump


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(submit, "client_at", lambda *_: pytest.fail("nothing is to be sent"))
    (folder / "tiny.yaml").write_text(dump(tiny_experiment()))
    return folder


def test_what_is_sent_is_all_that_no_ignore_file_names(here) -> None:
    for name in ("data/a.csv", "data/b.csv", "runs/x/model", "package/runs/loop.py", "notes.txt", ".git/config"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / ".gitignore").write_text("notes.md\n")
    (here / "notes.md").write_text("not sent")
    (here / ".rayignore").write_text("data/b.csv\n")
    sent = {str(path.relative_to(here)): size for path, size in submit.sent_files(here).items()}
    assert {name for name in sent if not name.startswith(".")} == {"data/a.csv", "package/runs/loop.py", "notes.txt", "tiny.yaml"}
    assert ".git/config" not in sent
    assert sent["data/a.csv"] == 10


def test_a_model_in_runs_is_not_sent_and_that_is_said(here) -> None:
    path = here / "tiny.yaml"
    for place in ("runs/a/deployed", "models/a"):
        (here / place).mkdir(parents=True)
        (here / place / "config.json").write_text("{}")
        values = tiny_experiment().model_dump(mode="json", exclude_unset=True)
        path.write_text(yaml.safe_dump(values | {"model": {"pretrained": f"./{place}"}}))
        if place.startswith("runs"):
            with pytest.raises(
                UserError, match=r"submit: model.pretrained: ./runs/a/deployed: left out by .* or in runs/, which is not sent"
            ):
                submit.check_places(path, here, submit.sent_files(here))
        else:
            submit.check_places(path, here, submit.sent_files(here))  # control


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tiny.yaml"], "submit: --address: expected that of a cluster's dashboard, such as http://10.0.0.1:8265"),
        (["tiny.yaml", "--address", "ray://a:1"], "got ray://a:1"),
        (["tiny.yaml", "--address"], "--address: expected a value after it"),
        (["tiny.yml", "--address", "a:1"], "tiny.yml: no such file (did you mean 'tiny.yaml'?)"),
        (["tiny.yaml", "--address", "a:1", "--rounds", "0"], "rounds: input should be greater than or equal to 1, got 0"),
        (["tiny.yaml", "--address", "a:1", "--out", "there"], "--out there: exists and is not an empty folder"),
        (["../out.yaml", "--address", "a:1"], "../out.yaml: outside of the working directory"),
        (["left.yaml", "--address", "a:1"], "left.yaml: left out by a .gitignore or .rayignore"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_sent(here, words, told, capsys) -> None:
    (here / "there").mkdir()
    for name in ("../out.yaml", "left.yaml", "there/tiny.yaml"):
        (here / name).write_text((here / "tiny.yaml").read_text())
    (here / ".rayignore").write_text("left.yaml\n")
    assert cli(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("out", "there", "brought"),
    [
        ([], '"$HOME"/raffm-ray-runs/', "runs/"),
        (["--out", "runs/mine"], '"$HOME"/raffm-ray-runs/', "runs/mine"),
        (["--out", "/shared/mine"], "--out /shared/mine", "runs/tiny-"),
        (["--out", "s3://bucket/mine"], "--out s3://bucket/mine", "runs/tiny-"),
    ],
)
def test_a_relative_folder_is_here_and_a_whole_path_on_the_cluster(here, out, there, brought, monkeypatch) -> None:
    sent: dict[str, str] = {}

    class Client:
        def submit_job(self, **job) -> None:
            sent.update(job)

        def get_address(self) -> str:
            return "http://a:1"

    monkeypatch.setattr(submit, "client_at", lambda _: Client())
    monkeypatch.setattr(submit, "followed", lambda *_: None)
    folders: list[Path] = []
    monkeypatch.setattr(submit, "ended", lambda client, job, name, folder: folders.append(folder) or 0)
    assert cli(["submit", "tiny.yaml", "--address", "a:1", "--rounds", "1", *out]) == 0
    assert there in sent["entrypoint"]
    assert sent["entrypoint"].startswith("raffm-ray run tiny.yaml --rounds 1 --hand-over ")
    assert "runs/mine" not in sent["entrypoint"]
    assert str(folders[0]).startswith(brought)


def test_a_file_that_the_cluster_would_not_get_is_told(here) -> None:
    (here.parent / "fleet.yaml").write_text("mixes: {}")
    (here / "fleet.yaml").write_text("mixes: {}")
    path = here / "tiny.yaml"
    for place, told in (("../fleet.yaml", True), ("./fleet.yaml", False), (str(here.parent / "fleet.yaml"), False)):
        values = tiny_experiment().model_dump(mode="json")
        path.write_text(yaml.safe_dump(values | {"fleet": values["fleet"] | {"profiles": place}}))
        if told:
            with pytest.raises(UserError, match=r"submit: fleet.profiles: \.\./fleet.yaml: outside of the working directory"):
                submit.check_places(path, here, submit.sent_files(here))
        else:
            submit.check_places(path, here, submit.sent_files(here))


def test_what_is_too_large_is_named(here, monkeypatch) -> None:
    (here / "data").mkdir()
    for name, size in (("data/a", 3_000_000), ("data/b", 2_000_000), ("model", 1_000_000)):
        (here / name).write_bytes(bytes(size))
    submit.check_size(here, submit.sent_files(here))  # control
    monkeypatch.setattr(submit, "LARGEST_BYTES", 4_000_000)
    with pytest.raises(
        UserError, match=r"holds 6 MB, and a cluster takes 4 MB \(largest: data 5 MB, model 1 MB, tiny.yaml 0 MB\)"
    ):
        submit.check_size(here, submit.sent_files(here))


def test_an_address_may_be_in_the_environment(here, monkeypatch) -> None:
    assert submit.dashboard("10.0.0.1:8265") == "http://10.0.0.1:8265"
    assert submit.dashboard("https://a/") == "https://a"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:8265")
    assert submit.dashboard(None) == "http://b:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://c:8265")
    assert submit.dashboard(None) == "http://c:8265"
    assert submit.dashboard("http://d:8265") == "http://d:8265"


def test_where_no_dashboard_answers_that_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # it is set, and restored only so
    with pytest.raises(UserError, match=r"submit: http://127.0.0.1:9: no dashboard answers there \(ConnectionError\)"):
        submit.client_at("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("answer", "told"), [("No available agent to submit job, please try again later", True), ("No space", False)]
)
def test_a_head_whose_agent_does_not_run_says_which_port_may_be_taken(here, answer, told, monkeypatch, capsys) -> None:
    class Client:
        def submit_job(self, **job) -> None:
            raise RuntimeError(f"Request failed with status code 500: Traceback\nException: {answer}.")

    monkeypatch.setattr(submit, "client_at", lambda _: Client())
    assert cli(["submit", "tiny.yaml", "--address", "a:1"]) == 2
    error = capsys.readouterr().err
    assert ("its port 52365 may be taken by another Ray" in error) is told
    assert len(error.splitlines()) == 1
