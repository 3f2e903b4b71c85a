"""Buffers of the size of a shard, used again instead of asked from the system each time.

By default glibc gives a large freed buffer back to the system, and the next one comes as fresh pages, each zeroed at
its first touch. An exchange of 4 MiB goes through some ten such buffers: 35,000 page faults for a model of 40 MB, a
third of the processor time of an exchange.
"""

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# What glibc does with less is good: it keeps 128 KiB by itself.
SMALL_BYTES = 2**17
# Buffers of one shard that an exchange holds at a time, about: frame, payload, and what the arithmetic needs.
BUFFERS = 8


def keep_freed(buffer_bytes: int) -> None:
    """Let the process keep freed memory for the next buffers of so many bytes: eight of them for each thread.

    Does nothing for small buffers, and where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and buffer_bytes > SMALL_BYTES:
        # Twice, because a frame is a little larger than the shard in it.
        mallopt(_M_MMAP_THRESHOLD, 2 * buffer_bytes)
        mallopt(_M_TRIM_THRESHOLD, BUFFERS * buffer_bytes)
