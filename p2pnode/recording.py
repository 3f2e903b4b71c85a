"""What a daemon's core was given, in a file: `p2pnode run --record FILE`, fed to the same core by `p2psim replay FILE`.

The core is a function of its start and its events, so a fault that a user met once can be met again at a desk. The file
has all that the core was given (settings, what it had kept, dates, events, random bytes, signatures) and a digest of
each order that it gave. It has no private key: signatures are kept instead, and whoever replays asks for them in the
same order. It has no training data either; but messages are among the events, and messages carry weights
(docs/simulation.md, "Replaying a daemon", says what else).

Format, version 2, big-endian:

    magic "p2pnode-trace\\0" (14) | version (1)
    then records: length of the body (4) | CRC-32 of the body (4) | body, msgpack
    body: an array, its first element "begin" (once, first), "step" (one per event) or "end" (last, if any)

A record is written before the orders of its event are carried out, in one `write`: a program that is killed leaves
whole records and at most a torn one at the end. Limits are checked on the way in, too: files come from strangers.
"""

import errno
import hashlib
import os
import platform
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias

import msgspec
import structlog
from msgspec import Meta, Struct

from crypto.identity import PublicKey, Signature, Signer
from crypto.signing import Purpose
from gossip import events
from gossip.config import Config
from gossip.events import Compute, Done, Effect, Emit, Event
from gossip.learning.task import RunInfo
from gossip.node import Node
from gossip.peer import make_node
from gossip.wire import FRAME_BYTES_MAX
from p2pnode import __version__
from p2pnode.errors import ExitCode, UserError

MAGIC = b"p2pnode-trace\0"
VERSION = 2  # 1 was of p2pnode 0.1: other events and orders
_PREFIX = struct.Struct(">II")
# An event carries one frame; what a node has kept is a few megabytes at most (65,536 authors of 100 bytes).
RECORD_BYTES_MAX = FRAME_BYTES_MAX + 16 * 2**20
# When the file is that large, recording ends and the daemon goes on.
TRACE_MB = 256
# Digest of an order, for comparison only.
DIGEST_BYTES = 8
ORDERS = ("Send", "Recall", "Dial", "Drop", "Compute", "Persist", "Emit")

Signatures: TypeAlias = list[Annotated[bytes, Meta(min_length=64, max_length=64)]]

log = structlog.get_logger(__name__)


class RngState(Struct, frozen=True, array_like=True):
    """`random.Random.getstate()`."""

    version: int
    numbers: tuple[int, ...]
    gauss: float | None


class Begin(Struct, frozen=True, array_like=True, tag="begin"):
    """What the core was made with."""

    program: str
    python: str
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    config: Config
    run: RunInfo
    addresses: tuple[str, ...]
    rng: RngState
    store: dict[str, bytes]
    has_model: bool
    now: float
    entropy: list[bytes]  # drawn, in order
    signatures: Signatures  # made, in order


class Step(Struct, frozen=True, array_like=True, tag="step"):
    """One event, what the core drew and signed for it, and what it ordered."""

    now: float
    kind: str  # name of the event's type
    event: bytes  # msgpack; of a Done: ticket, name of the result's type, the result
    entropy: list[bytes]
    signatures: Signatures
    orders: bytes  # per effect: its number in ORDERS (1), its digest (DIGEST_BYTES)
    deadline: float  # when the core wanted to be woken from then on
    failed: bool = False  # it raised instead, and the daemon ended


class End(Struct, frozen=True, array_like=True, tag="end"):
    why: str


class Torn(Struct, frozen=True):
    """Not in the file: it ends within a record that begins at `offset`."""

    offset: int


Entry: TypeAlias = Begin | Step | End
_encode = msgspec.msgpack.Encoder().encode
_entries: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)
_EVENTS: dict[str, msgspec.msgpack.Decoder[Event]] = {
    name: msgspec.msgpack.Decoder(getattr(events, name))
    for name in (
        *("PeerUp", "PeerDown", "DialFailed", "Received", "Sent", "Unsent", "Progress"),
        *("Woken", "Join", "Leave"),
    )
}
_RESULTS: dict[str, type] = {
    name: getattr(events, name)
    for name in (
        "Trained",
        "Offered",
        "Responded",
        "Rescued",
        "Taken",
        "Finished",
        "Adopted",
        "JobRefused",
        "Saved",
    )
}


class TraceError(Exception):
    """The file is no trace, or a damaged one; a sentence."""


def digest(effect: Effect) -> bytes:
    """An order's number and digest. Types are part of it where two would look the same."""
    inner = effect.news if isinstance(effect, Emit) else effect.job if isinstance(effect, Compute) else effect
    hashed = hashlib.sha256(type(inner).__name__.encode() + _encode(effect)).digest()[:DIGEST_BYTES]
    return bytes([ORDERS.index(type(effect).__name__)]) + hashed


def event_of(step: Step) -> Event:
    """The event of a step. Raises TraceError where it is none."""
    try:
        if step.kind == "Done":
            ticket, kind, result = msgspec.msgpack.decode(step.event, type=tuple[int, str, msgspec.Raw])
            if kind not in _RESULTS:
                raise TraceError(f"expected a result of a job, got {ascii(kind)[:40]}")
            return Done(ticket, msgspec.msgpack.decode(result, type=_RESULTS[kind]))
        if step.kind not in _EVENTS:
            raise TraceError(f"expected an event, got {ascii(step.kind)[:40]}")
        return _EVENTS[step.kind].decode(step.event)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(f"an event {ascii(step.kind)[:40]} that cannot be read: {error}") from error


def _step(now: float, event: Event, effects: list[Effect] | None, deadline: float, drawn: "_Drawn") -> Step:
    if isinstance(event, Done):
        data = _encode((event.ticket, type(event.result).__name__, event.result))
    else:
        data = _encode(event)
    orders = b"".join(map(digest, effects or ()))
    failed = effects is None
    return Step(now, type(event).__name__, data, drawn.entropy, drawn.signatures, orders, deadline, failed)


# --- writing -------------------------------------------------------------------------------------------


class _Drawn:
    """What the core took from outside since the last record."""

    __slots__ = ("entropy", "signatures")

    def __init__(self) -> None:
        self.entropy: list[bytes] = []
        self.signatures: Signatures = []


class _Watched:
    """An identity whose signatures are kept."""

    __slots__ = ("_keep", "_signer", "public_key")

    def __init__(self, signer: Signer, keep: Callable[[bytes], None]) -> None:
        self.public_key: PublicKey = signer.public_key
        self._signer = signer
        self._keep = keep

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        signature = self._signer.sign(purpose, network, body)
        self._keep(signature)
        return signature


class Recorder:
    """Writes a trace.

    Args:
        path: Must not exist. Only its owner may read it.
        mb_max: MiB after which recording ends.

    Raises:
        UserError: USAGE; there is such a file, or it cannot be made.
    """

    def __init__(self, path: Path, *, mb_max: int = TRACE_MB) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise UserError(
                ExitCode.USAGE, f"--record: {path}: there is such a file; name another."
            ) from error
        except OSError as error:
            raise UserError(
                ExitCode.USAGE, f"--record: {path}: it cannot be made ({error.strerror}); name another."
            ) from error
        self._path = path
        self._left = mb_max * 2**20
        self._drawn = _Drawn()
        self._node: Node | None = None
        self._write(MAGIC + bytes([VERSION]))

    def node(
        self,
        identity: Signer,
        config: Config,
        run: RunInfo,
        *,
        addresses: tuple[str, ...],
        rng: random.Random,
        entropy: Callable[[int], bytes],
        store: Mapping[str, bytes],
        has_model: bool,
        now: float,
    ) -> Node:
        """A node that is recorded from its beginning; arguments as for `make_node`."""

        def draw(size: int) -> bytes:
            data = entropy(size)
            if self._fd >= 0:
                self._drawn.entropy.append(data)
            return data

        def signed(signature: bytes) -> None:
            if self._fd >= 0:
                self._drawn.signatures.append(signature)

        state = RngState(*rng.getstate())
        node = make_node(
            _Watched(identity, signed),
            config,
            run,
            addresses=addresses,
            rng=rng,
            entropy=draw,
            store=store,
            has_model=has_model,
            now=now,
        )
        begin = Begin(
            program=__version__,
            python=platform.python_version(),
            key=identity.public_key,
            config=config,
            run=run,
            addresses=addresses,
            rng=state,
            store=dict(store),
            has_model=has_model,
            now=now,
            entropy=self._drawn.entropy,
            signatures=self._drawn.signatures,
        )
        self._record(begin)
        self._node = node
        return node

    def step(self, now: float, event: Event, effects: list[Effect] | None) -> None:
        """Before the effects are carried out; None: the core raised."""
        if self._fd >= 0:
            assert self._node is not None, "a node comes before its events"
            self._record(_step(now, event, effects, self._node.deadline, self._drawn))

    def close(self, why: str = "the daemon stopped") -> None:
        """The last record. What comes after is not recorded."""
        if self._fd >= 0:
            self._left = RECORD_BYTES_MAX  # there is room for a last word
            self._record(End(why))
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _record(self, entry: Entry) -> None:
        self._drawn = _Drawn()
        body = _encode(entry)
        if len(body) > min(self._left, RECORD_BYTES_MAX):
            log.warning("recording_ended", file=str(self._path), reason="the file is as large as it may be")
            self.close("the file is as large as it may be")
            return
        self._write(_PREFIX.pack(len(body), zlib.crc32(body)) + body)

    def _write(self, data: bytes) -> None:
        """A disk that does not take it ends the recording, not the daemon."""
        self._left -= len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            log.warning(
                "recording_ended", file=str(self._path), reason=errno.errorcode.get(error.errno or 0, "")
            )
            os.close(self._fd)
            self._fd = -1


# --- reading -------------------------------------------------------------------------------------------


def read(file: BinaryIO) -> Iterator[Entry | Torn]:
    """The records of a trace: Begin, Steps, and End or Torn, or neither where it ends at a record's end.

    Raises:
        TraceError: it is no trace, of another version, or damaged before its end.
    """
    head = file.read(len(MAGIC) + 1)
    if head[: len(MAGIC)] != MAGIC:
        raise TraceError("expected a trace of p2pnode run --record, got another file")
    if head[len(MAGIC) :] != bytes([VERSION]):
        raise TraceError(
            f"expected version {VERSION} of the format, got {head[len(MAGIC) :].hex() or 'none'}"
        )
    offset = len(head)
    begun = False
    while prefix := file.read(_PREFIX.size):
        size, check = _PREFIX.unpack(prefix) if len(prefix) == _PREFIX.size else (0, 0)
        if size > RECORD_BYTES_MAX:
            raise TraceError(
                f"a record of {size} bytes at byte {offset}; at most {RECORD_BYTES_MAX} are allowed"
            )
        body = file.read(size)
        if len(prefix) < _PREFIX.size or len(body) < size:
            yield Torn(offset)
            return
        entry = _entry(body, check, offset)
        if isinstance(entry, Begin) == begun:
            raise TraceError(f"the record at byte {offset} is out of place")
        begun = True
        yield entry
        if isinstance(entry, End):
            return
        offset += _PREFIX.size + size
    if not begun:
        yield Torn(offset)


def _entry(body: bytes, check: int, offset: int) -> Entry:
    if zlib.crc32(body) != check:
        raise TraceError(f"the record at byte {offset} is damaged")
    try:
        return _entries.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TraceError(f"the record at byte {offset} cannot be read: {error}") from error
