"""`python -m simulation` is `p2psim`."""

from p2pnode.import_path import leave_out_working_directory

leave_out_working_directory()

from simulation.cli import main  # noqa: E402

main()
