"""A daemon that is not up yet: it loads its task, which takes seconds, or minutes where there is much to read.

It answers already, in a thread: `stop` ends it, everything else is told that it starts. SIGTERM, SIGHUP and Ctrl-C end
it, too, at once and whatever the task does with exceptions. Nothing is lost by it: nobody is connected, and every start
is a recovery.
"""

import os
import select
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType

import msgspec
import structlog

from p2pnode.control import CONTROL_VERSION, REQUEST_BYTES_MAX, STARTING
from p2pnode.control_server import RequestError, parsed, same_user
from p2pnode.errors import ExitCode
from p2pnode.home import Home

# One client is served at a time. A command sends its question in one piece; whoever takes longer is turned away.
CLIENT_TIMEOUT_S = 1.0

_ENDINGS = (
    (signal.SIGINT, signal.default_int_handler, ExitCode.INTERRUPTED),
    # As when it runs and was told to end.
    (signal.SIGTERM, signal.SIG_DFL, ExitCode.OK),
    (signal.SIGHUP, signal.SIG_DFL, ExitCode.OK),
)

log = structlog.get_logger(__name__)


class Starting:
    """A context in which a daemon is built, until `over` hands on the control socket.

    Signals that are ignored, or that somebody handles in a way of their own, stay as they are.

    Args:
        home: Of the daemon.
        listener: Its control socket, which listens. Not blocking from then on, and not closed.
    """

    def __init__(self, home: Home, listener: socket.socket) -> None:
        self._home = home
        self._listener = listener
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> "Starting":
        for number, default, _ in _ENDINGS:
            if signal.getsignal(number) is default:
                signal.signal(number, self._told)
                self._handled.append(number)
        self._listener.setblocking(False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over()
        for number, default, _status in _ENDINGS:
            if number in self._handled:
                signal.signal(number, default)
        self._wake.close()
        self._woken.close()

    def over(self) -> socket.socket:
        """Answer nobody from now on; returns the control socket. Signals are left to whoever handles them by now."""
        self._wake.send(b"\0")
        self._thread.join()
        return self._listener

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._end(next(status for one, _, status in _ENDINGS if one == number))

    def _end(self, status: ExitCode) -> None:
        with suppress(OSError):
            self._home.socket.unlink()
        os._exit(status)  # no exception, which a task of somebody's own, or C code, may swallow

    def _answer(self) -> None:
        while not self._awaited(self._listener, None):
            try:
                client, _ = self._listener.accept()
            except OSError:
                continue  # it went away meanwhile
            with client:
                try:
                    self._serve(client)
                except OSError:
                    pass  # it does not read, or is gone

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(CLIENT_TIMEOUT_S)
        line = b""
        while b"\n" not in line:
            if len(line) > REQUEST_BYTES_MAX or self._awaited(client, CLIENT_TIMEOUT_S):
                return
            data = client.recv(2**14)
            if not data:
                return
            line += data
        answer: dict[str, object] = {"v": CONTROL_VERSION, "id": None}
        stop = False
        try:
            request = parsed(line.partition(b"\n")[0])
            answer["id"] = request.id
            stop = request.method == "stop" and same_user(client)
            if not stop:
                raise RequestError(
                    STARTING, f"the daemon of {self._home.path} is starting: it loads its task; ask again."
                )
            answer["result"] = {}
        except RequestError as error:
            answer["error"] = {"code": error.code, "message": str(error)}
        client.sendall(msgspec.json.encode(answer) + b"\n")
        if stop:
            log.info("stopping", reason="told to while starting")
            self._end(ExitCode.OK)

    def _awaited(self, what: socket.socket, timeout_s: float | None) -> bool:
        """Wait until `what` is readable; True if instead it is over, or nothing came in time."""
        ready, _, _ = select.select([what, self._woken], [], [], timeout_s)
        return self._woken in ready or not ready
