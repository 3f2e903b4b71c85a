"""Whose fault is it: ours (LocalError) or a peer's (RemoteError).

RemoteError is raised where the fault is seen and handled in one place, `Node.handle`, which counts
the reason, tells the peer and decides whether to drop it. LocalError is a bug or a wrong argument: it crashes.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused: the closed vocabulary of counters, logs and replies to peers."""

    MALFORMED = "malformed"  # not canonical msgpack, or not the schema of any message
    OVERSIZED = "oversized"  # a size, count or depth beyond its limit
    BAD_SIGNATURE = "bad_signature"
    REPLAYED = "replayed"  # sequence number not above the high-water mark of its author
    MISADDRESSED = "misaddressed"  # signed for, or by, somebody else than this connection says
    OTHER_RUN = "other_run"  # another task, schema, genesis or set of rules
    UNKNOWN_SHARD = "unknown_shard"
    UNKNOWN_REFERENCE = "unknown_reference"
    UNKNOWN_CODEC = "unknown_codec"
    WRONG_LENGTH = "wrong_length"  # payload is not exactly as long as its shard and codec demand
    WRONG_HASH = "wrong_hash"  # payload does not hash to what the signed header says
    NOT_FINITE = "not_finite"  # NaN or infinity after decoding
    TOO_LARGE_NORM = "too_large_norm"
    TOO_DISTANT = "too_distant"  # further from our own model than the gate allows
    BUSY = "busy"  # this shard is in another exchange; not a fault
    NOT_READY = "not_ready"  # still joining; not a fault
    RATE_LIMITED = "rate_limited"
    UNSUPPORTED = "unsupported"  # a message of no protocol that both speak; not a fault
    UNEXPECTED = "unexpected"  # an answer to nothing we asked, or a message out of order
    BAD_RECORD = "bad_record"
    EQUIVOCATION = "equivocation"  # two different records under one sequence number
    EXPIRED = "expired"
    TIMEOUT = "timeout"


# Faults that say nothing bad about the peer: they are not counted against it.
HARMLESS = frozenset(
    {
        Reason.BUSY,
        Reason.NOT_READY,
        Reason.UNEXPECTED,
        Reason.UNSUPPORTED,
        Reason.OTHER_RUN,
        Reason.RATE_LIMITED,
        Reason.TIMEOUT,
        Reason.REPLAYED,  # a node restored from an old copy of its disk; it learns of it by our answer
    }
)


class LocalError(Exception):
    """Our own fault: a broken invariant or a wrong argument. Never caused by bytes from outside."""


class RemoteError(Exception):
    """A peer's fault.

    Args:
        reason: From the closed vocabulary; becomes a counter and an answer to the peer.
        detail: One sentence: what was expected, what came. Never contains unescaped peer text.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["RemoteError"], tuple[Reason, str]]:
        # So that it passes from one process to another; an exception remembers one argument only.
        return RemoteError, (self.reason, self.detail)
