"""Signatures of a world: checked elsewhere, or modelled. A forgery fails in any case; daemons have real ones only."""

import ast
import inspect
from pathlib import Path
from random import Random

import pytest

from crypto.errors import CryptoError
from crypto.identity import Identity, PublicKey, Signature, verify
from crypto.signing import Purpose, network_id
from gossip.errors import LocalError
from gossip.node import Node
from simulation.experiments.run import run
from simulation.scenario import Scenario, parse
from simulation.signatures import BATCH, ModelledSignatures, RealSignatures, Signatures, signatures_of

NETWORK = network_id("test")


@pytest.fixture(params=["real", "modelled"])
def signatures(request: pytest.FixtureRequest) -> Signatures:
    return signatures_of(request.param, Random(1).randbytes)


def small(signatures: str = "real") -> Scenario:
    return parse(
        {
            "nodes": 4,
            "duration_s": 5.0,
            "task": {"name": "digits", "args": {"model": "logistic"}},
            "compute": {"lanes": 4, "signatures": signatures},
        },
        "small.toml",
    )


def test_what_was_signed_is_believed(signatures: Signatures) -> None:
    alice = signatures.identity(Random(2).randbytes)
    signature = alice.sign(Purpose.OFFER, NETWORK, b"body")
    assert len(signature) == 64
    assert len(alice.public_key) == 32
    signatures.verify(alice.public_key, Purpose.OFFER, NETWORK, b"body", signature)
    signatures.settle()


def test_what_was_not_signed_word_for_word_is_refused(signatures: Signatures) -> None:
    alice, bob = signatures.identity(Random(2).randbytes), signatures.identity(Random(3).randbytes)
    signature = alice.sign(Purpose.OFFER, NETWORK, b"body")
    for key, purpose, network, body, given in (
        (bob.public_key, Purpose.OFFER, NETWORK, b"body", signature),
        (alice.public_key, Purpose.REPLY, NETWORK, b"body", signature),
        (alice.public_key, Purpose.OFFER, network_id("another"), b"body", signature),
        (alice.public_key, Purpose.OFFER, NETWORK, b"another", signature),
        (alice.public_key, Purpose.OFFER, NETWORK, b"body", Signature(bytes(64))),
        (PublicKey(b"short"), Purpose.OFFER, NETWORK, b"body", signature),
    ):
        with pytest.raises(CryptoError):
            signatures.verify(key, purpose, network, body, given)


def test_real_signatures_are_those_of_everybody_else() -> None:
    alice = RealSignatures().identity(Random(2).randbytes)
    signature = alice.sign(Purpose.OFFER, NETWORK, b"body")
    verify(alice.public_key, Purpose.OFFER, NETWORK, b"body", signature)
    assert signature == Identity.generate(Random(2).randbytes).sign(Purpose.OFFER, NETWORK, b"body")


def test_modelled_signatures_are_worth_nothing_outside() -> None:
    alice = ModelledSignatures(bytes(32)).identity(Random(2).randbytes)
    signature = alice.sign(Purpose.OFFER, NETWORK, b"body")
    with pytest.raises(CryptoError):
        verify(alice.public_key, Purpose.OFFER, NETWORK, b"body", signature)
    with pytest.raises(CryptoError):
        ModelledSignatures(b"k" * 32).verify(alice.public_key, Purpose.OFFER, NETWORK, b"body", signature)


@pytest.mark.parametrize("count", [1, BATCH + 1], ids=["here", "in the other process"])
def test_a_false_signature_of_our_own_ends_the_run(count: int) -> None:
    signatures = RealSignatures()
    alice = signatures.identity(Random(2).randbytes)
    try:
        for number in range(count):
            alice.sign(Purpose.OFFER, NETWORK, b"%d" % number)
        signatures.settle()
        signatures.signed(alice.public_key, bytes(64), b"never signed")
        for number in range(count - 1):
            alice.sign(Purpose.OFFER, NETWORK, b"%d" % number)
        with pytest.raises(LocalError, match="does not verify"):
            signatures.settle()
    finally:
        signatures.close()


def test_a_process_that_dies_ends_the_run() -> None:
    signatures = RealSignatures()
    alice = signatures.identity(Random(2).randbytes)
    for number in range(BATCH):
        alice.sign(Purpose.OFFER, NETWORK, b"%d" % number)
    assert signatures._process is not None
    signatures._process.kill()
    with pytest.raises(LocalError, match="has ended"):
        signatures.settle()
    signatures.close()


def test_a_run_says_whose_signatures_it_had() -> None:
    real, modelled = run(small(), 3, central=False), run(small("modelled"), 3, central=False)
    assert (real.signatures, modelled.signatures) == ("real", "modelled")
    assert real.digest != modelled.digest
    assert modelled.exchanges > 5
    assert modelled.checks > 0


def test_no_daemon_has_any_but_real_signatures() -> None:
    assert inspect.signature(Node).parameters["verify"].default is verify
    package = Path(__file__).parents[2] / "p2pnode"
    files = list(package.rglob("*.py"))
    assert files
    for file in files:
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.keyword):
                assert call.arg != "verify", f"{file.name} chooses who checks signatures"
