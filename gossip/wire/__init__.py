"""What travels between peers: one canonical encoding, and one schema file for each protocol.

A node decodes what its own protocols know (`Codec`). `decode` and `AnyMessage` here are of all protocols of this
house, for tools and tests.
"""

from typing import TypeAlias

from gossip.wire import connection, dht, exchange, run
from gossip.wire.canonical import (
    ARRAY_MAX,
    DEPTH_MAX,
    ELEMENTS_MAX,
    FRAME_BYTES_MAX,
    MAP_PAIRS_MAX,
    PAYLOAD_BYTES_MAX,
    RECORD_BYTES_MAX,
    SMALL_FRAME_BYTES,
    STR_BYTES_MAX,
    U32,
    U63,
    Bytes8,
    Bytes32,
    Bytes64,
    Codec,
    Message,
    Record,
    Text,
    UnsupportedError,
    Word,
    decode_struct,
    encode,
    encode_struct,
    scan,
    struct_table,
    tag_in,
    tag_of,
)
from gossip.wire.connection import EXTRA_BYTES_MAX, Bye, Hello, Unsupported
from gossip.wire.dht import FindNode, GetRecords, Nodes, Ping, Pong, PutRecord, Records, Stored
from gossip.wire.exchange import (
    HEADER_BYTES_MAX,
    OfferHeader,
    OfferMessage,
    ReplyHeader,
    ReplyMessage,
    decode_offer_header,
    decode_reply_header,
    encode_header,
)
from gossip.wire.run import GetManifest, Holds, ManifestMessage, Share

# Schema files by the name of their protocol; the tables of docs/protocol.md are made of them.
SCHEMAS = {"connection": connection, "dht": dht, "exchange": exchange, "run": run}
MESSAGES: tuple[type[Message], ...] = (
    *connection.MESSAGES,
    *dht.MESSAGES,
    *exchange.MESSAGES,
    *run.MESSAGES,
)
AnyMessage: TypeAlias = Message
decode = Codec(MESSAGES).decode

__all__ = [
    "ARRAY_MAX",
    "DEPTH_MAX",
    "ELEMENTS_MAX",
    "EXTRA_BYTES_MAX",
    "FRAME_BYTES_MAX",
    "HEADER_BYTES_MAX",
    "MAP_PAIRS_MAX",
    "MESSAGES",
    "PAYLOAD_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "SCHEMAS",
    "SMALL_FRAME_BYTES",
    "STR_BYTES_MAX",
    "U32",
    "U63",
    "AnyMessage",
    "Bye",
    "Bytes8",
    "Bytes32",
    "Bytes64",
    "Codec",
    "FindNode",
    "GetManifest",
    "GetRecords",
    "Hello",
    "Holds",
    "ManifestMessage",
    "Message",
    "Nodes",
    "OfferHeader",
    "OfferMessage",
    "Ping",
    "Pong",
    "PutRecord",
    "Record",
    "Records",
    "ReplyHeader",
    "ReplyMessage",
    "Share",
    "Stored",
    "Text",
    "Unsupported",
    "UnsupportedError",
    "Word",
    "decode",
    "decode_offer_header",
    "decode_reply_header",
    "decode_struct",
    "encode",
    "encode_header",
    "encode_struct",
    "scan",
    "struct_table",
    "tag_in",
    "tag_of",
]
