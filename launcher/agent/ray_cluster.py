"""A Ray cluster for one attempt: its head on node 0, a worker on every other node, gone at the end.

Nothing is shared with another Ray on the machine, SkyPilot's own included: the head's port is its own, every
other port is the kernel's choice, and each node's files lie in a folder of its own. It is stopped by its
processes, never by `ray stop`, which would stop them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from launcher.agent.ends import Ended, say
from launcher.agent.job import Node
from launcher.agent.processes import Guarded
from launcher.artifacts.store import StoreError

FAILED = 1
PORT = "6390"  # Ray's own default is 6379, SkyPilot's 6380
START_S = 120.0
JOIN_S = 300.0
VANISHED_S = 15.0  # how long the head may not answer
_POLL_S = 0.2
_SERVE_S = 0.5

# Counts the nodes through Ray's public interface, in a process of its own: the agent never imports ray.
_WAIT_FOR_NODES = """
import sys, time, ray
address, wanted, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + seconds
while (alive := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {wanted} Ray nodes joined within {seconds:.0f} s")
    time.sleep(0.2)
"""


class RayNode:
    """This node's part of the cluster. ``address`` is the head's; ``env`` is for whoever connects to it."""

    def __init__(self, node: Node, run_id: str, attempt: int, env: Mapping[str, str]) -> None:
        self._node = node
        self._head = node.addresses[0]
        self._port = int(env.get("NEMO_SKY_RAY_PORT") or PORT)
        self._log = node.work / "ray.log"
        self._process: Guarded | None = None
        self.address = f"{self._head}:{self._port}"
        self.env = {**env, **_authentication(node, env), "RAY_ADDRESS": self.address}
        # Short: Ray puts sockets in it, whose paths end at 107 characters.
        name = hashlib.sha256(f"{run_id}/{attempt}/{node.rank}".encode()).hexdigest()[:10]
        self._temp = Path("/tmp") / f"nemo-sky-ray-{name}"

    def start(self) -> None:
        """Start the head, or join it once it answers. Raises Ended when its port is taken or it does not."""
        if self._node.rank > 0:
            self._until(self.head_answers, START_S, "the Ray head did not start")
            role = [f"--address={self.address}"]
        elif self.head_answers():
            reason = f"port {self._port}, for the Ray head, is taken"
            raise Ended(FAILED, f"{reason}; set NEMO_SKY_RAY_PORT to a free one on every node")
        else:
            role = ["--head", f"--port={self._port}", "--include-dashboard=false", "--no-monitor"]
            if find_spec("grpc"):  # then Ray also starts a server for clients, on a port of its own
                role.append(f"--ray-client-server-port={_free_port()}")
        ip = self._node.addresses[self._node.rank]
        common = [f"--node-ip-address={ip}", f"--temp-dir={self._temp}", "--disable-usage-stats", "--block"]
        ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, *common, *ports]
        shutil.rmtree(self._temp, ignore_errors=True)
        with self._log.open("wb") as output:
            env = {key: value for key, value in self.env.items() if key != "RAY_ADDRESS"}
            self._process = Guarded(command, env=env, output=output)

    def head_answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._head, self._port), timeout=2):
            return True
        return False

    def wait_for_all(self) -> None:
        """On the head: return when every node has joined. Raises Ended when one does not."""
        if self._node.rank > 0:
            return
        self._until(self.head_answers, START_S, "the Ray head did not start")
        say(f"the Ray head answers at {self.address}")
        if self._node.count == 1:
            return  # the command's own connection waits for the rest
        arguments = [self.address, str(self._node.count), str(JOIN_S)]
        done = subprocess.run(
            [sys.executable, "-c", _WAIT_FOR_NODES, *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Ended(FAILED, f"the Ray cluster did not form: {done.stderr.strip()[-2000:]}")
        say(f"all {self._node.count} Ray nodes have joined")

    def serve(self, ended: Callable[[], int | None], stopped: Callable[[], bool]) -> int | None:
        """On a worker: stay until node 0 says that it has ended (its code), or ``stopped`` (None).

        Raises Ended when this node's Ray, or the head, goes away without a word.
        """

        def over() -> int | None:
            with contextlib.suppress(StoreError):  # it will answer again, or the head vanishes
                return ended()
            return None

        answered = time.monotonic()
        while True:
            code = over()
            if code is not None or stopped():
                return code
            if self._process and (own := self._process.poll()) is not None:
                # The head's end takes ours with it, but node 0 says so before it stops the head.
                if (code := over()) is not None:
                    return code
                raise Ended(FAILED, f"Ray on this node ended with {own}:\n{self._tail()}")
            if self.head_answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > VANISHED_S:
                raise Ended(FAILED, f"the Ray head at {self.address} has vanished")
            time.sleep(_SERVE_S)

    def stop(self) -> None:
        """End this node's Ray and remove its files. All that it ran is over: there is nothing to drain."""
        if self._process:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process and (code := self._process.poll()) is not None:
                raise Ended(FAILED, f"{otherwise}: it ended with {code}\n{self._tail()}")
            if time.monotonic() > deadline:
                raise Ended(FAILED, f"{otherwise} within {seconds:.0f} s at {self.address}\n{self._tail()}")
            time.sleep(_POLL_S)

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(f"  {line}" for line in lines[-15:])


def _authentication(node: Node, env: Mapping[str, str]) -> dict[str, str]:
    """Said outright, because Ray's head decides by whether this machine happens to have a token file.

    A token that the environment holds is used: a launch on several nodes gives them one
    (``launcher.secrets.of_plan``). One node makes its own. Several without have no secret in common, as of a
    task that nobody launched with nemo-sky: their cluster is as open as the network between them.
    """
    if "RAY_AUTH_MODE" in env:
        return {}
    if env.get("RAY_AUTH_TOKEN") or env.get("RAY_AUTH_TOKEN_PATH"):
        return {"RAY_AUTH_MODE": "token"}
    if node.count == 1:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if node.rank == 0:
        say("no token: whoever reaches the ports of this Ray cluster can use it; RAY_AUTH_TOKEN closes it")
    return {"RAY_AUTH_MODE": "disabled"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
