"""Pieces of two lanes: what interleaves, what arrives, and everything that must not."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crypto.noise import PLAINTEXT_BYTES_MAX
from gossip.errors import Reason, RemoteError
from gossip.net.lanes import (
    CONTROL_RUN,
    LIMITS,
    PIECE_BYTES_MAX,
    PIECE_BYTES_MIN,
    Lane,
    Limit,
    Receiver,
    Sender,
    Transfer,
)

CONTROL, BULK = Lane.CONTROL, Lane.BULK
LAST, ABORT = 1, 2
SMALL = {lane: Limit(frame_bytes=5000, frames=4, waiting_bytes=9000) for lane in Lane}


def piece(code: int, flags: int, number: int, content: bytes = b"", *, length: int | None = None) -> bytes:
    """A piece, written by hand; with `length` the first of a frame."""
    head = bytes((code, flags)) + number.to_bytes(4, "big")
    return head + (b"" if length is None else length.to_bytes(4, "big")) + content


def drained(sender: Sender, size: int = PIECE_BYTES_MAX) -> list[bytes]:
    pieces = []
    while (cut := sender.next(size)) is not None:
        data = cut.encode()
        assert len(data) == cut.size <= size
        pieces.append(data)
    return pieces


def received(receiver: Receiver, pieces: list[bytes]) -> list[bytes]:
    return [frame for data in pieces if (frame := receiver.receive(data)) is not None]


def refused(data: bytes, *before: bytes) -> Reason:
    receiver = Receiver(SMALL)
    for other in before:
        receiver.receive(other)
    with pytest.raises(RemoteError) as caught:
        receiver.receive(data)
    return caught.value.reason


# --- what passes ----------------------------------------------------------------------------------------


def test_a_piece_is_at_most_one_noise_message() -> None:
    assert PIECE_BYTES_MAX == PLAINTEXT_BYTES_MAX


def test_golden_pieces() -> None:
    """Changing any of these bytes is a protocol change."""
    sender = Sender()
    sender.put(b"ping", CONTROL)
    sender.put(bytes(range(250)) * 8, BULK, ticket=7)
    sender.put(b"", BULK)
    assert drained(sender, PIECE_BYTES_MIN) == [
        b"\x00\x01\x00\x00\x00\x00" + b"\x00\x00\x00\x04" + b"ping",
        b"\x01\x00\x00\x00\x00\x00" + b"\x00\x00\x07\xd0" + (bytes(range(250)) * 8)[:1014],
        b"\x01\x01\x00\x00\x00\x00" + (bytes(range(250)) * 8)[1014:],
        b"\x01\x01\x00\x00\x00\x01" + b"\x00\x00\x00\x00",
    ]


def test_given_up_in_the_middle_a_frame_ends_with_a_piece_that_says_so() -> None:
    sender, receiver = Sender(), Receiver()
    sender.put(bytes(3000), BULK, ticket=1)
    sender.put(b"next", BULK, ticket=2)
    first = sender.next(PIECE_BYTES_MIN)
    assert first is not None
    assert receiver.receive(first.encode()) is None
    assert sender.give_up(1)
    assert not sender.give_up(1)
    rest = drained(sender)
    assert rest[0] == b"\x01\x02\x00\x00\x00\x00"
    assert received(receiver, rest) == [b"next"]


def test_given_up_before_it_began_a_frame_leaves_no_trace() -> None:
    sender = Sender()
    sender.put(b"one", BULK, ticket=1)
    sender.put(b"two", BULK, ticket=2)
    assert sender.give_up(1)
    assert sender.tickets() == [2]
    assert drained(sender) == [piece(1, LAST, 0, b"two", length=3)]
    assert not sender.give_up(2), "it has left"


def test_control_overtakes_bulk_between_two_pieces() -> None:
    sender, receiver = Sender(), Receiver()
    sender.put(bytes(100_000), BULK)
    order = []
    for number in range(3):
        cut = sender.next(10_000)
        assert cut is not None
        order.append(cut.lane)
        receiver.receive(cut.encode())
        sender.put(b"%d" % number, CONTROL)
        cut = sender.next(10_000)
        assert cut is not None
        order.append(cut.lane)
        assert receiver.receive(cut.encode()) == b"%d" % number
    assert order == [BULK, CONTROL] * 3
    assert received(receiver, drained(sender)) == [bytes(100_000)]


def test_control_without_end_does_not_starve_bulk() -> None:
    sender = Sender()
    sender.put(bytes(20_000), BULK)
    lanes = []
    for _ in range(3 * (CONTROL_RUN + 1)):
        sender.put(b"more", CONTROL)
        cut = sender.next(PIECE_BYTES_MIN)
        assert cut is not None
        lanes.append(cut.lane)
    assert lanes == ([CONTROL] * CONTROL_RUN + [BULK]) * 3


def test_control_that_went_alone_owes_bulk_nothing() -> None:
    sender = Sender()
    for _ in range(2 * CONTROL_RUN):
        sender.put(b"alone", CONTROL)
        sender.next(PIECE_BYTES_MIN)
    sender.put(bytes(20_000), BULK)
    sender.put(b"first", CONTROL)
    cut = sender.next(PIECE_BYTES_MIN)
    assert cut is not None
    assert cut.lane is CONTROL


@pytest.mark.parametrize("lane", list(Lane))
def test_a_full_lane_takes_nothing_more_and_leaves_the_other_one_alone(lane: Lane) -> None:
    other = CONTROL if lane is BULK else BULK
    sender = Sender(SMALL)
    assert [sender.put(b"x", lane) for _ in range(5)] == [True] * 4 + [False]
    sender = Sender(SMALL)
    assert [sender.put(bytes(size), lane) for size in (5000, 4000, 1)] == [True, True, False]
    assert sender.put(bytes(5000), other)
    drained(sender)
    assert sender.put(bytes(5000), lane), "there is room again"


def test_frames_pass_at_every_border_of_the_pieces() -> None:
    borders = [0, 1, 1013, 1014, 1015, 1014 + 1018, 1014 + 1018 + 1, 5000]
    for size in borders:
        sender, receiver = Sender(SMALL), Receiver(SMALL)
        frame = random.Random(size).randbytes(size)
        sender.put(frame, BULK)
        assert received(receiver, drained(sender, PIECE_BYTES_MIN)) == [frame]


def test_the_largest_frame_of_each_lane_passes() -> None:
    for lane in Lane:
        sender, receiver = Sender(), Receiver()
        frame = bytes(LIMITS[lane].frame_bytes)
        assert sender.put(frame, lane)
        assert received(receiver, drained(sender)) == [frame]


def test_both_ends_see_how_far_a_frame_is() -> None:
    sender, receiver = Sender(), Receiver()
    assert sender.under_way(BULK) is receiver.under_way(BULK) is None
    frame = bytes(range(250)) * 20
    sender.put(frame, BULK)
    assert sender.under_way(BULK) == Transfer(frame[:64], 5000, 0)
    cut = sender.next(2000)
    assert cut is not None
    receiver.receive(cut.encode())
    assert sender.under_way(BULK) == Transfer(frame[:64], 5000, 1990)
    assert receiver.under_way(BULK) == Transfer(frame[:64], 5000, 1990)
    received(receiver, drained(sender))
    assert sender.under_way(BULK) is receiver.under_way(BULK) is None


def test_numbers_begin_anew_after_the_last_one() -> None:
    sender, receiver = Sender(), Receiver()
    sender._bulk.number = receiver._lanes[1].number = 2**32 - 1
    for frame in (b"last", b"first"):
        sender.put(frame, BULK)
    pieces = drained(sender)
    assert [data[2:6] for data in pieces] == [b"\xff" * 4, bytes(4)]
    assert received(receiver, pieces) == [b"last", b"first"]


# --- what does not --------------------------------------------------------------------------------------

BEGUN = piece(1, 0, 0, bytes(2000), length=4000)


@pytest.mark.parametrize(
    ("data", "before"),
    [
        (b"", ()),
        (piece(0, LAST, 0)[:5], ()),
        (piece(2, LAST, 0, length=0), ()),  # no such lane
        (piece(0, 3, 0), ()),  # both flags
        (piece(0, 4, 0, length=0), ()),  # a flag nobody knows
        (piece(0, 129, 0, length=0), ()),
        (piece(0, LAST, 1, length=0), ()),  # not its turn
        (piece(1, LAST, 0, bytes(2000), length=2000), (BEGUN,)),  # begun anew: longer than announced
        (piece(1, LAST, 1, length=0), (BEGUN,)),  # the next one before the end
        (piece(0, LAST, 0, b"abc"), ()),  # no room for its length
        (piece(0, LAST, 0, b"abc", length=4), ()),  # last, and not all
        (piece(0, LAST, 0, b"abcde", length=4), ()),  # more than announced
        (piece(0, 0, 0, b"abcd", length=4), ()),  # all, and not last
        (piece(0, 0, 0, b"abc", length=4), ()),  # a small part
        (piece(0, 0, 0, bytes(1013), length=4000), ()),  # one byte less than a part has
        (piece(1, 0, 0, bytes(2000)), (BEGUN,)),  # all, and not last
        (piece(1, LAST, 0, bytes(1999)), (BEGUN,)),
        (piece(1, LAST, 0, bytes(2001)), (BEGUN,)),
        (piece(1, 0, 0, bytes(1017)), (BEGUN,)),
        (piece(1, 0, 0), (BEGUN,)),
        (piece(0, ABORT, 0), ()),  # given up before it began
        (piece(0, ABORT, 0), (BEGUN,)),  # ... in the other lane
        (piece(1, ABORT, 1), (BEGUN,)),
        (piece(1, ABORT, 0, b"x"), (BEGUN,)),  # bytes of what was given up
        (piece(1, ABORT, 0), (BEGUN, piece(1, ABORT, 0))),  # twice
    ],
)
def test_what_no_sender_sends_is_refused(data: bytes, before: tuple[bytes, ...]) -> None:
    assert refused(data, *before) is Reason.MALFORMED


def test_a_frame_too_long_for_its_lane_is_refused_at_its_first_piece() -> None:
    assert refused(piece(0, 0, 0, bytes(2000), length=5001)) is Reason.OVERSIZED
    assert refused(piece(1, 0, 0, bytes(2000), length=2**32 - 1)) is Reason.OVERSIZED


def test_every_prefix_of_a_piece_is_refused_or_waits_for_nothing() -> None:
    """A piece is whole, as the Noise message that carries it: cut short, it is another one, which is refused."""
    whole = piece(1, LAST, 0, bytes(2000), length=2000)
    for length in range(len(whole)):
        assert refused(whole[:length]) is Reason.MALFORMED
    assert refused(whole + b"\0") is Reason.MALFORMED


def test_every_flipped_bit_of_the_header_is_refused() -> None:
    whole = piece(1, 0, 0, bytes(1500), length=4000)
    for place in range(6):
        for bit in range(8):
            altered = bytearray(whole)
            altered[place] ^= 1 << bit
            if (place, bit) == (0, 0):  # of the other lane: a frame that begins there
                assert Receiver(SMALL).receive(bytes(altered)) is None
            else:
                assert refused(bytes(altered)) is Reason.MALFORMED


def test_our_own_mistakes_are_assertions() -> None:
    mistakes: list[Callable[[], object]] = [
        lambda: Sender(SMALL).put(bytes(5001), BULK),
        lambda: Sender().next(PIECE_BYTES_MIN - 1),
        lambda: Sender().next(PIECE_BYTES_MAX + 1),
    ]
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            mistake()


# --- anything at all ------------------------------------------------------------------------------------

headed = st.builds(
    piece,
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 2),
    st.binary(max_size=40) | st.builds(bytes, st.integers(900, 2500)),
    length=st.none() | st.integers(0, 6000),
)


@given(st.lists(st.binary(max_size=60) | headed, max_size=20))
def test_junk_is_taken_or_refused_and_never_kept_beyond_the_limits(pieces: list[bytes]) -> None:
    receiver = Receiver(SMALL)
    for data in pieces:
        try:
            receiver.receive(data)
        except RemoteError:
            break  # and nothing but this
        for lane in Lane:
            transfer = receiver.under_way(lane)
            assert transfer is None or transfer.done < transfer.size <= 5000


class TwoLanes(RuleBasedStateMachine):
    """Frames put, cut at any size, given up: what arrives is what was put, in the order of its lane."""

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = Sender(SMALL), Receiver(SMALL)
        self.ticket = 0
        self.expected: dict[Lane, list[tuple[int, bytes]]] = {lane: [] for lane in Lane}
        self.run = 0

    @rule(lane=st.sampled_from(Lane), size=st.integers(0, 5000), fill=st.integers(0, 255))
    def put(self, lane: Lane, size: int, fill: int) -> None:
        self.ticket += 1
        frame = bytes((fill,)) * size
        waiting = self.expected[lane]
        room = len(waiting) < 4 and sum(len(frame) for _, frame in waiting) + size <= 9000
        taken = self.sender.put(frame, lane, self.ticket)
        assert taken == (room or not waiting)
        if taken:
            waiting.append((self.ticket, frame))

    @precondition(lambda self: self.sender)
    @rule(size=st.integers(PIECE_BYTES_MIN, 3000))
    def send(self, size: int) -> None:
        both = all(self.expected.values())
        cut = self.sender.next(size)
        assert cut is not None
        assert cut.size == len(cut.encode()) <= size
        self.run = self.run + 1 if both and cut.lane is CONTROL else 0
        assert self.run <= CONTROL_RUN
        frame = self.receiver.receive(cut.encode())
        assert (frame is not None) == (cut.last and not cut.abort)
        if frame is not None:
            assert (cut.ticket, frame) == self.expected[cut.lane].pop(0)

    @precondition(lambda self: self.sender.tickets())
    @rule(choice=st.integers(0, 7))
    def give_up(self, choice: int) -> None:
        tickets = self.sender.tickets()
        ticket = tickets[choice % len(tickets)]
        assert self.sender.give_up(ticket)
        self.expected = {lane: [w for w in ws if w[0] != ticket] for lane, ws in self.expected.items()}

    @invariant()
    def what_waits_is_what_did_not_arrive(self) -> None:
        assert self.sender.tickets() == [ticket for lane in Lane for ticket, _ in self.expected[lane]]

    def teardown(self) -> None:
        while self.sender:
            self.send(PIECE_BYTES_MIN)
        assert not any(self.expected.values()), "all that was not given up has arrived"


TestTwoLanes = TwoLanes.TestCase
TestTwoLanes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
