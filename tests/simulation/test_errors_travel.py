"""Errors of ours come whole out of another process; one that does not would end all that work for a sweep."""

import pickle

import pytest

from gossip.errors import Reason, RemoteError
from p2pnode.errors import ExitCode, UserError


@pytest.mark.parametrize(
    "error",
    [UserError(ExitCode.TASK, "the task is none"), RemoteError(Reason.MALFORMED, "expected a frame")],
)
def test_an_error_is_the_same_in_another_process(error: Exception) -> None:
    there = pickle.loads(pickle.dumps(error))  # noqa: S301  it was ours a moment ago
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert vars(there) == vars(error)
