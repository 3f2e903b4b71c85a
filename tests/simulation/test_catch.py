"""The planted faults of the catch table still fit the code: each is one place of one file, and other Python then."""

import ast
from pathlib import Path

import pytest

from tests.catch.planted import FAULTS, Planted


def test_there_are_twenty_and_their_names_differ() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_can_be_planted(root: Path, fault: Planted) -> None:
    text = (root / fault.path).read_text()
    assert text.count(fault.old) == 1, "the code has changed: change the planted fault, and run make catch"
    assert ast.dump(ast.parse(text.replace(fault.old, fault.new))) != ast.dump(ast.parse(text))
