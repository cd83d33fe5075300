"""Kills what a run is made of, at random moments, and compares all bits with those of a run that nobody disturbed: `make chaos`.

The runs are on a cluster of three raylets on this machine, a core each. What is killed: an actor, a raylet (and another joins), the driver
(and the run is resumed), anywhere or while it writes a checkpoint, or an actor is stopped, so that its block hangs. After each, the state after the next whole round must be that of
the undisturbed run, to the bit; at a run's end, so must everything that it leaves: records, summary, model.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = "RAFFM_CHAOS"
os.environ |= {MARK: str(os.getpid()), "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from conftest import tiny_experiment  # noqa: E402  # what it imports reads the environment
from outcomes import digest, outcome  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from raffm_ray.runs import checkpoint  # noqa: E402
from raffm_ray.runs.checkpoint import Checkpoint, DamagedError  # noqa: E402
from raffm_ray.runs.simulation import simulate  # noqa: E402
from raffm_ray.settings.experiment import Experiment  # noqa: E402
from raffm_ray.settings.loading import dump  # noqa: E402

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 120.0


def experiment_of(rounds: int, backend: str) -> Experiment:
    """Rounds of some blocks each, a state with something of everything, and clients that keep a head of their own."""
    return tiny_experiment(
        rounds=rounds,
        task={"validation": 20},
        clients={"count": 40, "per_round": 8, "held_out": 0.2, "unseen": 0.1},
        strategy={"name": "raffm", "personal": ["classifier"]},
        local={"steps": 6},
        server={"optimizer": "adam", "learning_rate": 0.01},
        clock={"late": "accept", "over_selection": 1.5, "dropout": 0.1},
        evaluation={"every": 7, "sizes": 1, "clients": 20},
        salience={"every": 5, "until": 1.0, "clients": 2},
        checkpoint={"keep": rounds + 1},
        pool={"backend": backend, "workers": 2, "attempts": 1000, "patience_seconds": 3.0, "block_clients": 2},
    )


class Undisturbed:
    """A run that nobody disturbs: the digest of its state after every round, and what it leaves."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.rounds, self.states, real = rounds, dict[int, str](), checkpoint.write

        def noted(place: Path, kept: Checkpoint, *others: Any) -> None:
            self.states[kept.state.round] = digest(kept.state)
            real(place, kept, *others)

        checkpoint.write = noted
        try:
            simulate(experiment_of(rounds, "in_process"), folder)
        finally:
            checkpoint.write = real
        self.outcome = outcome(folder)


def differing(undisturbed: Undisturbed, folder: Path) -> list[str]:
    """What of a run's folder is not as in the undisturbed run: its states so far, and all that it leaves once it is finished."""
    if (folder / "summary.json").is_file():
        left = outcome(folder)
        return [name for name in left.keys() | undisturbed.outcome.keys() if left.get(name) != undisturbed.outcome.get(name)]
    return [place.name for place, digest in _states(folder) if digest != undisturbed.states[int(place.name[6:])]]


def _states(folder: Path) -> Iterator[tuple[Path, str]]:
    for place in sorted((folder / "checkpoints").glob("round-*")):
        if place.name[6:].isdecimal():
            try:
                yield place, digest(checkpoint.read(place).state)
            except DamagedError:
                if (folder / "summary.json").is_file():  # it is finished just now, and its checkpoints go
                    return
                raise


def processes(title: str) -> list[int]:
    """Those of this program's descendants, by the beginning of their title."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith(title.encode()) and (
                f"{MARK}={os.environ[MARK]}".encode() in (place / "environ").read_bytes()
            ):
                found.append(int(place.name))
        except OSError:
            continue
    return found


class Run:
    """A run in a folder, and the driver that is at it."""

    def __init__(self, folder: Path, address: str, config: Path) -> None:
        self.folder, self.address = folder, address
        self.start("run", str(config), "--out", str(folder))

    def start(self, *arguments: str) -> None:
        """A driver."""
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "raffm_ray.cli", *arguments],
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": self.address},
        )

    def resume(self) -> None:
        """Another driver, in place of one that ended."""
        self.driver.communicate()
        self.start("resume", str(self.folder))

    def done(self) -> int:
        """The last round that has a checkpoint; -1 before the first, and as many as there are once the run is finished."""
        if (self.folder / "summary.json").is_file():
            return 10**9
        return max(
            (int(path.name[6:]) for path in (self.folder / "checkpoints").glob("round-*") if path.name[6:].isdecimal()),
            default=-1,
        )

    def until(self, rounds: int) -> None:
        """Waits for a round's checkpoint. A driver that lost its own raylet is resumed; any other that fails is an error."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.done() < rounds:
            if self.driver.poll() not in (None, 0):
                error = self.driver.communicate()[1]
                if not (self.folder / "config.yaml").is_file() or "raylet" not in error:
                    raise SystemExit(f"a driver ended with {self.driver.returncode}:\n{error}")
                self.resume()
            if time.monotonic() > end:
                self.driver.send_signal(signal.SIGINT)
                raise SystemExit(
                    f"no round was done within {PATIENCE_SECONDS:g} s after {self.done()}:\n{self.driver.communicate()[1]}"
                )
            time.sleep(0.02)


def _signal(run: Run, rng: random.Random, number: int) -> bool:
    actors = sorted(processes("ray::_Worker"))
    try:
        os.kill(rng.choice(actors), number)
    except (IndexError, ProcessLookupError):
        return False
    return True


def kill_actor(run: Run, cluster: Cluster, rng: random.Random) -> bool:
    """With whatever it is at."""
    return _signal(run, rng, signal.SIGKILL)


def hang_actor(run: Run, cluster: Cluster, rng: random.Random) -> bool:
    """It stops where it is and never goes on."""
    return _signal(run, rng, signal.SIGSTOP)


def kill_raylet(run: Run, cluster: Cluster, rng: random.Random) -> bool:
    """A node with its actors and its part of the object store; another joins."""
    node = rng.choice(sorted(cluster.worker_nodes, key=lambda one: str(one.unique_id)))
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    return True


def kill_driver(run: Run, cluster: Cluster, rng: random.Random) -> bool:
    """The run is resumed."""
    run.driver.kill()
    run.resume()
    return True


def kill_writer(run: Run, cluster: Cluster, rng: random.Random) -> bool:
    """The driver in the middle of writing a checkpoint; the run is resumed."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not any((run.folder / "checkpoints").glob(".round-*.tmp")):
        if run.driver.poll() is not None or time.monotonic() > end:
            return False
    return kill_driver(run, cluster, rng)


KILLS: Mapping[str, Callable[[Run, Cluster, random.Random], bool]] = {
    "actor": kill_actor,
    "raylet": kill_raylet,
    "driver": kill_driver,
    "hung": hang_actor,
    "writer": kill_writer,
}


def chaos(kills: int, seed: int, rounds: int, folder: Path, tell: Callable[[str], None]) -> Counter[str]:
    """How many of each were survived with equal bits. Raises SystemExit at the first that was not."""
    rng, survived = random.Random(seed), Counter[str]()
    undisturbed = Undisturbed(folder / "undisturbed", rounds)
    config = folder / "chaos.yaml"
    config.write_text(dump(experiment_of(rounds, "ray")))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    run: Run | None = None
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        number = 0
        while survived.total() < kills:
            if run is None:
                number += 1
                run = Run(folder / f"run-{number}", cluster.address, config)
                run.until(0)
            left = kills - survived.total()
            kind = rng.choices(list(KILLS), (4, 3, 2, 1, 2))[0] if left > len(KILLS) else list(KILLS)[left - 1]
            time.sleep(rng.random())
            before, killed = run.done(), time.monotonic()
            if before < rounds and KILLS[kind](run, cluster, rng):
                run.until(min(before + 2, rounds))
                if wrong := differing(undisturbed, run.folder):
                    raise SystemExit(f"after {survived.total()} kills, {kind}: {', '.join(wrong)} differ")
                survived[kind] += 1
                seconds = time.monotonic() - killed
                tell(f"{survived.total()} of {kills} with equal bits: {kind} (run {number}, round {before}, {seconds:.1f} s)")
            if run.done() >= rounds:
                if run.driver.wait() or differing(undisturbed, run.folder):
                    raise SystemExit(f"run {number}: {differing(undisturbed, run.folder)} differ at its end")
                run = None
        if run is not None:
            run.until(rounds)
            if wrong := differing(undisturbed, run.folder):
                raise SystemExit(f"run {number}: {', '.join(wrong)} differ at its end")
    finally:
        if run is not None:
            run.driver.kill()
        cluster.shutdown()
    return survived


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=150, help="of each run")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAFFM_CACHE"] = f"{folder}/cache"
        survived = chaos(given.kills, given.seed, given.rounds, Path(folder), lambda line: print(line, flush=True))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(survived.items()))
    print(f"{survived.total()} of {given.kills} kills with equal bits ({kinds}) in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
