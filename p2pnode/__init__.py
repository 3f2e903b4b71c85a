"""Everything that touches the world: trio, TCP, the terminal, the disk, the command line."""

# The same as in pyproject.toml (a test compares them); here, so that saying it costs no look-up in metadata.
__version__ = "0.2.0"
