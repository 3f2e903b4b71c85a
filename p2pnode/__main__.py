"""`python -m p2pnode`: the same as the command `p2pnode`."""

import sys

from p2pnode.import_path import leave_out_working_directory

leave_out_working_directory()

from p2pnode.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
