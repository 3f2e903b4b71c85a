"""One float32 vector, cut into contiguous shards of bounded size: the unit of exchange.

A shard bounds the size of a frame, the pause while it is encoded, and what a partial holder must hold.
"""

from gossip.errors import LocalError


def shard_sizes(values: int, values_max: int) -> tuple[int, ...]:
    """Return the sizes of the fewest shards of at most `values_max` values; they differ by one at most.

    Balanced, because a tiny last shard would cost as many round trips as a full one.

    Raises:
        LocalError: an argument below 1.
    """
    if values < 1 or values_max < 1:
        raise LocalError(
            f"expected at least one value per vector and per shard, got {values} and {values_max}"
        )
    count = -(-values // values_max)
    size, larger = divmod(values, count)
    return (size + 1,) * larger + (size,) * (count - larger)


def shard_slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """Return where each shard lies in the vector."""
    slices = []
    start = 0
    for size in sizes:
        slices.append(slice(start, start + size))
        start += size
    return tuple(slices)
