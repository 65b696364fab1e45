"""A Ray cluster on one machine, each node in a network namespace with an address of its own.

A bridge joins the namespaces. Needs root and the command `ip`. Processes are ended by their ids, as
the kernel lists them for a namespace; bridge, namespaces and folders are gone afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GCS_PORT, AGENT_PORT = 6379, 53365
START_SECONDS, END_SECONDS = 90.0, 20.0
STORE_BYTES = 80_000_000


@dataclass(frozen=True)
class Node:
    """A namespace, and the Ray node in it.

    Attributes:
        name: Of the namespace.
        address: IPv4 address in it.
        link: End of its cable at the bridge.
        head: The cluster's address; this node's own for the head.
        folder: For logs, and Ray's temporary files.
    """

    name: str
    address: str
    link: str
    head: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of processes of this node: without the interface's name gloo resolves to loopback."""
        own = {"GLOO_SOCKET_IFNAME": "eth0", "RAY_AUTH_MODE": "disabled"}
        own["RAY_worker_niceness"] = "0"  # at Ray's 15 a busy machine leaves them nothing
        return {**os.environ, **own, "RAY_ADDRESS": f"{self.head}:{GCS_PORT}"}

    def run(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command in the namespace; its output is appended to a file."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_ray(self) -> None:
        """Start its Ray node, with one CPU, and wait until it has joined.

        Raises:
            RuntimeError: It does not within 90 seconds.
        """
        role = ["--head", f"--port={GCS_PORT}", "--include-dashboard=true"]
        if self.address != self.head:
            role = [f"--address={self.head}:{GCS_PORT}"]
        log = self.folder / f"{self.name}.txt"
        command = [
            "ray",
            "start",
            *role,
            f"--node-ip-address={self.address}",
            "--num-cpus=1",
            f"--object-store-memory={STORE_BYTES}",
            f"--dashboard-agent-listen-port={AGENT_PORT + int(self.address.rpartition('.')[2])}",
            f"--temp-dir={self.folder / self.name}",
            "--disable-usage-stats",
        ]
        try:
            code = self.run(command, log).wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise RuntimeError(f"{self.name}: ray start gave {code}: {log.read_text()[-2000:]}")

    def pids(self) -> list[int]:
        """Processes in the namespace."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """`kill -9` of all that runs in the namespace; their number.

        Raises:
            RuntimeError: Some are still there after 20 seconds.
        """
        killed, deadline = set[int](), time.monotonic() + END_SECONDS
        while pids := self.pids():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: processes {pids} do not end")
            for pid in pids:
                killed.add(pid)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        return len(killed)

    def runs_ray(self) -> bool:
        """Whether its Ray node is there."""
        names = (Path(f"/proc/{pid}/comm") for pid in self.pids())
        return any(name.exists() and name.read_text().strip() == "raylet" for name in names)

    def revive(self) -> None:
        """Start its Ray node where it has ended, as systemd, Slurm or Kubernetes would."""
        if not self.runs_ray():
            self.kill()
            self.start_ray()

    def set_link(self, state: str) -> None:
        """Plug the node's cable in (`up`), or pull it (`down`)."""
        _ip("link", "set", self.link, state)


@contextmanager
def ray_nodes(count: int, subnet: str = "10.77.5") -> Iterator[list[Node]]:
    """So many Ray nodes of one CPU each, the head first.

    Args:
        count: How many.
        subnet: First three numbers of their addresses; the bridge has .254.
    """
    tag = f"a{os.getpid()}"
    bridge = f"{tag}b"
    # The paths of Ray's sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ns", ignore_cleanup_errors=True) as folder:
        nodes = [
            Node(f"{tag}n{i}", f"{subnet}.{i}", f"{tag}l{i}", f"{subnet}.1", Path(folder))
            for i in range(1, count + 1)
        ]
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{subnet}.254/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for node in nodes:
                _connect(node, bridge, f"{subnet}.254")
            for node in nodes:
                node.start_ray()
            yield nodes
        finally:
            _remove(nodes, bridge)


def _connect(node: Node, bridge: str, gateway: str) -> None:
    inside = ("-n", node.name)
    _ip("netns", "add", node.name)
    peer = ("peer", "name", "eth0", "netns", node.name)
    _ip("link", "add", node.link, "type", "veth", *peer)
    _ip("link", "set", node.link, "master", bridge, "up")
    _ip(*inside, "addr", "add", f"{node.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip(*inside, "link", "set", device, "up")
    # Ray asks for the route to the outside to learn its own address. The bridge leads nowhere.
    _ip(*inside, "route", "add", "default", "via", gateway)


def _remove(nodes: Sequence[Node], bridge: str) -> None:
    there = {line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()}
    for node in nodes:
        if node.name in there:
            try:
                node.kill()
            finally:
                # The kernel takes a namespace's end of the cable away late, and with it the other.
                if Path("/sys/class/net", node.link).exists():
                    _ip("link", "del", node.link)
                _ip("netns", "del", node.name)
    if Path("/sys/class/net", bridge).exists():
        _ip("link", "del", bridge)


def _ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout
