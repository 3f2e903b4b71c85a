"""The checkers see what they are there for: each kind of violation, planted once, is caught; honest work is not."""

from hashlib import sha256

import numpy as np
import pytest

from crypto.identity import PublicKey
from gossip import wire
from gossip.dht.ids import NodeId
from gossip.events import Exchanged
from simulation.checkers import ExchangeChecker, ViolationError, consensus_distance, sum_drift

RUN = b"r" * 32
I_KEY, J_KEY, M_KEY = PublicKey(b"i" * 32), PublicKey(b"j" * 32), PublicKey(b"m" * 32)
NODE_I, NODE_J, NODE_M = NodeId(b"I" * 32), NodeId(b"J" * 32), NodeId(b"M" * 32)
REPLAY = "p2psim run test --seed 7"


def offer(*, seq: int = 1, age: int = 4, run: bytes = RUN, to: bytes = J_KEY, author: bytes = I_KEY) -> bytes:
    header = wire.encode_header(
        wire.OfferHeader(
            age=age,
            author=author,
            clip=0,
            codec="int8",
            hash=sha256(b"").digest(),
            nonce=b"n" * 8,
            reference=bytes(32),
            run=run,
            seq=seq,
            shard=0,
            to=to,
        )
    )
    return wire.encode(wire.OfferMessage(header=header, payload=b"", signature=sha256(header).digest() * 2))


def reply(to_offer: bytes, *, seq: int = 1, verdict: str = "change", author: bytes = J_KEY) -> bytes:
    asked = wire.decode(to_offer)
    assert isinstance(asked, wire.OfferMessage)
    header = wire.encode_header(
        wire.ReplyHeader(
            age=4,
            author=author,
            codec="int8",
            detail="",
            hash=sha256(b"").digest(),
            offer=sha256(asked.header).digest(),
            reason="",
            run=RUN,
            seq=seq,
            shard=0,
            to=I_KEY,
            verdict=verdict,
        )
    )
    return wire.encode(wire.ReplyMessage(header=header, payload=b"", signature=sha256(header).digest() * 2))


def applied(peer: NodeId, role: str) -> Exchanged:
    return Exchanged(peer, 0, role, 0.0, 0.0)


class Net:
    """A checker and the two honest nodes i and j that it watches."""

    def __init__(self) -> None:
        self.checker = ExchangeChecker(RUN, REPLAY)

    def i_to_j(self, frame: bytes) -> None:
        self.checker.sent(I_KEY, frame, 1.0)
        self.arrives_at_j(frame)

    def arrives_at_j(self, frame: bytes, *, source: NodeId = NODE_I, key: PublicKey = I_KEY) -> None:
        self.checker.delivered(source=source, source_key=key, target=NODE_J, target_key=J_KEY, frame=frame)

    def j_to_i(self, frame: bytes) -> None:
        self.checker.sent(J_KEY, frame, 2.0)
        self.checker.delivered(source=NODE_J, source_key=J_KEY, target=NODE_I, target_key=I_KEY, frame=frame)

    def j_applies(self, role: str = "responder", peer: NodeId = NODE_I) -> None:
        self.checker.told(NODE_J, applied(peer, role), 2.0)

    def i_applies(self, role: str = "initiator") -> None:
        self.checker.told(NODE_I, applied(NODE_J, role), 3.0)


@pytest.fixture
def net() -> Net:
    return Net()


def test_an_honest_exchange_passes(net: Net) -> None:
    asked = offer()
    net.i_to_j(asked)
    net.j_applies()
    net.j_to_i(reply(asked))
    net.i_applies()
    assert net.checker.checks == 4


def test_a_newcomer_adopts_from_either_side(net: Net) -> None:
    asked = offer(age=0)
    net.i_to_j(asked)
    net.checker.told(NODE_J, applied(NODE_I, "donor"), 2.0)
    net.j_to_i(reply(asked, verdict="state"))
    net.i_applies("adopter")
    net.i_to_j(offer(seq=2))
    net.j_applies("adopter")


def test_a_repeated_frame_is_not_a_number_used_twice(net: Net) -> None:
    net.i_to_j(offer())
    net.i_to_j(offer())
    assert net.checker.checks == 2


def test_a_number_signed_twice_is_caught(net: Net) -> None:
    net.i_to_j(offer(seq=5, age=4))
    with pytest.raises(ViolationError, match=f"two headers with sequence number 5; replay with: {REPLAY}"):
        net.i_to_j(offer(seq=5, age=8))


def test_offers_and_replies_share_their_numbers(net: Net) -> None:
    asked = offer()
    net.i_to_j(asked)
    net.j_to_i(reply(asked, seq=9))
    with pytest.raises(ViolationError, match="sequence number 9"):
        net.checker.sent(J_KEY, offer(seq=9, author=J_KEY, to=I_KEY), 3.0)


@pytest.mark.parametrize("again", ["nothing more arrives", "the frame arrives again"])
def test_an_offer_applied_twice_is_caught(net: Net, again: str) -> None:
    asked = offer()
    net.i_to_j(asked)
    net.j_applies()
    if again == "the frame arrives again":
        net.arrives_at_j(asked)
    with pytest.raises(ViolationError, match="as responder"):
        net.j_applies()


def test_a_reply_applied_twice_is_caught(net: Net) -> None:
    asked = offer()
    net.i_to_j(asked)
    answer = reply(asked)
    net.j_to_i(answer)
    net.i_applies()
    net.j_to_i(answer)
    with pytest.raises(ViolationError, match="as initiator"):
        net.i_applies()


def test_a_delta_of_another_run_is_caught_when_applied(net: Net) -> None:
    net.i_to_j(offer(run=b"x" * 32))
    with pytest.raises(ViolationError):
        net.j_applies()


def test_a_delta_for_somebody_else_is_caught_when_applied(net: Net) -> None:
    net.i_to_j(offer(to=M_KEY))
    with pytest.raises(ViolationError):
        net.j_applies()


def test_a_forgery_is_caught_when_applied(net: Net) -> None:
    net.checker.sent(M_KEY, offer(), 1.0)  # m says that i had signed this
    net.arrives_at_j(offer(), source=NODE_M, key=M_KEY)
    with pytest.raises(ViolationError):
        net.j_applies(peer=NODE_M)
    net.arrives_at_j(offer())  # and nobody sent this at all
    with pytest.raises(ViolationError):
        net.j_applies()


def test_a_refusal_is_no_reason_to_apply(net: Net) -> None:
    asked = offer()
    net.i_to_j(asked)
    net.j_to_i(reply(asked, verdict="refused"))
    with pytest.raises(ViolationError):
        net.i_applies()


def test_what_was_refused_may_not_be_applied_later(net: Net) -> None:
    net.i_to_j(offer())
    net.checker.settle()  # the frame had its consequences, and applying was not among them
    with pytest.raises(ViolationError):
        net.j_applies()


def test_consensus_distance_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal(50).astype(np.float32) for _ in range(7)]
    mean = sum(rows) / 7
    dumb = (sum(float(np.sum((row - mean) ** 2)) for row in rows) / 7) ** 0.5
    assert consensus_distance(rows) == pytest.approx(dumb, rel=1e-5)
    assert consensus_distance([rows[0]] * 5) == pytest.approx(0.0, abs=1e-12)


def test_drift_sees_one_half_of_an_exchange_and_not_a_whole_one() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal(50).astype(np.float32) for _ in range(8)]
    before = np.sum(np.asarray(rows, dtype=np.float64), axis=0)
    half = (rows[0] - rows[1]) / 2
    rows[1] = rows[1] + half
    assert sum_drift(before, rows) > 0.01
    rows[0] = rows[0] - half
    assert sum_drift(before, rows) < 1e-6
