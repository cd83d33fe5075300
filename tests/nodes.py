"""A real Ray cluster on this machine: `ray start`, token authentication, nodes that come and go; each in a network of its own where the
system allows it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

import psutil

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 180.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Outside of 10002 to 19999, where Ray has its workers'."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Networks:
    """A network namespace for every node, on one bridge; none where the system does not allow it (`reason`)."""

    def __init__(self) -> None:
        self.prefix, self.made, self.reason = f"rf{os.getpid() % 100000}", list[str](), ""
        try:
            self.add()
            self._ip("-n", self.made[0], "link", "add", "hub", "type", "bridge")
            self._ip("-n", self.made[0], "addr", "add", "10.77.0.1/24", "dev", "hub")
            self._ip("-n", self.made[0], "link", "set", "hub", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.reason = f"network namespaces are not allowed here: {getattr(error, 'stderr', '') or error}".strip()
            self.close()

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=20)

    def add(self) -> None:
        name = f"{self.prefix}n{len(self.made)}"
        self._ip("netns", "add", name)
        self.made.append(name)
        self._ip("-n", name, "link", "set", "lo", "up")

    def join(self) -> tuple[list[str], str]:
        """Another node's: what its commands begin with, and its address."""
        if self.reason:
            return [], "127.0.0.1"
        number = len(self.made)
        self.add()
        name, hub = self.made[-1], self.made[0]
        self._ip("-n", hub, "link", "add", f"to{number}", "type", "veth", "peer", "name", "up0", "netns", name)
        self._ip("-n", hub, "link", "set", f"to{number}", "master", "hub", "up")
        self._ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "up0")
        self._ip("-n", name, "link", "set", "up0", "up")
        return ["ip", "netns", "exec", name], f"10.77.0.{number + 1}"

    def head(self) -> tuple[list[str], str]:
        """The head's."""
        return ([], "127.0.0.1") if self.reason else (["ip", "netns", "exec", self.made[0]], "10.77.0.1")

    def close(self) -> None:
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


class Node:
    """A node of the cluster: `ray start --block`, and what that started."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        self.log = log

    def _raylet(self) -> psutil.Process | None:
        found = psutil.Process(self.process.pid).children(recursive=True)
        return next((one for one in found if one.name() == "raylet"), None)

    def up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return "Ray runtime started" in self.log.read_text() and self._raylet() is not None

    def actors(self) -> int:
        """How many of a run's workers are on it."""
        raylet = self._raylet()
        names = [" ".join(one.cmdline()) for one in raylet.children()] if raylet else []
        return sum("_Worker" in name for name in names)

    def kill(self) -> None:
        """As a machine that is lost."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for one in family:
            one.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends it and all that it started."""
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
            for one in psutil.wait_procs(family, timeout=5)[1]:
                one.kill()


class Cluster:
    """A head with a token, and nodes. `environment`: of who may join, `command`: what its commands begin with."""

    def __init__(self, cores: int) -> None:
        self.folder = Path(mkdtemp(prefix="rn-", dir="/tmp"))  # short: sockets are in it
        (self.folder / "token").write_text(secrets.token_hex(32))
        self.networks = Networks()
        self.prefix, address = self.networks.head()
        gcs, dashboard, client = free_ports(3)
        self.address, self.dashboard = f"{address}:{gcs}", f"http://127.0.0.1:{dashboard}"
        kept = ("RAY_worker_niceness",)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name in kept}
        self.environment = clean | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        self.nodes: list[Node] = []
        try:
            self._start(
                self.prefix,
                "--head",
                f"--node-ip-address={address}",
                f"--port={gcs}",
                f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
                f"--num-cpus={cores}",
            )
        except BaseException:
            self.close()
            raise

    def _start(self, prefix: Sequence[str], *words: str) -> Node:
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        words = (*words, *(f"--{name}-port={port}" for name, port in zip(names, free_ports(4), strict=True)))
        # Nodes share this machine's files, but must not take each other's packages away.
        words = (*words, f"--temp-dir={self.folder / str(len(self.nodes))}")
        command = [
            *prefix,
            str(BIN / "ray"),
            "start",
            *words,
            "--object-store-memory=100000000",
            "--block",
            "--disable-usage-stats",
        ]
        node = Node(command, self.environment, self.folder / f"node-{len(self.nodes)}.log")
        self.nodes.append(node)
        wait_for(node.up, "a node's start")
        return node

    def add(self, *words: str) -> Node:
        """Another node, of one core."""
        prefix, address = self.networks.join()
        return self._start(prefix, f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1", *words)

    def run(self, *words: str, seconds: float = 200.0, **changes: str) -> subprocess.CompletedProcess[str]:
        """A command of a user of the cluster, in the current folder."""
        return subprocess.run(
            [*self.prefix, *words], env=self.environment | changes, capture_output=True, text=True, timeout=seconds, check=False
        )

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.stop()
        self.networks.close()
        shutil.rmtree(self.folder, ignore_errors=True)
