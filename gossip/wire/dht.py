"""Messages of the DHT: requests with a number that their answers repeat."""

from typing import Annotated, TypeAlias

from msgspec import Meta

from gossip.wire.canonical import U63, Bytes32, Message, Record, Word

Records20: TypeAlias = Annotated[list[Record], Meta(max_length=20)]


class Ping(Message, frozen=True, tag="ping"):
    n: U63


class Pong(Message, frozen=True, tag="pong"):
    n: U63


class FindNode(Message, frozen=True, tag="find_node"):
    n: U63  # request number, chosen by the asker, repeated in the answer
    target: Bytes32


class Nodes(Message, frozen=True, tag="nodes"):
    n: U63
    records: Records20  # signed peer records, nearest first


class GetRecords(Message, frozen=True, tag="get_records"):
    key: Bytes32
    n: U63


class Records(Message, frozen=True, tag="records"):
    """Answer to GetRecords: what is stored under the key, and whom to ask next."""

    n: U63
    nodes: Records20
    records: Records20


class PutRecord(Message, frozen=True, tag="put_record"):
    n: U63
    record: Record


class Stored(Message, frozen=True, tag="stored"):
    n: U63
    reason: Word  # empty: stored


MESSAGES = (Ping, Pong, FindNode, Nodes, GetRecords, Records, PutRecord, Stored)
