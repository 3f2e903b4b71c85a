"""How commands talk to a running daemon: newline-delimited JSON on a Unix socket in the home directory.

    -> {"v": 1, "id": 7, "method": "status", "params": {}}
    <- {"v": 1, "id": 7, "result": {...}}
    <- {"v": 1, "id": 7, "error": {"code": "unknown_method", "message": "..."}}
    <- {"v": 1, "id": 7, "event": "status", "data": {...}}      after `subscribe`, at most four times a second

Unstable until 1.0; `v` tells. Who may connect is the file system's business (0600 in 0700) and, where the
system can say, the peer's user id. This file is the client and the words; `control_server` is the other end.
It imports neither trio nor anything else that is slow, because `p2pnode status` should feel like `ls`.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home

CONTROL_VERSION = 1
METHODS = ("status", "peers", "id", "eval", "export", "save", "join", "stop", "subscribe")
# Code of the one answer that a daemon has for everything but `stop` until it is up.
STARTING = "starting"
# A request is a method and a few addresses.
REQUEST_BYTES_MAX = 2**16
# An answer of 4,096 peers at 500 bytes is 2 MiB.
ANSWER_BYTES_MAX = 2**23
# sun_path of Linux is 108 bytes with its final zero; macOS has 104.
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103
# A daemon answers `status` in milliseconds unless it is hung, which is what the person wants to hear.
ANSWER_TIMEOUT_S = 5.0


class ControlError(Exception):
    """The daemon answered with an error: `code` for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address, valid while the block lasts.

    Homes may lie deep. Linux lets us name the directory by an open descriptor, whatever the length of its
    path.

    Raises:
        UserError: HOME, where the path is too long and the system has no such short cut.
    """
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        raise UserError(
            ExitCode.HOME,
            f"{path}: expected a path of at most {SOCKET_PATH_BYTES_MAX} bytes for a socket; "
            "choose a shorter --home.",
        )
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class ControlClient:
    """A blocking connection to the daemon of one home. Use as a context manager.

    Raises:
        UserError: NO_DAEMON, from the constructor and whenever the daemon hangs up, stays silent or is not up yet.
        ControlError: the daemon refused the request.
    """

    def __init__(self, home: Home, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._home = home
        self._next = 0
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            with socket_address(home.socket) as address:
                self._socket.connect(address)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            self._socket.close()
            raise UserError(
                ExitCode.NO_DAEMON,
                f"no daemon runs in {home.path}; start one with `{home.command('run')}`.",
            ) from error
        except OSError as error:
            self._socket.close()
            raise UserError(
                ExitCode.NO_DAEMON,
                f"the daemon of {home.path} cannot be reached ({error.strerror or error}).",
            ) from error

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For `selectors`: readable when `receive` has something."""
        return self._socket.fileno()

    def call(self, method: str, *, timeout_s: float | None = None, **params: Any) -> Any:
        """Ask, wait, return the result."""
        number = self.send(method, **params)
        if timeout_s is not None:
            self._socket.settimeout(timeout_s)
        while True:
            answer = self._receive_one()
            if answer.get("id") != number:
                continue  # an event of an earlier subscription
            if "error" in answer:
                fault = answer["error"]
                raise ControlError(str(fault.get("code", "")), str(fault.get("message", "")))
            return answer.get("result")

    def send(self, method: str, **params: Any) -> int:
        """Ask without waiting; returns the id that the answers will carry."""
        self._next += 1
        request = {"v": CONTROL_VERSION, "id": self._next, "method": method, "params": params}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise self._gone() from error
        return self._next

    def receive(self) -> list[dict[str, Any]]:
        """All whole answers at hand, after waiting for one read. May be empty: half an answer came."""
        self._fill()
        answers = []
        while b"\n" in self._buffer:
            answers.append(self._take())
        return answers

    def _receive_one(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._fill()
        return self._take()

    def _fill(self) -> None:
        try:
            data = self._socket.recv(2**16)
        except TimeoutError as error:
            raise UserError(
                ExitCode.NO_DAEMON,
                f"the daemon of {self._home.path} accepted the question but does not answer.",
            ) from error
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        self._buffer += data
        if len(self._buffer) > ANSWER_BYTES_MAX:
            raise UserError(
                ExitCode.NO_DAEMON,
                f"expected answers of at most {ANSWER_BYTES_MAX} bytes, the daemon sent more.",
            )

    def _take(self) -> dict[str, Any]:
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise UserError(
                ExitCode.NO_DAEMON, "expected JSON from the control socket, got something else."
            ) from error
        if not isinstance(answer, dict) or answer.get("v") != CONTROL_VERSION:
            raise UserError(
                ExitCode.NO_DAEMON,
                f"expected version {CONTROL_VERSION} of the control protocol, the daemon speaks another; "
                "restart it with this version of p2pnode.",
            )
        fault = answer.get("error")
        if isinstance(fault, dict) and fault.get("code") == STARTING:
            raise UserError(ExitCode.NO_DAEMON, str(fault.get("message", "")))
        return answer

    def _gone(self) -> UserError:
        return UserError(ExitCode.NO_DAEMON, f"the daemon of {self._home.path} closed the connection.")


def ask(home: Home, method: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **params: Any) -> Any:
    """One question to the daemon of `home`.

    Raises:
        UserError: NO_DAEMON; or FAILED with the sentence of a daemon that refused.
    """
    with closing(ControlClient(home, timeout_s=timeout_s)) as client:
        try:
            return client.call(method, **params)
        except ControlError as error:
            raise UserError(ExitCode.FAILED, str(error)) from error
