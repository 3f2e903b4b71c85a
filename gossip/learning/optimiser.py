"""Which optimiser a saved state belongs to, as a hash.

Two optimisers may have states of equally many arrays, even of the same shapes, that mean different things: running
means of gradients, of their squares, momentum. So a state is only given back to the optimiser that made it: same
structure and types of the state, same arrays, same functions that update it. Numbers such as the learning rate do not
count: whoever lowers it goes on with the old moments. JAX is not imported here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import msgspec
from msgspec import Struct

_DOMAIN = "p2pnode/optimiser/v1"


class StateLeaf(Struct, frozen=True, array_like=True):
    """One array of an optimiser's state."""

    name: str  # path in the state, "0/mu/w"
    shape: tuple[int, ...]
    dtype: str


def optimiser_id(update: Any, structure: Any, leaves: Sequence[StateLeaf]) -> bytes:
    """Return 32 bytes, the same in every process, for an optimiser and the state that it keeps.

    Args:
        update: Its update function.
        structure: The state's `PyTreeDef`.
        leaves: The state's arrays, in order.
    """
    # Sorted: in which order a closure shows its variables is the interpreter's business.
    said = [_DOMAIN, _types(structure), list(leaves), sorted(_functions(update, []))]
    return hashlib.sha256(msgspec.msgpack.encode(said)).digest()


def _types(structure: Any) -> Any:
    """Return the names of the containers' types, nested as they are.

    Not the text of a PyTreeDef: it may show functions with their address in memory, which no two processes share.
    """
    node = structure.node_data()
    if node is None:
        return None
    return [node[0].__qualname__, [_types(child) for child in structure.children()]]


def _functions(thing: Any, seen: list[FunctionType]) -> Iterator[str]:
    """Yield the names of all functions that `thing` is made of.

    An optimiser is a function whose variables are functions: `chain` holds the parts that it chains.
    """
    parts: list[Any] = []
    if isinstance(thing, FunctionType):
        if any(thing is one for one in seen):  # one that calls itself is a variable of its own
            return
        seen.append(thing)
        yield thing.__qualname__
        # A function that is not yet defined, or was deleted again, has an empty cell.
        parts = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
    elif isinstance(thing, MethodType):
        yield f"{type(thing.__self__).__qualname__}.{thing.__name__}"
    elif isinstance(thing, partial):
        parts = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, tuple | list):
        parts = list(thing)
    elif isinstance(thing, dict):
        parts = list(thing.values())
    elif hasattr(thing, "__wrapped__"):  # of jax.jit and its like
        parts = [thing.__wrapped__]
    for part in parts:
        yield from _functions(part, seen)
