"""What a user is told whose run was interrupted: how to go on, and what is lost."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from raffm_ray.basics.files import locked
from raffm_ray.cli.signals import telling_how_to_resume
from raffm_ray.preparation import starting_parameters
from raffm_ray.runs.recorder import check_output


def told(folder: Path, url: str = "", why: str = "") -> str:
    with pytest.raises(KeyboardInterrupt) as caught, telling_how_to_resume(folder, url):
        raise KeyboardInterrupt(why)
    return str(caught.value)


def test_what_to_do_depends_on_what_was_recorded(tmp_path) -> None:
    folder = tmp_path / "run"
    again = "; nothing was recorded yet: the same command begins again"
    assert told(folder) == again
    with locked(folder):
        pass
    assert told(folder) == again
    check_output(folder)  # the folder that was left behind stops nothing
    (folder / "config.yaml").touch()
    assert told(folder) == f"; no round was recorded yet: raffm-ray resume {folder} begins again at the ranking of the parameters"
    assert told(folder, "s3://bucket/run") == again, "nothing was copied there yet"
    (folder / "rounds").mkdir()
    (folder / "rounds" / "round-000000.parquet").touch()
    assert told(folder) == f"; raffm-ray resume {folder} goes on"
    assert told(folder, "s3://bucket/run") == "; raffm-ray resume s3://bucket/run goes on"


def test_a_pretraining_that_was_interrupted_is_said_to_begin_anew(tmp_path, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(starting_parameters, "pretrained", interrupted)
    for steps, said in (((0, 3), "; the pretraining that was not finished begins anew"), ((0, 0), "")):
        monkeypatch.setattr(starting_parameters, "pretraining_of", lambda _, steps=steps: SimpleNamespace(steps=lambda: steps))
        with pytest.raises(KeyboardInterrupt) as caught:
            starting_parameters.trained(SimpleNamespace(), lambda *_: None, lambda _: None)
        assert str(caught.value) == said
        assert told(tmp_path, why=str(caught.value)).startswith(f"{said}; nothing was recorded yet")
