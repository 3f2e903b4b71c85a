"""Vectors as bytes: exact lengths, bounded errors, nothing from a peer that is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossip.errors import LocalError, Reason, RemoteError
from gossip.learning.codec import (
    BLOCK,
    CODECS,
    LEVELS,
    block_scales,
    code,
    decode,
    dequantise,
    encode,
    pack,
    payload_bytes,
    quantise,
    scaled,
    unpack,
    value,
)

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)

vectors = hnp.arrays(
    np.float32,
    st.integers(1, 3 * BLOCK + 5),
    elements=st.floats(-LARGEST, LARGEST, width=32, allow_nan=False, allow_infinity=False),
)


def dumb_encode(codec: str, vector: np.ndarray) -> bytes:
    """The format, value by value."""
    if codec == "f32":
        return b"".join(np.array(v, "<f4").tobytes() for v in vector)
    levels = LEVELS[codec]
    scales, codes = b"", []
    share = np.nextafter(np.nextafter(np.float32(1 / levels), np.float32(0)), np.float32(0))
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK]
        scale = max(abs(block)) * share
        if scale < SMALLEST_NORMAL:
            scale = np.float32(0)
        scales += np.array(scale, "<f4").tobytes()
        inverse = np.float32(1) / scale if scale else np.float32(0)
        codes += [int(np.rint(v * inverse)) for v in block]
    if codec == "int8":
        return scales + b"".join(c.to_bytes(1, "little", signed=True) for c in codes)
    codes += [0] * (len(codes) % 2)
    return scales + bytes(
        (low & 15) | (high & 15) << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)
    )


@given(vector=vectors, codec=st.sampled_from(CODECS))
def test_the_encoder_does_what_the_dumb_one_does(vector: np.ndarray, codec: str) -> None:
    assert encode(codec, vector) == dumb_encode(codec, vector)


@given(vector=vectors, codec=st.sampled_from(CODECS))
def test_every_finite_vector_survives_within_half_a_level_of_its_block(
    vector: np.ndarray, codec: str
) -> None:
    payload = encode(codec, vector)
    assert len(payload) == payload_bytes(codec, len(vector))
    back = decode(codec, payload, len(vector))
    assert np.isfinite(back).all()
    if codec == "f32":
        assert np.array_equal(back, vector)
        return
    for start in range(0, len(vector), BLOCK):
        block = vector[start : start + BLOCK].astype(np.float64)
        peak = np.abs(block).max()
        error = np.abs(back[start : start + BLOCK] - block).max()
        # Blocks of denormals are sent as zeros.
        assert error <= max(peak / LEVELS[codec] / 2 * (1 + 1e-5), 1.001 * LEVELS[codec] * SMALLEST_NORMAL)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 4810, 2048 * BLOCK + 3])
def test_payloads_have_exactly_one_length(codec: str, size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    payload = encode(codec, vector)
    assert len(payload) == payload_bytes(codec, size)
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(RemoteError) as caught:
            decode(codec, wrong, size)
        assert caught.value.reason is Reason.WRONG_LENGTH


def test_the_lengths_are_those_of_the_protocol() -> None:
    assert [payload_bytes(codec, 4810) for codec in CODECS] == [19240, 4810 + 4 * 76, 2405 + 4 * 76]
    assert payload_bytes("int4", 65) == 4 * 2 + 33


def test_large_vectors_are_coded_in_chunks_like_small_ones() -> None:
    vector = np.random.default_rng(0).standard_normal(3 * 2048 * BLOCK + 17).astype(np.float32)
    for codec in ("int8", "int4"):
        whole = decode(codec, encode(codec, vector), len(vector))
        for start in range(0, len(vector), 2048 * BLOCK):
            part = vector[start : start + 2048 * BLOCK]
            assert np.array_equal(
                whole[start : start + len(part)], decode(codec, encode(codec, part), len(part))
            )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_our_own_fault(codec: str, bad: float) -> None:
    vector = np.zeros(100, np.float32)
    vector[70] = bad
    with pytest.raises(LocalError):
        encode(codec, vector)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_payload_that_is_not_finite_is_the_peers_fault(codec: str, bad: float) -> None:
    payload = bytearray(encode(codec, np.ones(100, np.float32)))
    payload[4:8] = np.array(bad, "<f4").tobytes()  # the second scale, or the second value
    with pytest.raises(RemoteError) as caught:
        decode(codec, bytes(payload), 100)
    assert caught.value.reason is Reason.NOT_FINITE


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_finite_scale_that_would_make_infinity_is_refused(codec: str) -> None:
    payload = bytearray(encode(codec, np.ones(64, np.float32)))
    payload[:4] = np.array(LARGEST, "<f4").tobytes()
    with pytest.raises(RemoteError) as caught:
        decode(codec, bytes(payload), 64)
    assert caught.value.reason is Reason.NOT_FINITE
    # While the largest values that we may hold ourselves pass.
    largest = np.full(64, -LARGEST, np.float32)
    assert np.allclose(decode(codec, encode(codec, largest), 64), largest, rtol=1e-5)


@pytest.mark.parametrize(("codec", "byte"), [("int8", 0x80), ("int4", 0x08), ("int4", 0x80)])
def test_codes_that_we_would_not_send_are_refused(codec: str, byte: int) -> None:
    payload = bytearray(encode(codec, np.ones(64, np.float32)))
    payload[10] = byte
    with pytest.raises(RemoteError) as caught:
        decode(codec, bytes(payload), 64)
    assert caught.value.reason is Reason.MALFORMED


def test_unknown_codecs_are_refused_by_whose_fault_they_are() -> None:
    with pytest.raises(RemoteError) as caught:
        decode("int2", b"", 64)
    assert caught.value.reason is Reason.UNKNOWN_CODEC
    with pytest.raises(LocalError):
        encode("int2", np.ones(64, np.float32))


@given(payload=st.binary(max_size=80), codec=st.sampled_from(CODECS), size=st.integers(1, 70))
def test_any_bytes_are_decoded_or_refused(payload: bytes, codec: str, size: int) -> None:
    padded = payload[: payload_bytes(codec, size)].ljust(payload_bytes(codec, size), b"\x7f")
    for given_bytes in (payload, padded):
        try:
            back = decode(codec, given_bytes, size)
        except RemoteError:
            continue
        assert back.shape == (size,)
        assert np.isfinite(back).all()


@pytest.mark.parametrize("codec", CODECS)
def test_scaling_a_coded_vector_survives_the_wire(codec: str) -> None:
    vector = np.random.default_rng(1).standard_normal(200).astype(np.float32)
    half = scaled(code(np, codec, vector), np.float32(0.37))
    assert np.array_equal(value(unpack(codec, pack(half), 200)), value(half))
    assert np.allclose(value(half), 0.37 * value(code(np, codec, vector)))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_numpy_and_jax_round_alike(codec: str, strict_dtypes: None) -> None:
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(2)
    magnitudes = np.float32(10.0) ** rng.integers(-44, 38, 500).astype(np.float32)
    blocks = rng.standard_normal((500, BLOCK)).astype(np.float32) * magnitudes[:, None]
    blocks[7] = 0
    blocks = np.nan_to_num(blocks)
    scales = block_scales(np, codec, blocks)
    codes = quantise(np, codec, blocks, scales)
    for run in (lambda f: f, jax.jit):
        their_scales = run(lambda b: block_scales(jnp, codec, b))(jnp.asarray(blocks))
        their_codes = run(lambda b, s: quantise(jnp, codec, b, s))(jnp.asarray(blocks), their_scales)
        assert np.array_equal(scales, np.asarray(their_scales))
        assert np.array_equal(codes, np.asarray(their_codes))
        assert np.array_equal(dequantise(codes, scales), np.asarray(dequantise(their_codes, their_scales)))


@pytest.mark.parametrize("codec", CODECS)
def test_whole_vectors_are_coded_alike_by_numpy_and_jax(codec: str, strict_dtypes: None) -> None:
    import jax.numpy as jnp

    vector = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    theirs = code(jnp, codec, jnp.asarray(vector))
    assert np.array_equal(value(code(np, codec, vector)), np.asarray(value(theirs)))
