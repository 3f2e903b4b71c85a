"""The model as a file that others can open: safetensors, one tensor for each shared array, under the user's names.

safetensors because it is data and nothing else: reading it runs no code, and its header is checked before use.
"""

from pathlib import Path

import numpy as np

from gossip.learning.codec import FloatArray
from gossip.learning.task import Schema
from p2pnode.whole import write_whole

# Types that both numpy and every reader of safetensors know; others (bfloat16) are written as float32, which holds
# all their values.
_PLAIN = ("float16", "float32", "float64")


def write_safetensors(path: Path, schema: Schema, vector: FloatArray) -> int:
    """Write `vector`, cut into the arrays of `schema`. Replaces `path` in one step, or not at all.

    Args:
        path: The file; its folder exists.
        schema: Names, shapes and types.
        vector: Shape (schema.values,), float32.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.numpy import save

    arrays = {}
    start = 0
    for leaf in schema.leaves:
        size = int(np.prod(leaf.shape, dtype=np.int64))
        dtype = leaf.dtype if leaf.dtype in _PLAIN else "float32"
        arrays[leaf.name] = vector[start : start + size].reshape(leaf.shape).astype(dtype)
        start += size
    assert start == len(vector)
    data = save(arrays, metadata={"format": "p2pnode", "schema": schema.id.hex()})
    write_whole(path, data, replace=True, mode=0o666)
    return len(data)
