"""A file appears whole or not at all."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.whole import write_whole


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    """As on a full disk: the system takes the first ten bytes and no more."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from p2pnode.whole import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "for replace in (False, True):\n"
        "    try:\n"
        "        write_whole(Path(sys.argv[1]), bytes(100), replace=replace)\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    path = tmp_path / "file"
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.splitlines() == ["File too large"] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_gives_way_only_when_it_may(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"first", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    write_whole(path, b"third", replace=True)
    assert path.read_bytes() == b"third"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "link", b"x", replace=False)
    write_whole(tmp_path / "link", b"x", replace=True)
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "link").read_bytes() == b"x"


def test_the_mode_holds_from_the_first_moment(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_whole(tmp_path / "file", b"x", replace=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
