"""The planted faults of the catch table still fit the code: each is one place of one file, other Python then. Some of
them are planted and caught here, too; `make catch` does it with all."""

import ast
from pathlib import Path

import pytest

from tests.catch.__main__ import search
from tests.catch.planted import FAULTS, Planted

# Those that the first seeds show.
CAUGHT_HERE = {
    "an equal sequence number is accepted": "after number",
    "+c on both sides": "do not cancel",
    "numbers are not persisted before they are signed": "signed two things",
    "one fault of a peer is enough to ban it": "it ended a connection after 1 faults",
}


def test_there_are_twenty_and_their_names_differ() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_planted(root: Path, fault: Planted) -> None:
    text = (root / fault.path).read_text()
    assert text.count(fault.old) == 1, "the code has changed: change the planted fault, and run make catch"
    assert ast.dump(ast.parse(text.replace(fault.old, fault.new))) != ast.dump(ast.parse(text))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CAUGHT_HERE)
def test_a_planted_fault_is_caught(name: str) -> None:
    """In a copy of the packages; the same seed holds without the fault."""
    fault = next(fault for fault in FAULTS if fault.name == name)
    outcome = search(fault, 3, seeds_of_hours=0)
    assert outcome.by.startswith("seed ")
    assert CAUGHT_HERE[name] in outcome.seen
