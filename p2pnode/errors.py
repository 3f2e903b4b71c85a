"""What the person in front of the terminal reads when something cannot be done, and the exit status that goes
with it.

One sentence: what was expected, what came, what to do. Raised where it is noticed, printed in one place,
`cli.main`. Scripts read the status, so the numbers are a promise: they are listed in `p2pnode --help` and
never change meaning.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # it ran and did not succeed: an unhealthy node, a demo that did not converge
    USAGE = 2  # command line, settings file or environment (2 is also what click uses)
    NO_DAEMON = 3
    HOME = 4  # home directory or key: missing, wrong mode, wrong passphrase, damaged
    TASK = 5
    ADDRESS = 6  # cannot listen where we were told to
    RUNNING = 7  # another daemon owns this home
    INTERRUPTED = 130  # Ctrl-C, as shells report it


EXIT_CODE_TEXT: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "it ran but failed, or the node is unhealthy",
    ExitCode.USAGE: "wrong command line, settings file or environment variable",
    ExitCode.NO_DAEMON: "no daemon answers for this home",
    ExitCode.HOME: "home directory or key: missing, readable by others, wrong passphrase, damaged",
    ExitCode.TASK: "the task cannot be loaded or breaks its contract",
    ExitCode.ADDRESS: "cannot listen on the address",
    ExitCode.RUNNING: "another daemon already runs in this home",
    ExitCode.INTERRUPTED: "interrupted from the keyboard",
}


class UserError(Exception):
    """A sentence for a person, and the status to exit with. Never a traceback."""

    def __init__(self, code: ExitCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[ExitCode, str]]:
        # Processes of a sweep hand it over; what cannot be unpickled would end them all.
        return UserError, (self.code, str(self))
