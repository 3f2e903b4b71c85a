"""The daemon's end of the control socket (words and client: `control`).

Requests are few and come from our own user, but every line has a limit, every connection a clock, and a
client that does not read is dropped rather than waited for: a forgotten `p2pnode top` must not cost the
daemon anything. Nor may a request: whatever goes wrong while one is served becomes its answer (`_Boundary`).
"""

import os
import socket
import stat
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Protocol

import msgspec
import structlog
import trio

from p2pnode.address import AddressError, parse_address
from p2pnode.control import CONTROL_VERSION, REQUEST_BYTES_MAX, socket_address
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home
from p2pnode.tasks.faults import what_came

# People have a handful of terminals, a health check and a dashboard.
CLIENTS_MAX = 16
# A client that neither asks nor subscribes for so long is a leak.
IDLE_TIMEOUT_S = 60.0
# An answer that cannot be delivered in this time has no reader.
WRITE_TIMEOUT_S = 5.0
# Frames are drawn at 2 to 4 Hz; more often is noise.
SUBSCRIBE_INTERVAL_S_MIN = 0.25
SUBSCRIBE_INTERVAL_S_MAX = 60.0
# Requests name an address or two.
ADDRESSES_MAX = 64

log = structlog.get_logger(__name__)


class RequestError(Exception):
    """A request that cannot be served: becomes {"error": {"code", "message"}}."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# The numbers that JSON can carry back in an answer.
RequestNumber = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Request(msgspec.Struct, forbid_unknown_fields=True):
    id: RequestNumber
    method: str
    v: int = CONTROL_VERSION
    params: dict[str, Any] = {}


class Served(Protocol):
    """What the daemon lets commands see and do. Reading methods return JSON-like data and do not wait."""

    def status(self) -> dict[str, Any]: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def identity(self) -> dict[str, Any]: ...
    async def evaluate(self) -> dict[str, Any]: ...
    async def export(self, path: str) -> dict[str, Any]: ...
    async def save(self) -> dict[str, Any]: ...
    async def join(self, addresses: tuple[str, ...]) -> dict[str, Any]: ...
    def stop(self) -> None: ...


def listen(home: Home) -> socket.socket:
    """Bind the control socket of `home`: 0600 from the first moment on. Call with the lock of the home held.

    The umask belongs to the whole process, so this must not run while threads create files.

    Raises:
        UserError: HOME.
    """
    try:
        if stat.S_ISSOCK(home.socket.lstat().st_mode):
            home.socket.unlink()  # left by a daemon that was killed; we hold the lock, so nobody answers it
    except FileNotFoundError:
        pass
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with socket_address(home.socket) as address:
            bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            ExitCode.HOME, f"{home.socket}: cannot be made a socket ({error.strerror})."
        ) from error
    finally:
        os.umask(mask)
    bound.listen(CLIENTS_MAX)
    return bound


class ControlServer:
    """Serves one daemon on one listener, which it closes, until cancelled."""

    def __init__(self, served: Served, listener: socket.socket) -> None:
        self._served = served
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        self._clients = 0
        self._methods: dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "status": self._status,
            "peers": self._peers,
            "id": self._id,
            "eval": self._eval,
            "export": self._export,
            "save": self._save,
            "join": self._join,
            "stop": self._stop,
        }

    async def run(self) -> None:
        """Accept clients. Each has its own task; their faults end only themselves."""
        await trio.serve_listeners(self._client, [self._listener])

    async def _client(self, stream: trio.SocketStream) -> None:
        if not same_user(stream.socket) or self._clients >= CLIENTS_MAX:
            log.warning("control_refused", clients=self._clients, limit=CLIENTS_MAX)
            return
        self._clients += 1
        try:
            await self._serve(stream)
        except _GONE:
            pass
        finally:
            self._clients -= 1

    async def _serve(self, stream: trio.SocketStream) -> None:
        buffer = bytearray()
        while True:
            while b"\n" not in buffer:
                if len(buffer) > REQUEST_BYTES_MAX:
                    await _answer(stream, None, error=RequestError("oversized", _OVERSIZED))
                    return
                with trio.move_on_after(IDLE_TIMEOUT_S) as waiting:
                    data = await stream.receive_some(2**14)
                if waiting.cancelled_caught or not data:
                    return
                buffer += data
            line, _, rest = bytes(buffer).partition(b"\n")
            buffer = bytearray(rest)
            if len(line) > REQUEST_BYTES_MAX:
                await _answer(stream, None, error=RequestError("oversized", _OVERSIZED))
                return
            await self._request(stream, line)

    async def _request(self, stream: trio.SocketStream, line: bytes) -> None:
        """Serve one request. Whatever it asks and whatever that raises, it is answered."""
        boundary = _Boundary()
        with boundary:
            request = parsed(line)
            boundary.request = request
            if request.v != CONTROL_VERSION:
                raise RequestError("version", f"expected v = {CONTROL_VERSION}, got {request.v}")
            if request.method == "subscribe":
                await self._subscribe(stream, request)
            else:
                await _answer(stream, request.id, result=await self._result(request))
        if boundary.refusal is not None:
            number = boundary.request.id if boundary.request is not None else None
            await _answer(stream, number, error=boundary.refusal)

    async def _result(self, request: Request) -> Any:
        if request.method not in self._methods:
            known = ", ".join([*self._methods, "subscribe"])
            raise RequestError(
                "unknown_method", f"there is no method {request.method!r:.60}; there are {known}"
            )
        return await self._methods[request.method](request.params)

    # --- methods ---------------------------------------------------------------------------------

    async def _status(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        return self._served.status()

    async def _peers(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        return self._served.peers()

    async def _id(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        return self._served.identity()

    async def _eval(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        return await self._served.evaluate()

    async def _export(self, params: Mapping[str, Any]) -> Any:
        _only(params, "path")
        path = params.get("path")
        # Of `/`, and what else ends in a folder, no file can be made.
        if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path or not Path(path).name:
            raise RequestError("params", "expected path, an absolute file name")
        return await self._served.export(path)

    async def _save(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        return await self._served.save()

    async def _join(self, params: Mapping[str, Any]) -> Any:
        _only(params, "addresses")
        addresses = params.get("addresses")
        if (
            not isinstance(addresses, list)
            or not 1 <= len(addresses) <= ADDRESSES_MAX
            or not all(isinstance(address, str) for address in addresses)
        ):
            raise RequestError(
                "params", f"expected addresses, a list of 1 to {ADDRESSES_MAX} texts host:port"
            )
        try:
            for address in addresses:
                parse_address(address)
        except AddressError as error:
            raise RequestError("params", f"addresses: {error}") from error
        return await self._served.join(tuple(addresses))

    async def _stop(self, params: Mapping[str, Any]) -> Any:
        _only(params)
        self._served.stop()
        return {}

    async def _subscribe(self, stream: trio.SocketStream, request: Request) -> None:
        """Send `status` and `peers` again and again until the client goes away."""
        _only(request.params, "interval_s")
        interval = request.params.get("interval_s", 0.5)
        if isinstance(interval, bool) or not isinstance(interval, int | float):
            raise RequestError(
                "params", f"expected interval_s, a number of seconds, got {type(interval).__name__}"
            )
        # Compared before it becomes a float, which whole numbers of 400 digits cannot.
        interval = float(min(max(interval, SUBSCRIBE_INTERVAL_S_MIN), SUBSCRIBE_INTERVAL_S_MAX))
        await _answer(stream, request.id, result={"interval_s": interval})
        while True:
            started = trio.current_time()
            await _event(stream, request.id, "status", self._served.status())
            await _event(stream, request.id, "peers", self._served.peers())
            # Whatever the client sends now is not answered; its hanging up ends the wait at once.
            with trio.move_on_at(started + interval):
                while await stream.receive_some(2**14):
                    pass
                return


# The client went away in the middle of an answer, or does not read it.
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Boundary:
    """A context in which one request is served: what is raised in it becomes `refusal`, and the daemon goes on.

    Only a client that is gone, and what is no Exception (a cancellation), pass through.
    """

    def __init__(self) -> None:
        self.request: Request | None = None
        self.refusal: RequestError | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception) or isinstance(error, _GONE):
            return False
        if isinstance(error, RequestError):
            self.refusal = error
        elif isinstance(error, UserError):
            self.refusal = RequestError("failed", str(error))
        else:
            method = self.request.method if self.request is not None else None
            log.error("request_failed", method=method, exc_info=error)
            self.refusal = RequestError(
                "failed", f"a fault of the daemon ({what_came(error)}); its log has the details."
            )
        return True


_OVERSIZED = f"expected a request of at most {REQUEST_BYTES_MAX} bytes"


def parsed(line: bytes) -> Request:
    """What one line asks.

    Raises:
        RequestError: `malformed`.
    """
    try:
        return msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        text = f'expected {{"v", "id", "method", "params"}} on one line: {error}'
        raise RequestError("malformed", text) from error


def _only(params: Mapping[str, Any], *known: str) -> None:
    unknown = [name for name in params if name not in known]
    if unknown:
        raise RequestError(
            "params", f"there is no parameter {unknown[0]!r:.60}; there are: {', '.join(known) or 'none'}"
        )


def same_user(client: trio.socket.SocketType | socket.socket) -> bool:
    """Whether the process at the other end is ours (or root's). True where the system cannot say: modes
    protect."""
    if sys.platform != "linux":
        return True
    data = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", data)
    return user in (os.getuid(), 0)


async def _answer(
    stream: trio.SocketStream, number: int | None, *, result: Any = None, error: RequestError | None = None
) -> None:
    if error is not None:
        # Names of files may hold bytes that are no text.
        text = str(error).encode(errors="backslashreplace").decode()
        await _send(
            stream, {"v": CONTROL_VERSION, "id": number, "error": {"code": error.code, "message": text}}
        )
    else:
        await _send(stream, {"v": CONTROL_VERSION, "id": number, "result": result})


async def _event(stream: trio.SocketStream, number: int, name: str, data: Any) -> None:
    await _send(stream, {"v": CONTROL_VERSION, "id": number, "event": name, "data": data})


async def _send(stream: trio.SocketStream, message: Mapping[str, Any]) -> None:
    """One line; NaN and infinity become null, bytes hex.

    Raises:
        trio.BrokenResourceError: the client does not read.
    """
    line = msgspec.json.encode(_json(message)) + b"\n"
    with trio.move_on_after(WRITE_TIMEOUT_S) as writing:
        await stream.send_all(line)
    if writing.cancelled_caught:
        raise trio.BrokenResourceError("the client does not read")


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    return value
