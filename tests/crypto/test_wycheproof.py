"""Our doors to the primitives against C2SP/wycheproof: what we accept and refuse is what the vectors say."""

import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from crypto.errors import CryptoError
from crypto.identity import verify_message
from crypto.noise import aead_open, aead_seal, dh, hkdf

VECTORS = Path(__file__).parents[2] / ".." / "shared" / "vectors" / "wycheproof"


def read_cases(name: str, count: int) -> list[dict[str, Any]]:
    """All cases of one file, each with the fields of its group; exactly `count`, so none is lost."""
    path = VECTORS / f"{name}_test.json"
    if not path.exists():
        pytest.skip(f"NOT CHECKED: the published vectors are missing at {path}")
    groups = json.loads(path.read_text())["testGroups"]
    cases = [group | case for group in groups for case in group["tests"]]
    assert len(cases) == count
    return cases


def unhex(case: dict[str, Any], *names: str) -> list[bytes]:
    return [bytes.fromhex(case[name]) for name in names]


def accepts(call: Any, *arguments: Any, **keywords: Any) -> bool:
    """Whether `call` returns. It may raise CryptoError and nothing else."""
    try:
        call(*arguments, **keywords)
    except CryptoError:
        return False
    return True


def test_ed25519() -> None:
    for case in read_cases("ed25519", 151):
        key = bytes.fromhex(case["publicKey"]["pk"])
        message, signature = unhex(case, "msg", "sig")
        assert accepts(verify_message, key, message, signature) == (case["result"] == "valid"), case["tcId"]


def test_x25519() -> None:
    refused = 0
    for case in read_cases("x25519", 518):
        private, public, shared = unhex(case, "private", "public", "shared")
        if "ZeroSharedSecret" in case["flags"]:
            refused += 1
            with pytest.raises(CryptoError, match="low order"):
                dh(private, public)
        else:
            assert dh(private, public) == shared, case["tcId"]
    assert refused == 31


def test_chacha20_poly1305() -> None:
    for case in read_cases("chacha20_poly1305", 325):
        key, nonce, associated, plaintext, body, tag = unhex(case, "key", "iv", "aad", "msg", "ct", "tag")
        valid = case["result"] == "valid"
        assert accepts(aead_open, key, nonce, body + tag, associated) == valid, case["tcId"]
        if valid:
            assert aead_open(key, nonce, body + tag, associated) == plaintext
            assert aead_seal(key, nonce, plaintext, associated) == body + tag


def test_hkdf_sha256() -> None:
    for case in read_cases("hkdf_sha256", 86):
        secret, salt, info, expected = unhex(case, "ikm", "salt", "info", "okm")
        arguments = {"salt": salt, "secret": secret, "info": info, "size": case["size"]}
        assert accepts(hkdf, "SHA256", **arguments) == (case["result"] == "valid"), case["tcId"]
        if case["result"] == "valid":
            assert hkdf("SHA256", **arguments) == expected, case["tcId"]


def test_hmac_sha256() -> None:
    """The standard library's, under our HKDF."""
    for case in read_cases("hmac_sha256", 174):
        key, message, tag = unhex(case, "key", "msg", "tag")
        computed = hmac.digest(key, message, "sha256")[: case["tagSize"] // 8]
        assert (computed == tag) == (case["result"] == "valid"), case["tcId"]
