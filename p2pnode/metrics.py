"""Counters of one daemon. Every label comes from a closed set, so that no peer can make the daemon count new things.

Plain numbers in plain dicts, written by the tasks that own what is counted and read by `status`; all in one thread.
"""

import typing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

from gossip import wire
from gossip.events import Job

Direction: TypeAlias = Literal["in", "out"]

OTHER = "other"
MESSAGE_KINDS: tuple[str, ...] = tuple(wire.tag_of(message) for message in wire.MESSAGES)
JOB_KINDS: tuple[str, ...] = tuple(job.__name__.lower() for job in typing.get_args(Job))

# A frame is a map (one byte) whose first key is "_" (two bytes) and whose value is a short text (its length in the
# low five bits of one byte): the canonical form puts the tag where it can be read without decoding.
_TAG_LENGTH = 3
_TAG = 4
_KIND_OF_TAG = {kind.encode(): kind for kind in MESSAGE_KINDS}


class Turned(StrEnum):
    """Why a connection was closed before its handshake began."""

    STOPPING = "stopping"
    CROWDED = "crowded"  # too many connections, or too many that have not proved who they are
    ADDRESS = "address"  # too many connections from one address
    RATE = "rate"  # too many handshakes in a short time


class Failure(StrEnum):
    """Why a secure connection ended, or never came about."""

    SILENT = "silent"  # connected and said nothing
    SLOW = "slow"  # did not finish the handshake in time
    STALLED = "stalled"  # carries less than the floor, or nothing, in the middle of a frame
    CRYPTO = "crypto"  # bytes that are not this protocol, or do not prove what they claim
    PIECES = "pieces"  # pieces of frames that no sender of ours sends
    VERSION = "version"  # another version of the channel
    CLOSED = "closed"  # the other end closed
    DUPLICATE = "duplicate"  # there is another connection with this peer
    STRANGER = "stranger"  # not the peer that we dialled


@dataclass(slots=True)
class Counters:
    """Since the daemon started. Sizes are of frames, before encryption; seconds include waiting for the worker."""

    frames: dict[Direction, dict[str, int]] = field(default_factory=lambda: {"in": {}, "out": {}})
    frame_bytes: dict[Direction, dict[str, int]] = field(default_factory=lambda: {"in": {}, "out": {}})
    connections: dict[str, int] = field(default_factory=dict)  # dialled, accepted, dial_failed, closed
    turned_away: dict[Turned, int] = field(default_factory=dict)
    handshakes_failed: dict[Failure, int] = field(default_factory=dict)
    connections_lost: dict[Failure, int] = field(default_factory=dict)
    frames_dropped: int = 0  # pushed out of a full queue, or meant for somebody who is not connected
    jobs: dict[str, int] = field(default_factory=dict)
    job_seconds: dict[str, float] = field(default_factory=dict)

    def frame(self, direction: Direction, frame: bytes) -> None:
        kind = message_kind(frame)
        frames, sizes = self.frames[direction], self.frame_bytes[direction]
        frames[kind] = frames.get(kind, 0) + 1
        sizes[kind] = sizes.get(kind, 0) + len(frame)

    def job(self, kind: str, seconds: float) -> None:
        assert kind in JOB_KINDS
        self.jobs[kind] = self.jobs.get(kind, 0) + 1
        self.job_seconds[kind] = self.job_seconds.get(kind, 0.0) + seconds

    def as_dict(self) -> dict[str, Any]:
        """All counters, as what JSON knows."""
        return typing.cast(dict[str, Any], msgspec.to_builtins(self))


def increase(counter: dict[Any, int], label: str) -> None:
    counter[label] = counter.get(label, 0) + 1


def message_kind(frame: bytes) -> str:
    """The tag of a frame if it is one of ours, else `other`; nothing else is looked at."""
    if len(frame) <= _TAG:
        return OTHER
    return _KIND_OF_TAG.get(frame[_TAG : _TAG + (frame[_TAG_LENGTH] & 0x1F)], OTHER)
