"""One root seed, many independent children by name: no role ever draws from the stream of another.

A child depends on the root and on its own name only, so that adding a fault or a node leaves every other
stream as it was, and a smaller run replays the beginning of a larger one.
"""

import hashlib
import random
from collections.abc import Callable


class Seeds:
    """Named children of one root seed.

    Args:
        root: Any integer; the number that a user passes as `--seed`.
    """

    __slots__ = ("root",)

    def __init__(self, root: int) -> None:
        self.root = root

    def integer(self, *name: str | int) -> int:
        """The 63-bit seed of the child `name`, e.g. `integer("data")` or `integer("node", 7)`."""
        # repr tells the integer 7 from the string "7" and keeps ("ab", "c") apart from ("a", "bc").
        text = repr((self.root, *name)).encode()
        return int.from_bytes(hashlib.sha256(b"p2psim/seed/v1\0" + text).digest()[:8], "big") >> 1

    def random(self, *name: str | int) -> random.Random:
        """A generator of its own for the role `name`."""
        return random.Random(self.integer(*name))

    def entropy(self, *name: str | int) -> Callable[[int], bytes]:
        """What stands for `os.urandom` in a simulated node: repeatable, and apart from every other stream."""
        return self.random("entropy", *name).randbytes
