"""Where Optuna keeps a study: a journal in the study's folder, or a journal or a database that several machines share."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.basics.files import write_atomically
from raffm_ray.studies.study_settings import DATABASES

JOURNAL = "journal.log"
DRIVER = "driver"
"""Attribute of a trial, and file in a study's folder: which folder's driver runs it."""


def open_storage(given: str | None, folder: Path) -> BaseStorage:
    """Optuna's storage: the one that `given` names, `$NAME` in it replaced by the environment variable, or a journal in `folder`.

    What a killed driver left of a journal, half a line and a lock, is taken away. Raises UserError for what cannot be opened.
    """
    if given is None:  # its folder is locked: nobody else writes there
        (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
        _drop_half_line(folder / JOURNAL)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    place = os.path.expandvars(given)
    try:
        if place.startswith("journal:"):
            journal = Path(place.removeprefix("journal:"))
            backend = JournalFileBackend(str(journal))
            with _journal_lock(journal):
                _drop_half_line(journal)
            return JournalStorage(backend)
        return RDBStorage(place)
    except (ImportError, ModuleNotFoundError) as error:
        extra = DATABASES[place.split(":")[0].split("+")[0]]
        raise UserError(f"storage: {in_short(error)}: pip install 'raffm-ray[{extra}]'") from None
    except Exception as error:  # every database has errors of its own
        raise UserError(f"storage: {given} cannot be opened: {in_short(error)}") from None


@contextmanager
def _journal_lock(journal: Path) -> Iterator[None]:
    """The lock that Optuna takes for every line that it writes."""
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _drop_half_line(journal: Path) -> None:
    """Takes back a line that was being written when a driver was killed."""
    if journal.is_file():
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            write_atomically(journal, content[: content.rfind(b"\n") + 1])


def driver_of(folder: Path) -> str:
    """The name of the driver that works in a study's folder, the same whenever it goes on."""
    path = folder / DRIVER
    if not path.is_file():
        write_atomically(path, f"{token_hex(8)}\n".encode())
    return path.read_text(encoding="utf-8").strip()


def open_study(
    storage: BaseStorage,
    name: str,
    directions: Sequence[StudyDirection],
    pruner: optuna.pruners.BasePruner,
    configuration: str | None,
) -> optuna.Study:
    """The study of that name, made or gone on with. `configuration`: a digest of all that its trials have in common, where others
    may have made it.

    Raises UserError where the storage holds another study of that name.
    """
    try:
        kept = optuna.create_study(storage=storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True)
    except ValueError as error:
        raise UserError(f"storage: {in_short(error)}") from None
    there: dict[str, Any] = kept.user_attrs
    if kept.directions != list(directions) or there.get("configuration", configuration) != configuration:
        raise UserError(f"storage: holds another study named {name!r}: give this one another name, or the other's configuration")
    if configuration and "configuration" not in there:
        kept.set_user_attr("configuration", configuration)
    return kept


def folder_name(number: int) -> str:
    """Where a trial's runs are, in the study's folder."""
    return f"trials/{number:04d}"


def cut_short(kept: optuna.Study) -> set[int]:
    """Numbers of trials that another one continues."""
    return {trial.user_attrs["continues"] for trial in kept.trials if "continues" in trial.user_attrs}


def begun(kept: optuna.Study) -> int:
    """How many trials were begun, by whomever; one that was cut short and came again counts once."""
    continued = cut_short(kept)
    return sum(trial.state is not TrialState.WAITING and trial.number not in continued for trial in kept.trials)


def begin_again(kept: optuna.Study, driver: str | None) -> None:
    """Fails trials that were cut short; they come again, with what they had. `driver`: whose trials; those of others still run. None: all."""
    for trial in kept.trials:
        if trial.state is TrialState.RUNNING and driver in (None, trial.user_attrs.get(DRIVER)):
            if trial.number not in cut_short(kept):
                parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                attributes = {"folder": folder_name(trial.number), **trial.user_attrs, "continues": trial.number}
                # What samplers note of a trial, such as its generation, goes with it; constraints are known at its end.
                kept.add_trial(
                    create_trial(
                        state=TrialState.WAITING,
                        user_attrs=attributes,
                        system_attrs={**trial.system_attrs, "fixed_params": parameters},
                    )
                )
            kept.tell(trial.number, state=TrialState.FAIL)
