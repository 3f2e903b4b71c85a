"""The home directory of one node: its key, its settings, its state, its control socket.

    config.toml     settings, written by `p2pnode init`
    identity.key    the Ed25519 seed, plain or under a passphrase; 0600
    daemon.lock     held (flock) by the daemon that runs here
    control.sock    where commands reach it
    state/          what the daemon writes: a database, and in runs/ the models
    jax-cache/      compiled programs, so that the next start is quick

Whoever can read the key can speak in our name, so the directory is 0700 and the key 0600 *or we refuse to
start* (docs/security.md, T7): a warning would be read after the theft.
"""

import fcntl
import os
import shlex
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pnode.errors import ExitCode, UserError
from p2pnode.printable import is_text, printable
from p2pnode.whole import write_whole

HOME_VARIABLE = "P2PNODE_HOME"
RUNS = "runs"  # the folder of models in the state
PASSPHRASE_VARIABLE = "P2PNODE_PASSPHRASE"
# A sealed key is some hundred bytes; whatever is longer is not one.
KEY_BYTES_MAX = 4096
# How soon a person who typed `stop` notices that it is done.
FREE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Home:
    """Where the files of one node are; the list is at the top of this file. The folder need not exist."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def key(self) -> Path:
        return self.path / "identity.key"

    @property
    def lock(self) -> Path:
        return self.path / "daemon.lock"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def runs(self) -> Path:
        return self.state / RUNS

    @property
    def run(self) -> Path:
        """How it was started last (`remembered`)."""
        return self.state / "run.toml"

    @property
    def cache(self) -> Path:
        return self.path / "jax-cache"

    def command(self, *words: str) -> str:
        """`p2pnode WORDS` for this home, as people paste it into a shell."""
        return shlex.join(["p2pnode", *words, "--home", str(self.path)])


def locate(flag: str | None, environ: Mapping[str, str]) -> Home:
    """The home that is meant: `--home`, else P2PNODE_HOME, else ~/.p2pnode. Need not exist.

    Raises:
        UserError: HOME; its name is not text, so it could be neither printed nor pasted.
    """
    text = flag or environ.get(HOME_VARIABLE) or "~/.p2pnode"
    path = Path(text).expanduser().absolute()
    if not is_text(str(path)):
        raise UserError(ExitCode.HOME, f"expected a home whose name is UTF-8, got {printable(str(path))}.")
    return Home(path)


def create(home: Home) -> None:
    """Make the directory, 0700. An existing one is taken if it is ours and closed to others.

    Raises:
        UserError: HOME.
    """
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            ExitCode.HOME, f"{home.path}: cannot be made a directory ({error.strerror})."
        ) from error
    check(home)


def check(home: Home) -> None:
    """Refuse a home that is absent, not ours, or open to others.

    Raises:
        UserError: HOME.
    """
    try:
        found = home.path.stat()
    except OSError as error:
        raise UserError(
            ExitCode.HOME,
            f"{home.path}: expected a home directory ({error.strerror}); make one with `{home.command('init')}`.",
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(ExitCode.HOME, f"{home.path}: expected a directory, found something else.")
    _refuse_open(home.path, found, wanted=0o700)


def read_key(home: Home) -> bytes:
    """The content of the key file, for `Identity.unseal`.

    Raises:
        UserError: HOME; absent, a link, not ours, or readable by others.
    """
    check(home)
    try:
        # Without waiting: a pipe in its place would have us wait for a writer.
        handle = os.open(home.key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UserError(
            ExitCode.HOME, f"{home.key}: there is no key yet; make one with `{home.command('init')}`."
        ) from error
    except OSError as error:
        raise UserError(
            ExitCode.HOME, f"{home.key}: cannot be read as a plain file ({error.strerror})."
        ) from error
    found = os.fstat(handle)
    # Before Python makes a stream of it, which for a directory raises.
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise _no_key_file(home, found)
    with os.fdopen(handle, "rb") as stream:
        _refuse_open(home.key, found, wanted=0o600)
        data = stream.read(KEY_BYTES_MAX + 1)
    if len(data) > KEY_BYTES_MAX:
        raise UserError(
            ExitCode.HOME, f"{home.key}: expected a key of at most {KEY_BYTES_MAX} bytes, found more."
        )
    return data


def write_key(home: Home, data: bytes) -> None:
    """Write a new key file, 0600, durable. Never replaces one: a lost key cannot be had back.

    Raises:
        UserError: HOME.
    """
    try:
        write_whole(home.key, data, replace=False)
    except FileExistsError:
        check_no_key(home)
        raise  # another process made one and took it away again
    except OSError as error:
        raise UserError(ExitCode.HOME, f"{home.key}: cannot be written ({error.strerror}).") from error


def check_no_key(home: Home) -> None:
    """Refuse a home that has a key, or something else in its place.

    Raises:
        UserError: HOME.
    """
    try:
        found = home.key.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise _no_key_file(home, found)
    raise UserError(
        ExitCode.HOME,
        f"{home.key}: there is a key already and it is never overwritten; choose another --home.",
    )


def write_config(home: Home, text: str) -> None:
    """Write a new config.toml, whole or not at all.

    Raises:
        UserError: HOME; it cannot be written, or there is one.
    """
    try:
        write_whole(home.config, text.encode(), replace=False)
    except OSError as error:
        raise UserError(ExitCode.HOME, f"{home.config}: cannot be written ({error.strerror}).") from error


def take_lock(home: Home) -> int:
    """Become the one daemon of this home, until the returned descriptor is closed or the process dies.

    Raises:
        UserError: RUNNING when another has it; HOME when the file cannot be made.
    """
    try:
        handle = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(ExitCode.HOME, f"{home.lock}: cannot be opened ({error.strerror}).") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UserError(
            ExitCode.RUNNING,
            f"{home.path}: a daemon already runs in this home; `{home.command('stop')}` ends it.",
        ) from error
    return handle


def wait_until_free(home: Home, timeout_s: float) -> bool:
    """Wait until no daemon holds the lock of `home`; False if one still does after `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            os.close(take_lock(home))
            return True
        except UserError as error:
            if error.code is not ExitCode.RUNNING:
                raise
        if time.monotonic() >= give_up:
            return False
        time.sleep(FREE_POLL_S)


def _no_key_file(home: Home, found: os.stat_result) -> UserError:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISLNK, "a link"))
    kind = next((words for holds, words in kinds if holds(found.st_mode)), "something else")
    return UserError(
        ExitCode.HOME,
        f"{home.key}: expected the key, a plain file, found {kind}; move it away and put the key there, or "
        "choose another --home.",
    )


def _refuse_open(path: Path, found: os.stat_result, *, wanted: int) -> None:
    if found.st_uid != os.getuid():
        raise UserError(
            ExitCode.HOME, f"{path}: expected to belong to user {os.getuid()}, belongs to {found.st_uid}."
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise UserError(
            ExitCode.HOME,
            f"{path}: expected mode {wanted:04o} or stricter, found {mode:04o}; "
            f"run `{shlex.join(['chmod', f'{wanted:o}', str(path)])}`.",
        )
