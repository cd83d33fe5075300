"""Where a study is kept: several drivers share one storage, Optuna itself goes on with it, and its dashboard opens it while it runs."""

import json
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.trial import TrialState
from test_study import quick, settings_and_values, written  # noqa: F401

from raffm_ray.basics.errors import UserError
from raffm_ray.cli.main import main
from raffm_ray.studies import study as studies
from raffm_ray.studies.samplers import sampler_of
from raffm_ray.studies.storage import DRIVER
from raffm_ray.studies.study import run_study
from raffm_ray.studies.study_settings import Study, dump_study, load_study

PLACES = ["sqlite:///{}/study.db", "journal:{}/study.log"]


@pytest.fixture(params=PLACES, ids=["sqlite", "journal"])
def place(request, tmp_path) -> str:
    return request.param.format(tmp_path)


def opened(place: str) -> optuna.Study:
    """As somebody with Optuna alone would."""
    storage = place
    if place.startswith("journal:"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place.removeprefix("journal:")))
    return optuna.load_study(study_name="small", storage=storage)


@pytest.mark.usefixtures("quick")
def test_two_drivers_work_on_one_study(tmp_path, place) -> None:
    path = written(tmp_path, storage=place, trials=3)
    first = run_study(*load_study(path), tmp_path / "a")
    second = run_study(*load_study(path, ["--trials", "6"]), tmp_path / "b")
    assert [row["number"] for row in first["trials"]] == [0, 1, 2]
    assert [row["number"] for row in second["trials"]] == list(range(6))
    assert settings_and_values(second)[:3] == settings_and_values(first)
    drivers = [trial.user_attrs[DRIVER] for trial in opened(place).trials]
    assert len(set(drivers[:3])) == len(set(drivers[3:])) == 1
    assert drivers[0] != drivers[3]


def test_drivers_at_one_place_of_a_study_choose_differently() -> None:
    space = {"rate": optuna.distributions.FloatDistribution(0, 1)}
    chosen = [
        optuna.create_study(sampler=sampler_of({"name": "RandomSampler"}, 0, 5, name)).ask(space).params["rate"]
        for name in ("a", "b", None, None)
    ]
    assert len(set(chosen[:3])) == 3
    assert chosen[2] == chosen[3]  # control: without a name it is the same choice


@pytest.mark.usefixtures("quick")
def test_a_driver_leaves_the_trials_of_others_alone(tmp_path, place, monkeypatch) -> None:
    path, run = written(tmp_path, storage=place, trials=3), studies.run_trial

    def stopped(work, report):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "run_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(*load_study(path), tmp_path / "a")
    monkeypatch.setattr(studies, "run_trial", run)
    others = run_study(*load_study(path), tmp_path / "b")
    assert [row["number"] for row in others["trials"]] == [1, 2]
    assert opened(place).trials[0].state is TrialState.RUNNING  # its driver may be at work
    own = run_study(*load_study(path), tmp_path / "a")
    assert opened(place).trials[0].state is TrialState.FAIL  # control: its own driver takes it up again
    assert [row["number"] for row in own["trials"]] == [1, 2, 3]
    assert own["trials"][-1]["settings"] == opened(place).trials[0].params


@pytest.mark.usefixtures("quick")
def test_optuna_itself_goes_on_with_a_study(tmp_path, place) -> None:
    path = written(tmp_path, storage=place, trials=2)
    run_study(*load_study(path), tmp_path / "a")
    kept = opened(place)
    asked = {"salience.metric": "fisher", "local.learning_rate": 2e-3}
    kept.enqueue_trial(asked)
    kept.add_trial(optuna.trial.create_trial(params=kept.trials[0].params, distributions=kept.trials[0].distributions, value=1.0))
    content = run_study(*load_study(path, ["--trials", "4"]), tmp_path / "a")
    assert [row["settings"] for row in content["trials"]].count(asked) == 1
    assert content["best"] == 3  # what nobody here has run
    assert content["trials"][3]["measures"]["full_model"]["mean"] == 1.0
    page = (tmp_path / "a" / "study.html").read_text()
    assert "100.0" in page


@pytest.mark.usefixtures("quick")
def test_the_dashboard_opens_a_study_while_it_runs(tmp_path, place, monkeypatch) -> None:
    wsgi = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed").wsgi
    path, run, seen = written(tmp_path, storage=place, trials=2), studies.run_trial, []

    def watched(work, report):
        status, request = [], {"PATH_INFO": f"/api/studies/{opened(place)._study_id}"}
        setup_testing_defaults(request)
        answer = wsgi(opened(place)._storage)(request, lambda code, headers, error=None: status.append(code))
        seen.append((status[0], json.loads(b"".join(answer))))
        return run(work, report)

    monkeypatch.setattr(studies, "run_trial", watched)
    run_study(*load_study(path), tmp_path / "a")
    assert [status for status, _ in seen] == ["200 OK"] * 2
    assert [[trial["state"] for trial in content["trials"]] for _, content in seen] == [["Running"], ["Complete", "Running"]]


@pytest.mark.usefixtures("quick")
def test_another_study_of_that_name_is_refused(tmp_path, place) -> None:
    run_study(*load_study(written(tmp_path, storage=place, trials=1)), tmp_path / "a")
    changed = written(tmp_path / "other", storage=place, trials=1, settings={"rounds": 7})
    with pytest.raises(UserError, match="storage: holds another study named 'small'"):
        run_study(*load_study(changed), tmp_path / "b")
    changed = written(tmp_path / "other", storage=place, trials=1, objectives=["bytes"])
    with pytest.raises(UserError, match="storage: holds another study named 'small'"):
        run_study(*load_study(changed), tmp_path / "c")
    run_study(*load_study(changed, ["--name", "mine"]), tmp_path / "d")  # control


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("study.db", "storage: is none of journal:FILE, sqlite://..., postgresql://..., mysql://..., got 'study.db'"),
        ("oracle://me:secret@host/db", "storage: is none of journal:FILE"),
        ("sqlite:////no/such/folder/study.db", "storage: sqlite:////no/such/folder/study.db cannot be opened: "),
        ("journal:/no/such/folder/study.log", "storage: journal:/no/such/folder/study.log cannot be opened: "),
        ("postgresql://me:secret@127.0.0.1:1/db", "pip install 'raffm-ray[postgresql]'"),
        ("$RAFFM_NOT_SET", "storage: $RAFFM_NOT_SET"),
    ],
)
def test_a_place_that_cannot_be_opened_is_one_line(tmp_path, quick, capsys, given, message) -> None:  # noqa: F811
    assert main(["study", str(written(tmp_path, storage=given)), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "secret" not in told
    assert "Traceback" not in told
    assert not quick


def test_paths_are_relative_to_the_file_and_secrets_stay_in_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFFM_DATABASE", f"sqlite:///{tmp_path}/study.db")
    for given, kept in {
        "sqlite:///here.db": f"sqlite:///{tmp_path}/here.db",
        "journal:here.log": f"journal:{tmp_path}/here.log",
        "postgresql://host/db": "postgresql://host/db",
        "$RAFFM_DATABASE": "$RAFFM_DATABASE",
    }.items():
        study, base = load_study(written(tmp_path, storage=given))
        assert study.storage == kept
        assert kept in dump_study(study, base)
    assert Study.model_fields["storage"].default is None
