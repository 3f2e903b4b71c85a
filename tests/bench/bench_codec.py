"""Weights to bytes and back, beside a plain copy of the same memory: nothing can be faster than that."""

import numpy as np

from gossip.config import CODECS
from gossip.learning.codec import decode, encode
from tests.bench.figures import Figure, medians

# One shard of the largest size: 4 MiB of float32.
VALUES = 2**20


def codecs(brief: bool) -> list[Figure]:
    vector = np.random.default_rng(0).standard_normal(VALUES).astype(np.float32)
    target = np.empty_like(vector)
    size = vector.nbytes / 1e9
    figures = []
    for codec in CODECS:
        payload = encode(codec, vector)

        def copy() -> None:
            np.copyto(target, vector)

        works = {
            "encoded": lambda codec=codec: encode(codec, vector),
            "decoded": lambda codec=codec, payload=payload: decode(codec, payload, VALUES),
        }
        for verb, work in works.items():
            ours, reference = medians(work, copy, repeats=1 if brief else 15)
            figures.append(
                Figure(
                    name=f"float32 {verb} as {codec}, 4 MiB",
                    value=size / ours,
                    unit="GB/s",
                    reference=size / reference,
                    against="copy of the memory",
                )
            )
    return figures


BENCHMARKS = (codecs,)
