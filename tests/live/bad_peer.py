"""A peer that breaks the rules, one at a time, with a real key over real TCP and real Noise.

It knows of a daemon what any stranger can learn: the address, and what the daemon says of itself in its hello and its
offers. So it serves against any implementation of the protocol. By hand, against a node that does not train:

    python tests/live/bad_peer.py 127.0.0.1:7400 [network name]

prints for each break of the rules what was answered. Blocking sockets: one thing at a time is the point.
"""

import hashlib
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from crypto.channel import HANDSHAKE_MESSAGE_BYTES, Established, Message, SecureChannel
from crypto.identity import Identity, Signature, verify
from crypto.signing import Purpose, network_id
from gossip import wire
from gossip.dht.ids import node_id
from gossip.dht.kinds import PeerRecord
from gossip.dht.records import sign_record
from gossip.learning.codec import payload_bytes
from gossip.net.lanes import CHANNEL_VERSION, LIMITS, PIECE_BYTES_MAX, Lane, Limit, Receiver, Sender

# For anything that an honest node answers at once, on a busy machine.
PATIENCE_S = 10.0
CLIP_NONE = 2**63 - 1
PROTOCOLS = {name: [1] for name in wire.SCHEMAS}
# Of our side: more than the protocol allows, so that we can break that rule as well.
OUR_LIMITS = {lane: Limit(frame_bytes=2**24, frames=100, waiting_bytes=2**26) for lane in Lane}

M = TypeVar("M")


class GoneError(Exception):
    """The daemon closed the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What has been learned about the node and its run."""

    key: bytes
    run: bytes
    reference: bytes = b""
    values: int = 0  # of the first shard


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: kind is `change`, `refused`, `bye`, `unsupported`, `closed` or `nothing`."""

    kind: str
    text: str = ""  # the reason, word for word
    frame: bytes = field(default=b"", repr=False)  # of a reply


class BadPeer:
    """One identity on one connection. A context manager.

    Args:
        address: host:port of the daemon.
        network: Name of the network we claim to be in.
        version: Of the protocol we claim to speak.
        smaller_than: Draw an identity whose node id is below this one, so that the choice of the connection is ours.
    """

    def __init__(
        self,
        address: str,
        *,
        network: str = "main",
        version: int = CHANNEL_VERSION,
        smaller_than: bytes = b"\xff" * 32,
    ) -> None:
        self.network = network_id(network)
        self.identity = Identity.generate(os.urandom)
        while node_id(self.identity.public_key) >= smaller_than:
            self.identity = Identity.generate(os.urandom)
        self.node = node_id(self.identity.public_key)
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        local = self.socket.getsockname()
        self.address = f"{local[0]}:{local[1]}"
        self.channel = SecureChannel(
            identity=self.identity,
            network=self.network,
            version=version,
            initiator=True,
            entropy=os.urandom,
        )
        self.frames: list[bytes] = []
        self._out, self._in = Sender(OUR_LIMITS), Receiver()
        self.target: Target | None = None
        self._seq = 1

    def __enter__(self) -> "BadPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # --- an honest beginning -------------------------------------------------------------------------

    def prove(self) -> bytes:
        """The handshake; returns the daemon's public key."""
        while True:
            self._flush()
            for event in self.channel.receive_data(self._read()):
                if isinstance(event, Established):
                    self._flush()
                    return event.key
                self._take(event.data)

    def meet(self, *, shards: tuple[int, ...] = ()) -> Target:
        """Handshake, the word on the connection, hello, and runs. With `shards`, the daemon will want to exchange."""
        key = self.prove()
        if self.node < node_id(key):  # type: ignore[arg-type]
            self.send(b"\x01accepted")
        else:
            assert self._frame() == b"\x01accepted"
        self.receive(wire.Hello)
        self.send(self.hello())
        (share,) = self.receive(wire.Holds).runs
        self.target = Target(key=key, run=share.run)
        self.send(wire.Holds([wire.Share(share.run, list(shards))]))
        return self.target

    def hello(self, **changes: Any) -> bytes:
        fields = {"agent": "bad_peer", "extra": {}, "protocols": PROTOCOLS, "record": self.record()}
        return wire.encode(wire.Hello(**{**fields, **changes}))

    def record(self) -> bytes:
        record = PeerRecord((), self.identity.public_key, bytes(32), self.seq(), 60)
        return sign_record(self.identity, self.network, record)

    def learn(self) -> tuple[Target, wire.OfferMessage]:
        """Wait for an offer of the daemon, which tells what the hello did not."""
        message = self.receive(wire.OfferMessage)
        header = wire.decode_offer_header(message.header)
        assert self.target is not None
        # Of f32 and int8 the size tells the number of values.
        values = next(n for n in range(2**22) if payload_bytes(header.codec, n) == len(message.payload))
        self.target = replace(self.target, reference=header.reference, values=values)
        return self.target, message

    def seq(self) -> int:
        self._seq += 1
        return self._seq

    # --- signed parts, with whatever is wrong with them -------------------------------------------------

    def offer(
        self,
        target: Target,
        *,
        payload: bytes | None = None,
        codec: str = "f32",
        sign_as: Identity | None = None,
        **changes: Any,
    ) -> wire.OfferMessage:
        """A valid offer of the genesis itself, with `changes` made before it is signed."""
        if payload is None:
            payload = bytes(4 * target.values)
        fields = {
            "age": 7,
            "author": self.identity.public_key,
            "clip": CLIP_NONE,
            "codec": codec,
            "hash": hashlib.sha256(payload).digest(),
            "nonce": os.urandom(8),
            "reference": target.reference,
            "run": target.run,
            "seq": self.seq(),
            "shard": 0,
            "to": target.key,
        }
        header = wire.encode_header(wire.OfferHeader(**{**fields, **changes}))
        signature = (sign_as or self.identity).sign(Purpose.OFFER, self.network, header)
        return wire.OfferMessage(header, payload, signature)

    def reply(
        self,
        target: Target,
        offer: bytes,
        *,
        payload: bytes | None = None,
        sign_as: Identity | None = None,
        **changes: Any,
    ) -> wire.ReplyMessage:
        """A valid reply to the offer with this header: no change at all; then `changes`."""
        if payload is None:
            payload = bytes(4 * target.values)
        fields = {
            "age": 7,
            "author": self.identity.public_key,
            "codec": "f32",
            "detail": "",
            "hash": hashlib.sha256(payload).digest(),
            "offer": hashlib.sha256(offer).digest(),
            "reason": "",
            "run": target.run,
            "seq": self.seq(),
            "shard": 0,
            "to": target.key,
            "verdict": "change",
        }
        header = wire.encode_header(wire.ReplyHeader(**{**fields, **changes}))
        signature = (sign_as or self.identity).sign(Purpose.REPLY, self.network, header)
        return wire.ReplyMessage(header, payload, signature)

    # --- the wire --------------------------------------------------------------------------------------

    def send(self, message: wire.AnyMessage | bytes) -> None:
        frame = message if isinstance(message, bytes) else wire.encode(message)
        large = len(frame) > LIMITS[Lane.CONTROL].frame_bytes
        self._out.put(frame, Lane.BULK if large else Lane.CONTROL)
        while (piece := self._out.next(PIECE_BYTES_MAX)) is not None:
            self.piece(piece.encode())

    def piece(self, data: bytes) -> None:
        """The plaintext of one Noise message."""
        try:
            self.socket.sendall(self.channel.seal(data))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GoneError from error

    def raw(self, data: bytes) -> None:
        """Bytes on the socket, past the encryption."""
        self.socket.sendall(data)

    def receive(self, kind: type[M]) -> M:
        """The next message of this kind. Requests meanwhile are answered as by a node that knows nobody."""
        while True:
            message: Any = wire.decode(self._frame())
            if isinstance(message, kind):
                return message
            self._serve(message)

    def verdict(self, offer: wire.OfferMessage | None = None) -> Answer:
        """What the daemon says to what was sent before. `nothing`: it answered a later ping and no more.

        A reply must be signed by the daemon, addressed to us, and name `offer`.
        """
        try:
            self.send(wire.Ping(2**62))
            while True:
                frame = self._frame()
                message = wire.decode(frame)
                if isinstance(message, wire.ReplyMessage):
                    return self._judged(message, offer, frame)
                if isinstance(message, wire.Bye):
                    return Answer("bye", message.reason)
                if isinstance(message, wire.Unsupported):
                    return Answer("unsupported", message.tag)
                if message == wire.Pong(2**62):
                    # A refusal that needs a job comes after the pong; a second question is behind it.
                    if offer is None:
                        return Answer("nothing")
                    continue
                self._serve(message)
        except GoneError:
            return Answer("closed")

    def ended(self) -> bool:
        """Wait until the daemon closes; False if it does not."""
        try:
            while True:
                self._read()
        except GoneError:
            return True
        except TimeoutError:
            return False

    def _judged(self, message: wire.ReplyMessage, offer: wire.OfferMessage | None, frame: bytes) -> Answer:
        assert self.target is not None
        verify(self.target.key, Purpose.REPLY, self.network, message.header, Signature(message.signature))  # type: ignore[arg-type]
        header = wire.decode_reply_header(message.header)
        assert header.to == self.identity.public_key
        assert header.author == self.target.key
        assert offer is None or header.offer == hashlib.sha256(offer.header).digest()
        return Answer(header.verdict, header.reason, frame)

    def _serve(self, message: Any) -> None:
        match message:
            case wire.FindNode(n, _):
                self.send(wire.Nodes(n, []))
            case wire.GetRecords(_, n):
                self.send(wire.Records(n, [], []))
            case wire.PutRecord(n, _):
                self.send(wire.Stored(n, ""))
            case wire.Ping(n):
                self.send(wire.Pong(n))
            case wire.GetManifest(n, _):
                self.send(wire.ManifestMessage(b"", n))
            case _:
                pass

    def _frame(self) -> bytes:
        while not self.frames:
            for event in self.channel.receive_data(self._read()):
                if isinstance(event, Message):
                    self._take(event.data)
        return self.frames.pop(0)

    def _take(self, piece: bytes) -> None:
        frame = self._in.receive(piece)
        if frame is not None:
            self.frames.append(frame)

    def _flush(self) -> None:
        try:
            self.socket.sendall(self.channel.data_to_send())
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GoneError from error

    def _read(self) -> bytes:
        try:
            data = self.socket.recv(2**16)
        except ConnectionResetError as error:
            raise GoneError from error
        if not data:
            raise GoneError
        return data


# --- the rules, and how each is broken ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Break:
    """One broken rule among peers who have met.

    Args:
        does: Sends it; returns the offer it was, if any.
        reason: What the counter must say.
        answer: What the daemon must answer: `refused` (signed), `bye`, `unsupported`, or `nothing`.
        also: Other counters that move, by the preparations.
    """

    does: Callable[[BadPeer, Target], wire.OfferMessage | None]
    reason: str
    answer: str = "refused"
    also: tuple[str, ...] = ()


def _offering(
    change: Callable[[BadPeer, Target], wire.OfferMessage], reason: str, also: tuple[str, ...] = ()
) -> Break:
    def does(peer: BadPeer, target: Target) -> wire.OfferMessage:
        message = change(peer, target)
        peer.send(message)
        return message

    return Break(does, reason, also=also)


def _framing(change: Callable[[BadPeer, Target], bytes], reason: str, answer: str = "bye") -> Break:
    def does(peer: BadPeer, target: Target) -> None:
        peer.send(change(peer, target))

    return Break(does, reason, answer)


def _of(target: Target, value: float) -> bytes:
    vector = np.zeros(target.values, np.float32)
    vector[target.values // 2] = value
    return vector.astype("<f4").tobytes()


def _refused_before(peer: BadPeer, target: Target) -> wire.OfferMessage:
    """A good offer under a number that a refused one has used up."""
    spent = peer.offer(target, shard=99)
    peer.send(spent)
    assert peer.verdict(spent).text == "unknown_shard"
    return peer.offer(target, seq=wire.decode_offer_header(spent.header).seq)


def _of_another(peer: BadPeer, target: Target) -> wire.OfferMessage:
    """A genuine offer, signed by whom it names, that somebody else recorded and sends."""
    other = Identity.generate(os.urandom)
    return peer.offer(target, author=other.public_key, sign_as=other)


def _swapped(peer: BadPeer, target: Target) -> wire.OfferMessage:
    return msgspec.structs.replace(peer.offer(target), payload=_of(target, 1.0))


BREAKS: dict[str, Break] = {
    "forged signature": _offering(
        lambda p, t: msgspec.structs.replace(p.offer(t), signature=bytes(64)), "bad_signature"
    ),
    "signed by another key": _offering(
        lambda p, t: p.offer(t, sign_as=Identity.generate(os.urandom)), "bad_signature"
    ),
    "signed as a reply": _offering(
        lambda p, t: msgspec.structs.replace(
            (o := p.offer(t)), signature=p.identity.sign(Purpose.REPLY, p.network, o.header)
        ),
        "bad_signature",
    ),
    "signed for another network": _offering(
        lambda p, t: msgspec.structs.replace(
            (o := p.offer(t)), signature=p.identity.sign(Purpose.OFFER, network_id("other"), o.header)
        ),
        "bad_signature",
    ),
    "number used before": _offering(_refused_before, "replayed", ("unknown_shard",)),
    "somebody else's offer": _offering(_of_another, "misaddressed"),
    "addressed to somebody else": _offering(lambda p, t: p.offer(t, to=bytes(32)), "misaddressed"),
    "another run": _offering(lambda p, t: p.offer(t, run=bytes(32)), "other_run"),
    "unknown reference": _offering(lambda p, t: p.offer(t, reference=bytes(32)), "unknown_reference"),
    "unknown shard": _offering(lambda p, t: p.offer(t, shard=1), "unknown_shard"),
    "unknown codec": _offering(lambda p, t: p.offer(t, codec="zip"), "unknown_codec"),
    "a value too few": _offering(lambda p, t: p.offer(t, payload=bytes(4 * t.values - 4)), "wrong_length"),
    "a byte too many": _offering(lambda p, t: p.offer(t, payload=bytes(4 * t.values + 1)), "wrong_length"),
    "no payload": _offering(lambda p, t: p.offer(t, payload=b""), "wrong_length"),
    "the length of another codec": _offering(lambda p, t: p.offer(t, codec="int8"), "wrong_length"),
    "payload swapped after signing": _offering(_swapped, "wrong_hash"),
    "NaN": _offering(lambda p, t: p.offer(t, payload=_of(t, float("nan"))), "not_finite"),
    "infinity": _offering(lambda p, t: p.offer(t, payload=_of(t, float("inf"))), "not_finite"),
    "NaN in a scale": _offering(
        lambda p, t: p.offer(t, codec="int8", payload=b"\xff" * payload_bytes("int8", t.values)),
        "not_finite",
    ),
    "model replaced": _offering(lambda p, t: p.offer(t, payload=_of(t, 1e30)), "too_large_norm"),
    "too large a header": Break(
        lambda p, t: p.send(wire.OfferMessage(bytes(1025), b"", bytes(64))), "malformed", "bye"
    ),
    "random bytes in a frame": _framing(lambda p, t: b"\xc1" + os.urandom(300), "malformed"),
    "an empty frame": _framing(lambda p, t: b"", "malformed"),
    "a frame cut short": _framing(lambda p, t: wire.encode(p.offer(t))[:-1], "malformed"),
    "a byte after the message": _framing(lambda p, t: wire.encode(p.offer(t)) + b"\0", "malformed"),
    "keys out of order": _framing(lambda p, t: b"\x82\xa1n\x01\xa1_\xa4ping", "malformed"),
    "a number not in its shortest form": _framing(
        lambda p, t: b"\x82\xa1_\xa4ping\xa1n\xcc\x01", "malformed"
    ),
    "an unknown message": _framing(lambda p, t: b"\x81\xa1_\xa4exec", "unsupported", "unsupported"),
    "a nest of ten thousand arrays": _framing(lambda p, t: b"\x91" * 10_000, "oversized"),
    "an array of four thousand million": _framing(lambda p, t: b"\xdd\xff\xff\xff\xff", "oversized"),
    "a payload over the limit": _framing(
        lambda p, t: msgspec.msgpack.encode(
            wire.OfferMessage(bytes(100), bytes(wire.PAYLOAD_BYTES_MAX + 1), bytes(64))
        ),
        "oversized",
    ),
    "a reply nobody asked for": _framing(
        lambda p, t: wire.encode(p.reply(t, b"no offer", payload=_of(t, 1.0))), "unexpected", "nothing"
    ),
    "an answer nobody asked for": _framing(
        lambda p, t: wire.encode(wire.Nodes(12345, [])), "unexpected", "nothing"
    ),
    "a hello with another's record": _framing(
        lambda p, t: p.hello(
            record=sign_record(
                (other := Identity.generate(os.urandom)),
                p.network,
                PeerRecord(addresses=(), key=other.public_key, run=t.run, seq=1, ttl_s=60),
            )
        ),
        "bad_record",
        "nothing",
    ),
    "shards of another run only": _framing(
        lambda p, t: wire.encode(wire.Holds([wire.Share(bytes(32), [0])])), "other_run", "nothing"
    ),
}

# Replies to an offer that the daemon really made to us. It answers none of them; it waits for the true one.
BAD_REPLIES: dict[str, tuple[Callable[[BadPeer, Target, bytes], wire.ReplyMessage], str]] = {
    "forged signature": (
        lambda p, t, o: msgspec.structs.replace(p.reply(t, o), signature=bytes(64)),
        "bad_signature",
    ),
    "signed by another key": (
        lambda p, t, o: p.reply(t, o, sign_as=Identity.generate(os.urandom)),
        "bad_signature",
    ),
    "addressed to somebody else": (lambda p, t, o: p.reply(t, o, to=bytes(32)), "misaddressed"),
    "to another offer": (lambda p, t, o: p.reply(t, b"another"), "unexpected"),
    "a state that was not asked for": (lambda p, t, o: p.reply(t, o, verdict="state"), "unexpected"),
    "unknown verdict": (lambda p, t, o: p.reply(t, o, verdict="obey"), "unexpected"),
    "a value too few": (
        lambda p, t, o: p.reply(t, o, payload=bytes(4 * t.values - 4)),
        "wrong_length",
    ),
    "payload swapped after signing": (
        lambda p, t, o: msgspec.structs.replace(p.reply(t, o), payload=_of(t, 1.0)),
        "wrong_hash",
    ),
    "NaN": (lambda p, t, o: p.reply(t, o, payload=_of(t, float("nan"))), "not_finite"),
    "a change beyond every limit": (lambda p, t, o: p.reply(t, o, payload=_of(t, 1e30)), "too_large_norm"),
}


# --- strangers: bytes that never become a peer ---------------------------------------------------------------


def stranger(address: str, data: bytes) -> tuple[str, bool]:
    """Connect, say `data`, wait for the end. Returns our address, and whether the daemon closed."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as link:
        local = link.getsockname()
        try:
            link.sendall(data)
            while link.recv(2**16):
                pass
            closed = True
        except ConnectionResetError:
            closed = True
        except TimeoutError:
            closed = False
    return f"{local[0]}:{local[1]}", closed


def first_message(network: str = "main") -> bytes:
    """An honest first message of a handshake, with its length."""
    channel = SecureChannel(
        identity=Identity.generate(os.urandom),
        network=network_id(network),
        version=CHANNEL_VERSION,
        initiator=True,
        entropy=os.urandom,
    )
    return channel.data_to_send()


def third_message_of_junk() -> bytes:
    size = HANDSHAKE_MESSAGE_BYTES[2]
    return size.to_bytes(2, "big") + os.urandom(size)


JUNK: dict[str, Callable[[], bytes]] = {
    "random bytes": lambda: b"\xff" + os.urandom(4095),
    "an HTTP request": lambda: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS hello": lambda: bytes.fromhex("160301020001000100fc0303") + os.urandom(500),
    "a first message of zeros": lambda: HANDSHAKE_MESSAGE_BYTES[0].to_bytes(2, "big") + bytes(288),
    "half a handshake, then junk": lambda: first_message() + third_message_of_junk(),
    "a handshake of another network": lambda: first_message("other") + third_message_of_junk(),
}


def main(address: str, network: str = "main") -> int:
    """Break every rule once; print what came back. Returns how many answers were not the expected ones."""
    with BadPeer(address, network=network) as peer:
        peer.meet(shards=(0,))
        target, _ = peer.learn()
    wrong = 0
    for name, rule in BREAKS.items():
        with BadPeer(address, network=network) as peer:
            peer.meet()
            answer = peer.verdict(rule.does(peer, target))
        good = answer.kind == rule.answer and answer.text.partition(":")[0] in (rule.reason, "")
        wrong += not good
        print(f"{'  ' if good else '! '}{name}: {answer.kind} {answer.text}")
    for name, data in JUNK.items():
        closed = stranger(address, data())[1]
        wrong += not closed
        print(f"{'  ' if closed else '! '}{name}: {'closed' if closed else 'not closed'}")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:3]), 100))
