"""float32 vectors as bytes: exact ("f32"), or block-wise 8 or 4 bit integers ("int8", "int4").

Each block of 64 values has one float32 scale, max|v| / 127 or / 7; values are rounded to nearest, or at random where
noise is given (for one-way pushes, where what is lost by rounding is not conserved; docs/learning.md). A payload
is all scales, then all codes, little-endian, without a header: the receiver knows codec and length from its own
manifest, and anything of another length is refused.

`block_scales`, `quantise` and `dequantise` are the arithmetic, written once over an array namespace `xp`
(numpy or jax.numpy), so that the daemon and a whole network on an accelerator round alike. The rest is numpy
and bytes.
"""

from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gossip.config import CODECS
from gossip.errors import LocalError, Reason, RemoteError

FloatArray: TypeAlias = npt.NDArray[np.float32]
Array: TypeAlias = Any  # float32 of numpy or jax.numpy, whichever namespace `xp` is
Scalar: TypeAlias = Any  # float under numpy, a float32 array of shape () under jax.numpy

# One scale costs half a bit per value; larger blocks let one outlier
# coarsen more.
BLOCK = 64

# Codes lie in [-levels, levels]; the most negative two's complement code is not used, so rounding is
# symmetric.
LEVELS = {"int8": 127, "int4": 7}
# Scales are max|v| times this. Multiplied, because XLA turns a division by a constant into a multiplication;
# and two steps below 1/levels, so that levels * scale never rounds to more than max|v|, which could be
# infinity.
_SHARE = {
    codec: np.nextafter(np.nextafter(np.float32(1 / levels), np.float32(0)), np.float32(0))
    for codec, levels in LEVELS.items()
}

# The largest scale that we would send ourselves: with it, every code stands for a finite value.
_SCALE_MAX = {codec: np.finfo(np.float32).max * share for codec, share in _SHARE.items()}

# The smallest normal float32: below it scales lose precision, and XLA flushes them to zero where numpy does
# not. Such blocks (|v| < 1.5e-36) are sent as zeros.
_SCALE_MIN = np.finfo(np.float32).tiny

# 2,048 blocks are 512 KiB of float32: temporaries stay in the level-2 cache (2.1 GB/s against 1.2 without,
# one core).
_CHUNK_BLOCKS = 2048

# Where the blocks of one chunk begin.
_STARTS = BLOCK * np.arange(_CHUNK_BLOCKS)


class Coded(Struct, frozen=True):
    """A vector as the receiver will see it.

    `codes` has shape (blocks, 64) and type int8, zero beyond the end of the vector, and `scales` (blocks,)
    float32; under "f32" `codes` is the vector itself, (size,) float32, and `scales` is None.
    """

    codec: str
    codes: Array
    scales: Array | None
    size: int


def payload_bytes(codec: str, size: int) -> int:
    """Return the exact length of the payload of `size` values.

    Raises:
        LocalError: no such codec.
    """
    if codec == "f32":
        return 4 * size
    if codec == "int8":
        return 4 * _blocks(size) + size
    if codec == "int4":
        return 4 * _blocks(size) + (size + 1) // 2
    raise LocalError(f"expected one of the codecs {', '.join(CODECS)}, got {codec!r}")


# --- arithmetic, over numpy or jax.numpy -------------------------------------------------------------


def block_scales(xp: ModuleType, codec: str, blocks: Array) -> Array:
    """Return the scale of each block: max|v| / levels, or zero for a block of zeros and denormals.

    Args:
        xp: numpy or jax.numpy.
        codec: int8 or int4.
        blocks: Shape (..., 64), float32. A value that is not finite makes its scale not finite.

    Returns:
        Shape (...,), float32.
    """
    scales = xp.abs(blocks).max(axis=-1) * _SHARE[codec]
    return scales * (scales >= _SCALE_MIN).astype(np.float32)


def quantise(xp: ModuleType, codec: str, blocks: Array, scales: Array, noise: Array | None = None) -> Array:
    """Return the codes, int8, of the shape of `blocks`: v / scale rounded to nearest, ties to even.

    With noise, uniform in ±1/2 and of the same shape, it is v / scale + noise, whose rounding is v / scale on average.
    """
    kept = (scales >= _SCALE_MIN).astype(np.float32)
    inverse = kept / xp.maximum(scales, _SCALE_MIN)
    if noise is None:
        return xp.rint(blocks * inverse[..., None]).astype(np.int8)
    levels = np.float32(LEVELS[codec])
    return xp.clip(xp.rint(blocks * inverse[..., None] + noise), -levels, levels).astype(np.int8)


def dequantise(codes: Array, scales: Array) -> Array:
    """Return code * scale, float32, of the shape of `codes`."""
    return codes.astype(np.float32) * scales[..., None]


def code(xp: ModuleType, codec: str, vector: Array, noise: Array | None = None) -> Coded:
    """Return the coded form of a vector; under numpy a vector that is not finite is refused.

    Args:
        xp: numpy or jax.numpy.
        codec: One of CODECS.
        vector: Shape (size,), float32; not kept under int8 and int4, shared with the result under f32.
        noise: As for `quantise`, of the shape of the vector; f32 needs none.

    Raises:
        LocalError: no such codec, or (numpy only) a value that is not finite: our own weights are broken.
    """
    size = vector.shape[0]
    if codec == "f32":
        if xp is np and not all_finite(vector):
            raise LocalError("a vector to be encoded holds a value that is not finite")
        return Coded(codec, vector, None, size)
    if codec not in LEVELS:
        raise LocalError(f"expected one of the codecs {', '.join(CODECS)}, got {codec!r}")
    padding = -size % BLOCK
    if padding:
        nothing = xp.zeros(padding, dtype=np.float32)
        vector = xp.concatenate([vector, nothing])
        noise = None if noise is None else xp.concatenate([noise, nothing])
    blocks = vector.reshape(-1, BLOCK)
    noises = None if noise is None else noise.reshape(-1, BLOCK)
    if xp is not np:
        scales = block_scales(xp, codec, blocks)
        return Coded(codec, quantise(xp, codec, blocks, scales, noises), scales, size)
    count = blocks.shape[0]
    if count <= _CHUNK_BLOCKS:
        return Coded(codec, *_coded_blocks(codec, blocks, noises), size)
    codes = np.empty((count, BLOCK), np.int8)
    scales = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK_BLOCKS):
        chunk = slice(start, start + _CHUNK_BLOCKS)
        codes[chunk], scales[chunk] = _coded_blocks(
            codec, blocks[chunk], None if noises is None else noises[chunk]
        )
    return Coded(codec, codes, scales, size)


def value(coded: Coded) -> Array:
    """Return the vector that a coded form stands for, shape (size,), float32; under f32 the very array."""
    if coded.scales is None:
        return coded.codes
    return dequantise(coded.codes, coded.scales).reshape(-1)[: coded.size]


def scaled(coded: Coded, factor: Array) -> Coded:
    """Return the coded form of factor * value, not rounded anew; `factor` is a float32 scalar."""
    if coded.scales is None:
        return Coded(coded.codec, coded.codes * factor, None, coded.size)
    return Coded(coded.codec, coded.codes, coded.scales * factor, coded.size)


def all_finite(vector: FloatArray) -> bool:
    """Whether no value of a numpy vector is infinite or NaN."""
    return (
        int(np.count_nonzero(np.isfinite(vector))) == vector.size
    )  # half the time of all() at a thousand values


# --- bytes -------------------------------------------------------------------------------------------


def pack(coded: Coded) -> bytes:
    """Return the payload of a coded form made by numpy."""
    if coded.scales is None:
        return bytes(coded.codes.astype("<f4", copy=False).tobytes())
    scales: bytes = coded.scales.astype("<f4", copy=False).tobytes()
    codes = coded.codes.reshape(-1)
    if coded.codec == "int8":
        return b"".join((scales, codes[: coded.size].data))
    # Two codes in a 16 bit word, low byte first; their low nibbles become one byte, first code in the low
    # nibble.
    words = codes.view("<u2")
    nibbles = ((words & 0x000F) | ((words >> 4) & 0x00F0)).astype(np.uint8)
    return b"".join((scales, nibbles[: (coded.size + 1) // 2].data))


def unpack(codec: str, payload: bytes, size: int) -> Coded:
    """Return the coded form in a payload from a peer: exact length, finite values, codes that we would send.

    Raises:
        RemoteError: UNKNOWN_CODEC, WRONG_LENGTH, NOT_FINITE, MALFORMED.
    """
    if codec not in CODECS:
        raise RemoteError(Reason.UNKNOWN_CODEC, f"expected one of {', '.join(CODECS)}")
    expected = payload_bytes(codec, size)
    if len(payload) != expected:
        raise RemoteError(
            Reason.WRONG_LENGTH, f"expected {expected} bytes for {size} values in {codec}, got {len(payload)}"
        )
    if codec == "f32":
        vector = np.frombuffer(payload, "<f4").astype(np.float32, copy=False)
        if not all_finite(vector):
            raise RemoteError(Reason.NOT_FINITE, "a value is not finite")
        return Coded(codec, vector, None, size)
    count = _blocks(size)
    scales = np.frombuffer(payload, "<f4", count).astype(np.float32, copy=False)
    # Written so that NaN fails it too.
    if not np.abs(scales).max() <= _SCALE_MAX[codec]:
        raise RemoteError(Reason.NOT_FINITE, "a scale is not finite, or too large for its codes to be")
    if codec == "int8":
        sent = np.frombuffer(payload, np.int8, size, 4 * count)
    else:
        sent = _CODES_OF_BYTE[np.frombuffer(payload, np.uint8, -1, 4 * count)].view(np.int8)[:size]
    if sent.min() < -LEVELS[codec]:
        raise RemoteError(Reason.MALFORMED, f"a code lies below {-LEVELS[codec]}")
    if size % BLOCK:
        codes = np.zeros(count * BLOCK, np.int8)
        codes[:size] = sent
    else:
        codes = sent
    return Coded(codec, codes.reshape(count, BLOCK), scales, size)


def encode(codec: str, vector: FloatArray) -> bytes:
    """Return the payload of a float32 vector of shape (size,).

    Raises:
        LocalError: no such codec, or a value that is not finite.
    """
    return pack(code(np, codec, vector))


def decode(codec: str, payload: bytes, size: int) -> FloatArray:
    """Return the float32 vector, shape (size,), in a payload from a peer. Perhaps read-only.

    Raises:
        RemoteError: UNKNOWN_CODEC, WRONG_LENGTH, NOT_FINITE, MALFORMED.
    """
    vector: FloatArray = value(unpack(codec, payload, size))
    return vector


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _coded_blocks(
    codec: str, blocks: FloatArray, noise: FloatArray | None
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Return codes and scales by numpy, the very numbers of `quantise` and `block_scales`."""
    work = np.abs(blocks)
    # The largest of each block by its place: four times as fast as max(axis=-1), and NaN wins here, too.
    largest = work.reshape(-1).take(work.argmax(axis=-1) + _STARTS[: blocks.shape[0]])
    scales: FloatArray = largest * _SHARE[codec]
    # Usually no block needs the mask for zeros, and all is finite (NaN fails both comparisons): then half the calls
    # do, and at a thousand values calls are what costs.
    if noise is None and scales.min() >= _SCALE_MIN and scales.max() <= _SCALE_MAX[codec]:
        np.multiply(blocks, np.reciprocal(scales)[:, None], out=work)
        return np.rint(work, out=work).astype(np.int8), scales
    scales = block_scales(np, codec, blocks)
    if not np.isfinite(scales).all():
        raise LocalError("a vector to be encoded holds a value that is not finite")
    return quantise(np, codec, blocks, scales, noise), scales


def _codes_of_byte() -> npt.NDArray[np.uint16]:
    """Return the table byte -> two signed codes as one 16 bit word, first code in the low byte."""
    byte = np.arange(256, dtype=np.uint8)
    # A nibble becomes a signed byte when it is shifted up and arithmetically down again.
    low = (byte << 4).view(np.int8) >> 4
    high = byte.view(np.int8) >> 4
    return np.stack([low, high], axis=1).astype(np.int8).view("<u2").reshape(256)


_CODES_OF_BYTE = _codes_of_byte()
