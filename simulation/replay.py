"""`p2psim replay TRACE`: what a daemon's core was given (`p2pnode run --record`), given to the core at hand.

The same code gives the same orders. Other code may not: the first event at which it orders, draws or signs something
else is where the two part, and there the replay ends, because from then on the events answer other orders than ours.
Signatures come from the trace; each is verified against what is signed now, so that a signature for something else is
a difference, too. Whoever has no key can replay what he was given and nothing more.
"""

import random
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from crypto.errors import CryptoError
from crypto.identity import PublicKey, Signature, verify
from crypto.signing import Purpose
from gossip.errors import LocalError, RemoteError
from gossip.events import (
    Compute,
    Dial,
    DialFailed,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Exchanged,
    Join,
    Learned,
    Looked,
    PeerDown,
    PeerUp,
    Persist,
    Recall,
    Received,
    Send,
)
from gossip.node import Node
from gossip.peer import make_node
from p2pnode.printable import printable
from p2pnode.recording import DIGEST_BYTES, ORDERS, Begin, End, Step, Torn, TraceError, digest, event_of, read

# What a core may raise that meets what it does not expect: a difference, as any other.
_FAULTS = (
    LocalError,
    RemoteError,
    AssertionError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
)
# What happens many times a second, left out of the timeline.
_FREQUENT = (Exchanged, Learned, Looked)


class Replayed(Struct, frozen=True):
    """What a replay came to; `--json` prints it."""

    program: str  # version of the daemon that wrote the trace
    python: str
    id: str  # of the node, 64 hexadecimal digits
    events: int  # replayed alike
    duration_s: float
    difference: str  # empty: none
    end: str  # why the trace ends; empty: there is a difference, and nothing was read after it


class _DiffersError(Exception):
    """The core at hand does something else; a sentence."""


class _Recorded:
    """What the core draws and signs, from the trace: an identity and a source of entropy without secrets."""

    def __init__(self, begin: Begin) -> None:
        self.public_key = PublicKey(begin.key)
        self._entropy = list(begin.entropy)
        self._signatures = list(begin.signatures)

    def load(self, step: Step) -> None:
        self._entropy = list(step.entropy)
        self._signatures = list(step.signatures)

    def draw(self, size: int) -> bytes:
        if not self._entropy or len(self._entropy[0]) != size:
            raise _DiffersError(f"now {size} random bytes are drawn, which were not then")
        return self._entropy.pop(0)

    def sign(self, purpose: Purpose, network: bytes, body: bytes) -> Signature:
        if not self._signatures:
            raise _DiffersError(f"now something is signed as {purpose.name.lower()}, and nothing was then")
        signature = Signature(self._signatures.pop(0))
        try:
            verify(self.public_key, purpose, network, body, signature)
        except CryptoError:
            raise _DiffersError(
                f"what is signed as {purpose.name.lower()} is not what was signed then"
            ) from None
        return signature

    def finish(self) -> None:
        if self._entropy or self._signatures:
            raise _DiffersError(
                f"then {len(self._entropy)} more draws and {len(self._signatures)} more signatures were made"
            )


def replay(path: Path, *, told: Callable[[str], None], every_event: bool = False) -> Replayed:
    """Feed a trace to the core.

    Args:
        path: Of the trace.
        told: Hears the timeline, line by line.
        every_event: Tell each event and what was ordered, instead of what matters to people.

    Raises:
        TraceError: it is no trace, or damaged before its end.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        entries = read(file)
        begin = next(entries)
        if not isinstance(begin, Begin):
            raise TraceError("the trace ends before it begins")
        recorded = _Recorded(begin)
        events, now, end = 0, begin.now, "it ends without a last word, as after a kill"
        difference = ""
        node: Node | None = None
        try:
            node = _node(begin, recorded)
            recorded.finish()
        except (_DiffersError, *_FAULTS) as error:
            difference = f"the core DIFFERS: it cannot be made as it was: {_said(error)}"
        told(
            f"{0.0:>12.6f}  {node.id.hex()[:16] if node else '?'} begins, {begin.program}, Python {begin.python}"
        )
        while node is not None and not difference:
            entry = next(entries, None)
            if isinstance(entry, End):
                end = f"it was closed: {printable(entry.why)}"
            elif isinstance(entry, Torn):
                end = f"its last record is torn, at byte {entry.offset}: as after a kill"
            if not isinstance(entry, Step):
                break
            event, now = event_of(entry), entry.now
            effects: list[Effect] = []
            try:
                effects = _carry(node, recorded, entry, event)
            except (_DiffersError, *_FAULTS) as error:
                if entry.failed and not isinstance(error, _DiffersError):
                    end = f"the core failed at its last event, then as now: {_said(error)}"
                    told(f"{now - begin.now:>12.6f}  {_event(event)}: {_said(error)}")
                    events += 1
                    break
                difference = (
                    f"event {events + 1} DIFFERS, {now - begin.now:.6f} s after the beginning "
                    f"({_event(event)}): {_said(error)}"
                )
                break
            events += 1
            for line in _lines(event, effects, every_event):
                told(f"{now - begin.now:>12.6f}  {line}")
    return Replayed(
        program=printable(begin.program),
        python=printable(begin.python),
        id=node.id.hex() if node is not None else "",
        events=events,
        duration_s=now - begin.now,
        difference=difference,
        end="" if difference else end,
    )


def _node(begin: Begin, recorded: _Recorded) -> Node:
    rng = random.Random()
    rng.setstate((begin.rng.version, begin.rng.numbers, begin.rng.gauss))
    return make_node(
        recorded,
        begin.config,
        begin.run,
        addresses=begin.addresses,
        rng=rng,
        entropy=recorded.draw,
        store=begin.store,
        has_model=begin.has_model,
        now=begin.now,
    )


def _carry(node: Node, recorded: _Recorded, step: Step, event: Event) -> list[Effect]:
    """The orders for one event. Raises _DiffersError with the first that is another."""
    recorded.load(step)
    effects = node.handle(event, step.now)
    if step.failed:
        raise _DiffersError("then the core failed, and now it does not")
    width = 1 + DIGEST_BYTES
    before = [step.orders[at : at + width] for at in range(0, len(step.orders), width)]
    for number, effect in enumerate(effects):
        if number == len(before):
            raise _DiffersError(f"order {number + 1} is new: {_order(effect)}")
        if digest(effect) != before[number]:
            raise _DiffersError(
                f"order {number + 1} was a {_kind(before[number])}, and is now {_order(effect)}"
            )
    if len(before) > len(effects):
        raise _DiffersError(f"order {len(effects) + 1} is missing: it was a {_kind(before[len(effects)])}")
    recorded.finish()
    if node.deadline != step.deadline:
        raise _DiffersError(
            f"then it wanted to be woken {step.deadline - step.now:.6f} s later, now {node.deadline - step.now:.6f} s"
        )
    return effects


# --- words -----------------------------------------------------------------------------------------------


def _lines(event: Event, effects: list[Effect], every_event: bool) -> list[str]:
    if every_event:
        ordered = ", ".join(_order(effect) for effect in effects) or "nothing"
        return [f"{_event(event)} -> {ordered}"]
    news = [effect.news for effect in effects if isinstance(effect, Emit)]
    return [_struct(one) for one in news if not isinstance(one, _FREQUENT)]


def _kind(order: bytes) -> str:
    return ORDERS[order[0]] if order[0] < len(ORDERS) else "order of an unknown kind"


def _event(event: Event) -> str:
    match event:
        case Received(peer, frame):
            return f"Received {_tag(frame)} of {len(frame)} bytes from {peer.hex()[:8]}"
        case PeerUp(peer) | PeerDown(peer):
            return f"{type(event).__name__} {peer.hex()[:8]}"
        case Done(ticket, result):
            return f"Done {ticket} {type(result).__name__}"
        case DialFailed(address) | Join((address, *_)):
            return f"{type(event).__name__} {printable(address, 60)}"
        case _:
            return type(event).__name__


def _order(effect: Effect) -> str:
    match effect:
        case Send(peer, frame):
            return f"Send {_tag(frame)} of {len(frame)} bytes to {peer.hex()[:8]}"
        case Recall(peer, ticket):
            return f"Recall {ticket} to {peer.hex()[:8]}"
        case Dial(address):
            return f"Dial {printable(address, 60)}"
        case Drop(peer, reason):
            return f"Drop {peer.hex()[:8]} ({printable(reason, 80)})"
        case Compute(ticket, job, _):
            return f"Compute {ticket} {type(job).__name__}"
        case Persist(entries):
            return "Persist " + " ".join(name[:13] for name, _ in entries)
        case Emit(news):
            return f"Emit {_struct(news)}"


def _struct(news: Struct) -> str:
    values = []
    for field in news.__struct_fields__:
        value = getattr(news, field)
        values.append(
            f"{field}={value.hex()[:8] if isinstance(value, bytes) else printable(str(value), 120)}"
        )
    return f"{type(news).__name__} " + " ".join(values)


def _tag(frame: bytes) -> str:
    """Of a message, from its first bytes."""
    if len(frame) < 5 or frame[1:3] != b"\xa1_":
        return "a frame"
    return printable(frame[4 : 4 + max(0, frame[3] - 0xA0)].decode("ascii", "replace"), 20)


def _said(error: BaseException) -> str:
    said = printable(str(error), 300)
    return said if isinstance(error, _DiffersError) else f"{type(error).__name__}: {said}"
