"""`python -m` puts the working directory first on the import path; commands of ours look for nothing there.

Whoever can write to the folder in which somebody types a command could otherwise run code: by a module with the name of
a library, or by a `*.dist-info` with entry points, which JAX and we load. A task of somebody's own is another matter:
`p2pnode.tasks` puts the folder last on the path when one is named.
"""

import os
import sys
from pathlib import Path

_OURS = Path(__file__).resolve().parents[1]


def leave_out_working_directory() -> None:
    """Call first in `__main__`. Nothing changes where the packages themselves were found there: in a checkout."""
    if not sys.flags.safe_path and Path.cwd() != _OURS and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


def python_path() -> str:
    """PYTHONPATH for a process of ours that is started with `-P`, wherever we were found ourselves."""
    return os.pathsep.join([str(_OURS), *filter(None, [os.environ.get("PYTHONPATH")])])
