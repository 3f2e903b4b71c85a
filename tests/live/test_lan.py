"""Three machines on a switch that leads nowhere: network namespaces without a default route. Linux, as root.

What loopback cannot show: that nodes tell each other addresses which mean the same to all of them.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
# Three processes import JAX at the same time, on a machine that tests may share.
PATIENCE_S = 120.0
FAST = ("--set", "learning.round_interval_s=0.1", "--set", "exchange.join_patience_s=0.5")
# Nodes that start together find each other in seconds, not after the first long walk.
WALK = ("--set", "membership.walk_interval_s=4")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Names of three namespaces on one switch, 10.77.0.1 to 10.77.0.3."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("NOT TESTED: networks without a default route need Linux, root and iproute2.")
    switch = f"p2pnode-{os.getpid()}"
    hosts = [f"{switch}-{number}" for number in (1, 2, 3)]
    made: list[str] = []
    try:
        try:
            for name in (switch, *hosts):
                ip("netns", "add", name)
                made.append(name)
            ip("-n", switch, "link", "add", "switch", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"NOT TESTED: this system makes no namespaces and bridges ({error.stderr.decode()}).")
        ip("-n", switch, "link", "set", "switch", "up")
        for number, host in enumerate(hosts, start=1):
            port = f"port{number}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", switch, "link", "set", port, "master", "switch", "up")
            ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name in made:
            ip("netns", "del", name)


class Machine:
    """One `p2pnode run` in a namespace; its control socket is a file, and reached from outside."""

    def __init__(self, namespace: str, home: Path, *words: str) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        self.out = home.with_suffix(".out")
        run = [sys.executable, "-m", "p2pnode", "run", "--home", str(home), *FAST, *WALK, *words]
        environ = {k: v for k, v in os.environ.items() if not k.startswith("P2PNODE_")}
        environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(home.parent / "jax-cache")}
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *run],  # becomes the daemon
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )

    def ask(self, command: str) -> Any:
        words = [sys.executable, "-m", "p2pnode", command, "--json", "--home", str(self.home)]
        answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
        return json.loads(answer.stdout) if answer.stdout else None

    def until(self, command: str, holds: Callable[[Any], bool], wanted: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while True:
            answer = self.ask(command)
            if answer is not None and holds(answer):
                return answer
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, f"never {wanted}: {answer}; {self.log.read_text()[-2000:]}"
            time.sleep(0.2)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def test_machines_on_a_network_that_leads_nowhere_outlive_their_hub(
    machines: list[str], tmp_path: Path
) -> None:
    running = [Machine(machines[0], tmp_path / "hub")]
    try:
        hub = running[0]
        hub.until("status", lambda status: status["round"] > 0, "started")
        # It cannot know which of its addresses the next machine sees; loopback is none of them.
        assert "p2pnode run --join HOST:7400" in hub.out.read_text()
        for number in (1, 2):
            home = tmp_path / f"node-{number}"
            running.append(Machine(machines[number], home, "--join", "10.77.0.1:7400"))
        a, b = running[1:]
        names = {one: one.until("id", bool, "answered")["id"] for one in (a, b)}
        for one, other in ((a, b), (b, a)):
            there = one.until(
                "peers",
                lambda peers, other=other: names[other] in [peer["id"] for peer in peers],
                "met the other that joined",
            )
            assert all(peer["address"].startswith("10.77.0.") for peer in there)
        hub.end()
        for one in (a, b):
            before = one.until("status", lambda status: status["peers"] == 1, "saw the hub go")["exchanges"]
            wanted = before + 10
            one.until("status", lambda status, wanted=wanted: status["exchanges"] >= wanted, "went on")
        assert "127.0.0.1" not in "".join(one.log.read_text() for one in running), "loopback left a machine"
    finally:
        for one in running:
            one.end()
