"""The home directory: closed to others, one key that is never overwritten, one daemon."""

import os
import stat
from pathlib import Path

import pytest

from p2pnode import home as homes
from p2pnode.errors import ExitCode, UserError
from p2pnode.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "a" / "b")
    homes.create(made)
    return made


def refused(action: object, *arguments: object) -> tuple[ExitCode, str]:
    assert callable(action)
    with pytest.raises(UserError) as caught:
        action(*arguments)
    return caught.value.code, str(caught.value)


def test_a_new_home_and_its_key_are_closed_to_others(home: Home) -> None:
    old = os.umask(0)
    try:
        homes.write_key(home, b"seed")
    finally:
        os.umask(old)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
    assert homes.read_key(home) == b"seed"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_may_touch_is_refused(home: Home, mode: int) -> None:
    homes.write_key(home, b"seed")
    home.key.chmod(mode)
    code, said = refused(homes.read_key, home)
    assert code is ExitCode.HOME
    assert f"found {mode:04o}" in said
    assert f"chmod 600 {home.key}" in said


def test_a_home_that_others_may_enter_is_refused(home: Home) -> None:
    home.path.chmod(0o755)
    assert refused(homes.check, home)[0] is ExitCode.HOME
    assert refused(homes.create, home)[0] is ExitCode.HOME


def test_a_key_is_never_overwritten(home: Home) -> None:
    homes.write_key(home, b"first")
    assert "never overwritten" in refused(homes.write_key, home, b"second")[1]
    assert homes.read_key(home) == b"first"


def test_a_link_in_place_of_the_key_is_refused(home: Home, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    home.key.symlink_to(tmp_path / "elsewhere")
    assert refused(homes.read_key, home)[0] is ExitCode.HOME
    assert refused(homes.write_key, home, b"y")[0] is ExitCode.HOME
    assert (tmp_path / "elsewhere").read_bytes() == b"x"


def test_what_is_no_file_in_place_of_the_key_is_refused_by_its_name(home: Home) -> None:
    home.key.mkdir(mode=0o700)
    for action in (homes.read_key, lambda home: homes.write_key(home, b"seed")):
        code, said = refused(action, home)
        assert code is ExitCode.HOME
        assert f"{home.key}: expected the key, a plain file, found a directory; move it away" in said
    home.key.rmdir()
    os.mkfifo(home.key, 0o600)  # must not be waited for
    assert "found something else" in refused(homes.read_key, home)[1]


def test_a_key_of_absurd_size_is_refused(home: Home) -> None:
    homes.write_key(home, bytes(homes.KEY_BYTES_MAX + 1))
    assert "at most" in refused(homes.read_key, home)[1]


def test_an_absent_home_or_key_says_what_to_do(tmp_path: Path, home: Home) -> None:
    assert "p2pnode init" in refused(homes.check, Home(tmp_path / "none"))[1]
    assert "p2pnode init" in refused(homes.read_key, home)[1]


def test_the_flag_beats_the_variable_beats_the_default(tmp_path: Path) -> None:
    assert homes.locate("x", {"P2PNODE_HOME": "y"}).path == Path.cwd() / "x"
    assert homes.locate(None, {"P2PNODE_HOME": str(tmp_path)}).path == tmp_path
    assert homes.locate(None, {}).path == Path("~/.p2pnode").expanduser()


def test_one_home_has_one_daemon(home: Home) -> None:
    held = homes.take_lock(home)
    assert refused(homes.take_lock, home)[0] is ExitCode.RUNNING
    os.close(held)
    os.close(homes.take_lock(home))
