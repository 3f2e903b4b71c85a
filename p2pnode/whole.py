"""Files that appear whole or not at all, whatever happens while they are written: a full disk, a kill, a power failure.

Half a settings file is a node in another network, half a key a node that is lost.
"""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, *, replace: bool, mode: int = 0o600) -> None:
    """Write `data` beside `path`, make it durable, and give it its name in one step.

    Args:
        path: The file; its folder exists. A link is never followed.
        data: All of it.
        replace: Whether a file that is there gives way.
        mode: Of the new file, less the umask.

    Raises:
        FileExistsError: something is there and must not be replaced.
        OSError: it cannot be written; then `path` is as it was.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(fresh, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(fresh, path)
        else:
            os.link(fresh, path)  # unlike a rename, it refuses to replace
    finally:
        fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # a name is durable only with its directory
    finally:
        os.close(folder)
