"""The Noise machine against vectors that we did not write: haskell-cryptography/cacophony."""

import json
from pathlib import Path
from typing import Any

import pytest

from crypto.errors import CryptoError
from crypto.noise import HandshakeState, KeyPair, Pattern, Token

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "noise" / "cacophony.json"

# The patterns of Noise revision 34, deferred ones included. Before "...": what is known beforehand.
PATTERNS = """
N:    <- s ... -> e, es
K:    -> s <- s ... -> e, es, ss
X:    <- s ... -> e, es, s, ss
NN:   -> e <- e, ee
KN:   -> s ... -> e <- e, ee, se
NK:   <- s ... -> e, es <- e, ee
KK:   -> s <- s ... -> e, es, ss <- e, ee, se
NX:   -> e <- e, ee, s, es
KX:   -> s ... -> e <- e, ee, se, s, es
XN:   -> e <- e, ee -> s, se
IN:   -> e, s <- e, ee, se
XK:   <- s ... -> e, es <- e, ee -> s, se
IK:   <- s ... -> e, es, s, ss <- e, ee, se
XX:   -> e <- e, ee, s, es -> s, se
IX:   -> e, s <- e, ee, se, s, es
NK1:  <- s ... -> e <- e, ee, es
NX1:  -> e <- e, ee, s -> es
X1N:  -> e <- e, ee -> s <- se
X1K:  <- s ... -> e, es <- e, ee -> s <- se
XK1:  <- s ... -> e <- e, ee, es -> s, se
X1K1: <- s ... -> e <- e, ee, es -> s <- se
X1X:  -> e <- e, ee, s, es -> s <- se
XX1:  -> e <- e, ee, s -> es, s, se
X1X1: -> e <- e, ee, s -> es, s <- se
K1N:  -> s ... -> e <- e, ee -> se
K1K:  -> s <- s ... -> e, es <- e, ee -> se
KK1:  -> s <- s ... -> e <- e, ee, se, es
K1K1: -> s <- s ... -> e <- e, ee, es -> se
K1X:  -> s ... -> e <- e, ee, s, es -> se
KX1:  -> s ... -> e <- e, ee, se, s -> es
K1X1: -> s ... -> e <- e, ee, s -> se, es
I1N:  -> e, s <- e, ee -> se
I1K:  <- s ... -> e, es, s <- e, ee -> se
IK1:  <- s ... -> e, s <- e, ee, se, es
I1K1: <- s ... -> e, s <- e, ee, es -> se
I1X:  -> e, s <- e, ee, s, es -> se
IX1:  -> e, s <- e, ee, se, s -> es
I1X1: -> e, s <- e, ee, s -> se, es
"""


def parse_pattern(name: str) -> Pattern:
    """The pattern of a name like IKpsk2, modifiers applied (section 9)."""
    base, *modifiers = name.split("psk")
    line = next(line for line in PATTERNS.splitlines() if line.startswith(base + ":"))
    known, _, exchanged = line.split(":")[1].rpartition("...")
    messages = [tokens for _, tokens in _messages(exchanged)]
    for modifier in modifiers:
        place = int(modifier)
        if place == 0:
            messages[0].insert(0, "psk")
        else:
            messages[place - 1].append("psk")
    before = dict(_messages(known))
    return Pattern(
        name, tuple(map(tuple, messages)), tuple(before.get("->", ())), tuple(before.get("<-", ()))
    )


def _messages(text: str) -> list[tuple[str, list[Token]]]:
    words = text.replace(",", " ").split()
    messages: list[tuple[str, list[Token]]] = []
    for word in words:
        if word in ("->", "<-"):
            messages.append((word, []))
        else:
            messages[-1][1].append(word)  # type: ignore[arg-type]
    return messages


def read_vectors() -> list[dict[str, Any]]:
    if not VECTORS.exists():
        return []
    vectors = json.loads(VECTORS.read_text())["vectors"]
    return [vector for vector in vectors if "_25519_ChaChaPoly_" in vector["protocol_name"]]


def side(vector: dict[str, Any], *, initiator: bool) -> HandshakeState:
    prefix = "init_" if initiator else "resp_"
    _, pattern, _, _, hash_name = vector["protocol_name"].split("_")

    def key(name: str) -> bytes | None:
        return bytes.fromhex(vector[prefix + name]) if prefix + name in vector else None

    ephemeral, static = key("ephemeral") or bytes(32), key("static")
    return HandshakeState(
        parse_pattern(pattern),
        initiator=initiator,
        prologue=bytes.fromhex(vector[prefix + "prologue"]),
        entropy=lambda n: ephemeral,
        static=KeyPair.from_private(static) if static else None,
        remote_static=key("remote_static"),
        psks=[bytes.fromhex(psk) for psk in vector.get(prefix + "psks", [])],
        hash_name=hash_name,
    )


def test_every_vector_is_there() -> None:
    """A shrunken file must not pass as a success."""
    if not VECTORS.exists():
        pytest.skip(f"NOT CHECKED: the published Noise vectors are missing at {VECTORS}")
    vectors = read_vectors()
    assert len(vectors) == 236
    assert sum(vector["protocol_name"].endswith("SHA256") for vector in vectors) == 59


@pytest.mark.parametrize("vector", read_vectors(), ids=lambda vector: vector["protocol_name"])
def test_published_vector(vector: dict[str, Any]) -> None:
    """Both sides reproduce every handshake message, the handshake hash, and every transport message."""
    writer, reader = side(vector, initiator=True), side(vector, initiator=False)
    initiator = writer
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    handshake_count = len(initiator._pattern.messages)
    for payload, ciphertext in messages[:handshake_count]:
        assert writer.write_message(payload) == ciphertext
        assert reader.read_message(ciphertext) == payload
        writer, reader = reader, writer
    assert writer.finished
    assert reader.finished
    assert writer.handshake_hash == reader.handshake_hash == bytes.fromhex(vector["handshake_hash"])

    one_way = handshake_count == 1
    sends, receives = {}, {}
    for state in (writer, reader):
        sends[state], receives[state] = state.split()
    if one_way:
        writer, reader = reader, writer
        assert writer is initiator
    assert messages[handshake_count:]
    for payload, ciphertext in messages[handshake_count:]:
        assert sends[writer].encrypt(payload) == ciphertext
        assert receives[reader].decrypt(ciphertext) == payload
        if not one_way:
            writer, reader = reader, writer


@pytest.mark.parametrize("vector", read_vectors()[::4], ids=lambda vector: vector["protocol_name"])
def test_vector_with_another_prologue_is_refused(vector: dict[str, Any]) -> None:
    """Sides that disagree on the prologue part at the first encrypted message."""
    writer = side(vector, initiator=True)
    reader = side(vector | {"resp_prologue": "00"}, initiator=False)
    with pytest.raises(CryptoError, match="not authentic"):
        converse(writer, reader)


def converse(writer: HandshakeState, reader: HandshakeState) -> None:
    while not writer.finished:
        reader.read_message(writer.write_message(b"payload"))
        writer, reader = reader, writer
