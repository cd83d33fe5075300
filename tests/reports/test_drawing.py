"""Texts in pictures are data: shown as they are, whatever they hold; and the command line draws with a backend of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text

from raffm_ray.reports.drawing import plt, save
from raffm_ray.reports.run_picture import apart


def drawn(name: str):
    figure, (left, right) = plt.subplots(1, 2, layout="constrained")
    left.bar([0, 1], [1, 2], label=name)
    left.set_xticks([0, 1], [name, "b"])
    left.set(title=name, xlabel=name)
    left.legend()
    right.set(xscale="log", xlim=(1, 1e6))
    return figure


HARD = ["$100", "a $\\frac$ b", "$x^2", "100% & <b>_{}^", "\\alpha", "a\tb"]


@pytest.mark.parametrize("name", HARD)
def test_a_text_is_shown_as_it_is(name, tmp_path, recwarn) -> None:
    figure = drawn(name)
    save(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert not recwarn.list
    texts = [one for one in figure.findobj(Text) if one.get_text() == name]
    assert len(texts) >= 4
    assert not any(one.get_parse_math() for one in texts)
    powers = [one for one in figure.axes[1].get_xticklabels() if "10^" in one.get_text()]
    assert powers
    assert all(one.get_parse_math() for one in powers)


@pytest.mark.parametrize("name", ["a $\\frac$ b"])
def test_control_matplotlib_alone_stumbles_over_it(name, tmp_path) -> None:
    figure = drawn(name)
    with pytest.raises(ValueError, match="frac"):
        figure.savefig(tmp_path / "picture.png")
    plt.close(figure)


def test_characters_that_no_font_has_are_one_note(tmp_path, capsys, recwarn) -> None:
    save(drawn("\U00013000 \U00013001"), tmp_path / "picture.png")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("note: picture.png: the font lacks 2 characters (EGYPTIAN HIEROGLYPH A001, ")
    assert not recwarn.list


@pytest.mark.parametrize("backend", ["module://no_such_backend"])
def test_a_backend_that_a_notebook_left_is_not_used(backend, tmp_path) -> None:
    program = "import sys; from raffm_ray.cli.main import main; main(['report', sys.argv[1]]); from raffm_ray.reports.drawing import plt; plt.figure()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_labels_that_would_touch_are_moved_apart() -> None:
    assert apart([10, 50, 90], 5) == [10, 50, 90]
    moved = apart([40, 41, 43, 90], 6)
    assert moved[3] == 90
    assert np.diff(moved).min() == pytest.approx(6)
    assert np.mean(moved[:3]) == pytest.approx(np.mean([40, 41, 43]))
