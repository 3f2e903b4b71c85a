"""`python -m simulation` is `p2psim`."""

from simulation.cli import main

main()
